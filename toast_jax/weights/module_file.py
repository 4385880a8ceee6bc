"""Module files: the pre-tuned parameters of a method, without the head, and a record of the run.

Arrays have the release's names, so that PyTorch code can read them too. The header of the safetensors file holds the config and
a fingerprint of the backbone.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from toast_jax import package_files, trees
from toast_jax.devices import parallel
from toast_jax.errors import InputError
from toast_jax.fields import flat_fields
from toast_jax.model.methods import Method, module_paths, tuned_mask
from toast_jax.weights.containers import read_header, write
from toast_jax.weights.rename import kind, stacked_depth, to_torch, unstack
from toast_jax.workdir import run_folder
from toast_jax.workdir.fingerprint import differing, moments

log = logging.getLogger(__name__)


def save_all(folder: Path, params: dict, mask: dict, config: ConfigDict) -> None:
    """Write `module.safetensors` and, of a top-down module alone, the same as `top_down.safetensors`."""
    groups = {path.split("/")[0] for path in module_paths(mask)}
    names = ("module", *(groups if groups == {"top_down"} else ()))
    save([folder / f"{name}.safetensors" for name in names], params, mask, config)


def save(files: Sequence[str | Path], params: dict, mask: dict, config: ConfigDict) -> None:
    """Write the `methods.module_paths` of `params`, from the first process alone.

    Args:
      files: all get the same content.
      params: of the network; they may be split over processes, which then all have to call this.
      mask: of the tuned parameters, see `methods.tuned_mask`.
      config: of the run, for the header.
    """
    flat, facts = trees.flat(params), header(params, mask, config)
    module = parallel.fetch({name: flat[name] for name in module_paths(mask)})  # the rest stays on its devices
    if jax.process_index():
        return
    family = kind(flat)
    module = {name: np.asarray(array, np.float32) for name, array in module.items()}
    arrays = to_torch(module, family, stacked_depth(flat, family))
    for file in files:
        write(file, arrays, facts)


def header(params: dict, mask: dict, config: ConfigDict) -> dict[str, str]:
    """Build the header: config, versions, device, and a fingerprint of the frozen part of `params["backbone"]`.

    `check_backbone` compares the fingerprint with the backbone that the module is used with.
    """
    backbone = fingerprint(outside(trees.flat(params), mask))
    facts = {"config": config.to_dict(), "backbone": backbone, **run_folder.circumstances()}
    return {"toast_jax": json.dumps(facts)}


def outside(params: Mapping[str, ArrayLike], mask: dict) -> dict[str, ArrayLike]:
    """Return the parameters that a module file does not hold."""
    inside = module_paths(mask)
    return {path: leaf for path, leaf in params.items() if path not in inside}


def fingerprint(params: Mapping[str, ArrayLike]) -> dict[str, list[float]]:
    """Compute mean and root mean square of every backbone parameter, except resized position embeddings.

    Stacked parameters are read layer by layer, so that neither the host nor a device holds the backbone twice.
    """
    backbone: dict[str, Any] = {name: _Part(array) for name, array in params.items() if name.startswith("backbone/")}
    parts: dict[str, Any] = {name: part for name, part in unstack(backbone).items() if not name.endswith("/pos_embed")}
    return {name: moments(part.array if part.layer is None else part.array[part.layer]) for name, part in parts.items()}


@dataclasses.dataclass(frozen=True)
class _Part:
    """An array, or a layer of a stacked one that has not been read."""

    array: Any
    layer: int | None = None

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, layer: int) -> "_Part":
        return _Part(self.array, layer)


def regexes(shapes: dict, method: Method) -> tuple[str, list[str]]:
    """Return regexes of the paths in a module file, with a path for every layer.

    Args:
      shapes: parameters of the network, nested, anything with a shape.
      method: of the network.

    Returns:
      a regex of the required paths, and regexes of optional groups of paths, the frozen backbone last.
    """
    inside = module_paths(tuned_mask(shapes, method))
    lacking = [regex for _, regex in method.starts_from]
    added = {f"{path.split('/')[0]}/.*" for path in inside if not path.startswith("backbone/")}
    backbone = [regex for regex in method.tuned if regex.startswith("backbone/")]
    # Blocks outside the stack have other paths than the layers of a file, so each layer is named.
    marked = {path: np.broadcast_to(np.bool_(path in inside), leaf.shape) for path, leaf in trees.flat(shapes).items()}
    layers = [path for path, mark in unstack(marked).items() if mark.any() and path.startswith("backbone/")]
    backbone += [re.escape(path) for path in layers if not any(re.fullmatch(regex, path) for regex in backbone)]
    frozen = f"(?!({'|'.join(backbone)})$)backbone/.*" if backbone else "backbone/.*"
    return "|".join([*sorted(added - set(lacking)), *backbone]), [*lacking, frozen]


def check_method(path: str, method: Method, config: ConfigDict) -> None:
    """Check by the config in its header that a run may start from a module file; without a header it may.

    Args:
      path: of the file.
      method: row of the run.
      config: of the run.

    Raises:
      InputError: the file was made with an unsuitable method, or with other values of this method's `module_fields`.
    """
    recorded = flat_fields(_recorded(path, "config"))
    name = recorded.get("method", config.method)
    accepted = [config.method, *(other for other, _ in method.starts_from)]
    if name not in accepted:
        raise InputError(
            f"The module in {path} was made with method {name}, and method {config.method} starts from one of "
            f"{' or '.join(accepted)}; give such a file, or use method {name}."
        )
    if name != config.method:
        log.info("The module in %s was made with method %s; method %s takes what both have.", path, name, config.method)
        return
    for field, value in flat_fields(config.to_dict()).items():
        if field in method.module_fields and recorded.get(field, value) != value:
            raise InputError(
                f"The module in {path} was made with {field}={recorded[field]}, and this run has {field}={value}; make them "
                "equal, or give another file."
            )


def check_backbone(path: str, params: Mapping[str, ArrayLike]) -> None:
    """Compare the backbone that a module file records with `params`, see `outside`.

    Raises:
      InputError: they differ, or the header is damaged.
    """
    recorded = _recorded(path, "backbone")
    try:
        recorded = {name: (float(mean), float(rms)) for name, (mean, rms) in recorded.items()}
    except (ValueError, TypeError) as error:
        raise _damaged(path) from error
    if not recorded:
        return
    if name := differing(fingerprint(params), recorded):
        raise other_backbone(path, name)


def _recorded(path, part):
    """Read a part of the header; {} for a file without one or that does not exist."""
    if not package_files.find(path).is_file():
        return {}  # the error is raised when its arrays are read
    try:
        recorded = json.loads(read_header(path).get("toast_jax", "{}")).get(part, {})
    except (ValueError, AttributeError) as error:
        raise _damaged(path) from error
    if not isinstance(recorded, dict):
        raise _damaged(path)
    return recorded


def _damaged(path):
    return InputError(f"The header of {path} is damaged; copy the file again, or leave its header out.")


def other_backbone(path: str, name: str) -> InputError:
    """Return the error for a module that was made for a backbone with another parameter `name`."""
    return InputError(
        f"The module in {path} was made for another backbone ({name} differs); give the one it belongs to in "
        "--config.backbone.weights."
    )
