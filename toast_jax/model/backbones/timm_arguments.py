"""Arguments with which a repository changes one of timm's architectures: `model_args` of its `config.json`. Imports no JAX."""

from collections.abc import Mapping
from typing import Any

from toast_jax.model.backbones.rename_rules import Unusable

# Arguments that change no output of a network whose weights are loaded and whose images have the stated size.
_HARMLESS = {"img_size", "strict_img_size", "dynamic_img_size", "dynamic_img_pad", "num_classes", "weight_init", "in_chans"}
_HARMLESS |= {"init_values", "ls_init_value"}  # of LayerScale, which is in the file
_HARMLESS |= {f"{name}rate" for name in ("drop_", "pos_drop_", "patch_drop_", "proj_drop_", "attn_drop_", "drop_path_")}


def stated(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that change a network, by timm's names."""
    return {name: value for name, value in (content.get("model_args") or {}).items() if name not in _HARMLESS}


def refuse(arguments: Mapping[str, Any]) -> None:
    """Raise Unusable if there are arguments."""
    if arguments:
        shown = " and ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise Unusable(f"its model_args set {shown}, which no network here has")
