"""Turn the name of a backbone, such as vit_b16_in1k, hf:OWNER/NAME or a folder, into fields of a config.

Reading a config must not import JAX, so this module repeats a few names and defaults of the records in `model/families.py`;
a test checks that they agree.
"""

import re
from pathlib import Path
from typing import Any

from toast_jax import hub
from toast_jax.config import peft_adapters
from toast_jax.errors import InputError
from toast_jax.fields import CUSTOM
from toast_jax.model.backbones.llama import kinds as llama_kinds
from toast_jax.model.backbones.vit.kinds import FIELDS, KINDS

RANDOM = "random"  # value of backbone.weights: random weights, no file
LLAMAS = tuple(size for size in llama_kinds.SIZES if size != CUSTOM)
_ELSEWHERE = "Others are named by their repository on the Hugging Face Hub, hf:OWNER/NAME, or by a folder with a config.json."
_GATED = {"backbone.mlp": "swiglu"}
_VIT_SIZES: dict[str, dict[str, Any]] = {
    **{name.lower(): {"backbone.size": name} for name in ("Mini", "Nano", "Ti", "S", "B", "L", "H", "So400m")},
    "splus": {"backbone.size": "S", **_GATED},
    "hplus": {"backbone.size": "H+", **_GATED},
    "g": {"backbone.size": "g", **_GATED},
}


def of_images(name: str) -> dict[str, Any]:
    """Parse `vit_` + size + patch or `convnext_` + size, and a tag, `hf:OWNER/NAME`, or a path; return fields by dotted name.

    A path is that of a folder with a `config.json`, as from `save_pretrained`, or of a file beside one.
    A tag of a `Kind` makes the ViT one of that kind, such as vit_b16_dinov3 and vit_b14_reg4_dinov2, which has 4 registers.
    """
    if hub.is_place(name) or _is_described(name):
        return _of_hub(name, "images")
    peft_adapters.refuse_folder(name)
    vit = re.fullmatch(
        rf"vit_(?P<size>{'|'.join(_VIT_SIZES)})(?P<patch>8|14|16|32)(_reg(?P<registers>\d+))?(_(?P<tag>\w+))?", name
    )
    convnext = re.fullmatch(r"convnext_(?P<size>[tsbl]|xl)(_\w+)?", name)
    fields: dict[str, Any] = {"backbone.weights": f"weights/{name}.pth"}
    if vit:
        kind = next((kind for kind in KINDS if kind.tag and f"{vit['tag']}_".startswith(f"{kind.tag}_")), KINDS[0])
        fields |= {"backbone.family": "vit", **{f"backbone.{field}": row.default for field, row in FIELDS.items()}}
        fields |= {f"backbone.{field}": value for field, value in kind.fields.items()} | _VIT_SIZES[vit["size"]]
        fields |= {"backbone.patch": int(vit["patch"])}
        if vit["registers"]:
            fields |= {"backbone.registers": int(vit["registers"]), "backbone.antialias": True}
        # The release leaves drop-path on while it tunes a ViT.
        return fields | {"backbone.drop_path": 0.1, "variational_weight": 0.1}
    if convnext:
        return fields | {"backbone.family": "convnext", "backbone.size": convnext["size"].upper()}
    raise InputError(
        f"The backbone {name!r} is not known; write vit_ + size ({', '.join(_VIT_SIZES)}) + patch (8, 14, 16, 32) + a tag, "
        "such as vit_b16_in1k or vit_b16_dinov3, or convnext_ + size (t, s, b, l, xl) + a tag, such as convnext_b_in21k. "
        f"{_ELSEWHERE}"
    )


def of_text(name: str) -> dict[str, Any]:
    """Parse one of `LLAMAS` and a tag, `hf:OWNER/NAME`, or a path as in `of_images`; return fields by dotted name."""
    if hub.is_place(name) or _is_described(name):
        return _of_hub(name, "text")
    peft_adapters.refuse_folder(name)
    size = next((size for size in LLAMAS if re.fullmatch(rf"{size}(_\w+)?", name)), None)
    if size is None:
        raise InputError(
            f"The backbone {name!r} is not known; write one of {', '.join(LLAMAS)}, and a tag, such as llama2_7b_chat. "
            f"{_ELSEWHERE}"
        )
    fields = {"backbone.family": "llama", "backbone.size": size}
    fields |= {f"backbone.{field}": row.default for field, row in llama_kinds.FIELDS.items()}
    return fields | {"backbone.weights": f"weights/{name}", "data.tokenizer": f"weights/{name}"}


def label(name: str) -> str:
    """Return a name of a backbone that can be part of a file's name: of a repository or a path its last part."""
    return hub.parse(name).repository.partition("/")[2] if hub.is_place(name) else Path(name).stem


def _is_described(name):
    """Return whether a name is the path of a folder or file with a `config.json`."""
    path = Path(name).expanduser()
    return (path / "config.json").is_file() or (path.is_file() and path.with_name("config.json").is_file())


def _of_hub(name, reads):
    """Read the fields from the Hub, as the fields of a run, which flags set and `--fields` prints, depend on the family."""
    from toast_jax.config import hub_backbones  # imports JAX

    return hub_backbones.fields(name, reads)
