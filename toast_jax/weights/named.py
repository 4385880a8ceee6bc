"""Weights by name: address, licence and download."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

from toast_jax import package_files
from toast_jax.errors import InputError
from toast_jax.weights import download
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)


class Named(NamedTuple):
    """Describes a file of weights: its https:// address, licence and SHA-256, or the first digits of it."""

    address: str
    licence: str
    sha256: str = ""


_BOX, _META = "https://berkeley.box.com/shared/static/", "https://dl.fbaipublicfiles.com/"
_RELEASE = "see https://github.com/bfshi/TOAST"

NAMED = {
    # The release's: backbones, and top-down modules that it pre-tuned.
    "vit_b16_in1k": Named(f"{_BOX}zblb4lfqoiyuiyo94a496h45qlqel6r8.pth", _RELEASE),
    "vit_b16_in1k_top_down": Named(f"{_BOX}ejf7a2vnzg8pmwty0ih4temm2vgw14u5.pth", _RELEASE),
    "vit_b16_in21k": Named(f"{_BOX}kbsnodpqvowtllze45lkuh90qwxtsxsu.pth", _RELEASE),
    "vit_b16_in21k_top_down": Named(f"{_BOX}u3w4ie6xww0o2w9kb4rukkkz6lx66ajr.pth", _RELEASE),
    "vit_l16_in21k": Named(f"{_BOX}ptz6d4nn5jd6gagw0c92b1qi2iaxbx4b.pth", _RELEASE),
    "vit_l16_in21k_top_down": Named(f"{_BOX}pl1ldyejj14nodumlmj2r3mi7stqy3v9.pth", _RELEASE),
    "convnext_b_in21k": Named(f"{_BOX}g629xskuq56rzo9qxrm8w7yi2rk1l07s.pth", _RELEASE),
    "convnext_b_in21k_top_down": Named(f"{_BOX}skzkydmvnch8jlpagd4ct6ru9ywyzc9v.pth", _RELEASE),
    "llama1_7b_top_down": Named(f"{_BOX}j4ulxk1cr56wih6lpu81x95uti65loqk.bin", _RELEASE),
    # Other authors'.
    "convnext_t_in1k": Named(f"{_META}convnext/convnext_tiny_1k_224_ema.pth", "MIT"),
    "convnext_b_in1k": Named(f"{_META}convnext/convnext_base_1k_224_ema.pth", "MIT"),
    "convnext_b_in21k_meta": Named(f"{_META}convnext/convnext_base_22k_224.pth", "MIT"),
    "vit_ti16_in1k_deit": Named(f"{_META}deit/deit_tiny_patch16_224-a1311bcf.pth", "Apache-2.0", "a1311bcf"),
    "vit_s16_in1k_deit": Named(f"{_META}deit/deit_small_patch16_224-cd65a155.pth", "Apache-2.0", "cd65a155"),
    "vit_b16_in1k_deit": Named(f"{_META}deit/deit_base_patch16_224-b5f2ef4d.pth", "Apache-2.0", "b5f2ef4d"),
    "vit_b16_in1k_mae": Named(f"{_META}mae/pretrain/mae_pretrain_vit_base.pth", "CC-BY-NC-4.0"),
    "vit_s16_in1k_dino": Named(f"{_META}dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth", "Apache-2.0"),
    "vit_b14_dinov2": Named(f"{_META}dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth", "Apache-2.0"),
}


def local(name: str) -> Path:
    """Return the cached file of a name, downloaded if necessary.

    The first download is recorded; a file that differs from the record later is refused.

    Raises:
      InputError: it cannot be downloaded, or is another file.
    """
    entry, file = NAMED[name], _record_of(name)
    path = file.with_name(name + Path(entry.address).suffix)
    if not path.exists():
        log.info("Downloading %s from %s (licence: %s).", name, entry.address, entry.licence)
        download.fetch(entry.address, path, lambda digest: _check_digest(name, digest))
    digest = package_files.digest_of(path)
    if not file.exists():
        facts = {"name": name, "url": entry.address, "licence": entry.licence, "sha256": digest}
        run_folder.replace_file(file, json.dumps(facts, indent=2) + "\n")
        log.info("%s is in %s, its sha256 is %s.", name, path, digest)
    try:
        _check_digest(name, digest)
    except InputError as error:
        raise InputError(f"{path} has changed: {error}") from error
    return path


def record(name: str) -> dict[str, str]:
    """Return the record of the first download of a name: its address, licence and SHA-256."""
    return json.loads(_record_of(name).read_text())


def _record_of(name: str) -> Path:
    """Return the path of the record of the first download of a name."""
    return package_files.cache_folder("downloads") / f"{name}.json"


def _check_digest(name, digest) -> None:
    expected, file = NAMED[name].sha256, _record_of(name)
    if not digest.startswith(expected):
        raise InputError(f"the sha256 of {name} is {digest} and should begin with {expected}; remove it and download it again.")
    if file.exists() and digest != (first := record(name)["sha256"]):
        raise InputError(
            f"the sha256 of {name} is {digest}, and was {first} at its first download; remove it to download it again, and "
            f"{file} too to take another file from now on."
        )
