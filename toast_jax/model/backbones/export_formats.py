"""How a family writes plain weights for another library: the layout of its arrays, and its `config.json`."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from toast_jax.model.backbones.normalize import Statistics


class Preprocessing(NamedTuple):
    """Describes how a run sees an image: shorter side to `resize` pixels, bilinearly, and the central square of `size`.

    If `stretched`, the whole image becomes the square, whatever its proportions.
    """

    resize: int
    size: int
    statistics: Statistics
    stretched: bool = False


class Naming(NamedTuple):
    """Names the arrays of a network by a published layout.

    Attributes:
      layout: name of a `rename_rules.Layout`.
      prefix: of the names of the backbone.
      part, parts: which of several equal parts of the classifier's input the network pools; the others have no weight.
    """

    layout: str
    prefix: str = ""
    part: int = 0
    parts: int = 1


class Format(NamedTuple):
    """Writes a family's plain weights for one library.

    Attributes:
      config: `(backbone, classes, preprocessing) -> config.json`, the last two empty for text; raises InputError for a network
        that the library lacks.
      naming: of a backbone: how the library names its arrays.
    """

    config: Callable[[Any, Sequence[str], Any], dict[str, Any]]
    naming: Callable[[Any], Naming]


def timm_config(
    architecture: str,
    width: int,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    *,
    layers: tuple[str, str],
    pool: str,
    fixed_size: bool,
    **model_args: Any,
) -> dict[str, Any]:
    """Build the `config.json` of a folder or repository that `timm.create_model` reads.

    Args:
      architecture: timm's name.
      width: of the features.
      classes, preprocessing: of the run.
      layers: names of the first convolution and of the classifier.
      pool: timm's name of the pooling.
      fixed_size: whether the network takes images of one size alone.
      model_args: arguments of the model that differ from the architecture's.
    """
    mean, std = preprocessing.statistics
    side = preprocessing.size
    return {
        "architecture": architecture,
        "num_classes": len(classes),
        "num_features": width,
        "global_pool": pool,
        "label_names": list(classes),
        **({"model_args": model_args} if model_args else {}),
        "pretrained_cfg": {
            "num_classes": len(classes),
            "input_size": [3, side, side],
            "fixed_input_size": fixed_size,
            "pool_size": None,
            "interpolation": "bilinear",
            "crop_pct": _share(side, preprocessing.resize),
            "crop_mode": "squash" if preprocessing.stretched else "center",
            "mean": list(mean),
            "std": list(std),
            "first_conv": layers[0],
            "classifier": layers[1],
        },
    }


def _share(size: int, resize: int) -> float:
    """Return the share that timm divides `size` by, and rounds down, to get `resize`."""
    share = size / resize
    return share if math.floor(size / share) == resize else math.nextafter(share, 0.0)


def transformers_config(architecture: str, model_type: str, classes: Sequence[str], **fields: Any) -> dict[str, Any]:
    """Build the `config.json` of a folder or repository that transformers reads; without classes it has no labels."""
    common = {"architectures": [architecture], "model_type": model_type, "torch_dtype": "float32", **fields}
    if not classes:
        return common
    labels = {str(i): name for i, name in enumerate(classes)}
    return {**common, "id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
