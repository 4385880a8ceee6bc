"""Rename tables between PyTorch's parameter names and our paths: their rows, and helpers that make them.

Each family has its table and its layouts beside its backbone; `weights.rename` applies them in both directions.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

# Additions of methods repeat the paths of the parameters that they adapt, below a name of their own.
ADDED = "(?:(?:lora|ssf|adapter)/)?"


class Unusable(ValueError):
    """A network that is recognized, but not supported; the text says why, without the name of its file."""


@dataclasses.dataclass(frozen=True)
class Rename:
    """Converts parameters of PyTorch's names to our paths and back; one row of a table.

    Attributes:
      torch: PyTorch's names; `{i}` stands for the number of a layer.
      paths: our "/"-joined paths.
      forward: converts the arrays of `torch` into those of `paths`.
      backward: undoes `forward`.
    """

    torch: tuple[str, ...]
    paths: tuple[str, ...]
    forward: Callable = lambda *arrays: arrays
    backward: Callable = lambda *arrays: arrays


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names the parameters of a network as a library publishes them, to read and to write.

    Attributes:
      name: network and library, such as "dinov3_timm". Layouts of one name are tried in turn.
      table: rename table of the backbone; the first matching row applies.
      classifier: name of the classifier beside the backbone; "" if there is none.
      sign: regex of a name that only files of this layout have; they are read by the table, strictly. Without `sign` and
        `loose_sign`, files have the names of the family's table, or are converted to them by `weights.other_projects`.
      loose_sign: regex of a name in files whose other names depend on the version of the library and on the model around the
        network; every name of this layout is then converted by itself to a name of the family's table.
      respelled: parts of names, and how other versions of the library spell them; read by `loose_sign` alone.
      unused: regex of names that no network needs.
      refusal: of arrays by name: why their network cannot be used, or "".
    """

    name: str
    table: tuple[Rename, ...]
    classifier: str = ""
    sign: str = ""
    loose_sign: str = ""
    respelled: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unused: str = ""
    refusal: Callable[[Mapping[str, np.ndarray]], str] = lambda arrays: ""


@dataclasses.dataclass(frozen=True)
class Names:
    """Holds the names of a family's parameters.

    Attributes:
      table: rename table; the first matching row applies.
      layouts: names of the same parameters in published files.
      apart: rows of layers that are joined or folded before the table applies (`weights.other_projects`).
      own_paths: regex that matches the start of some of its paths and of no other family's.
      has_name: `(name, array) -> bool`, whether a PyTorch array can only be of this family.
      stacks: regex of paths with layers stacked along a leading axis, up to the layer number. A group `stage` marks stages,
        whose layers are counted separately.
      last_stack: regex of the stack whose last layers may stand alone (`last_0`, ...).
    """

    table: tuple[Rename, ...]
    own_paths: str
    has_name: Callable[[str, np.ndarray], bool]
    layouts: tuple[Layout, ...] = ()
    apart: tuple[Rename, ...] = ()
    stacks: str = rf"{ADDED}(?:backbone/blocks|top_down/(?:back|out))"
    last_stack: str = rf"{ADDED}backbone/blocks"


def transposed(torch: str, path: str) -> Rename:
    """Rename and transpose a matrix, which PyTorch stores as `[out, in]`."""
    return Rename((torch,), (path,), lambda w: (w.T,), lambda w: (w.T,))


def matrix(torch: str, path: str) -> Rename:
    """Rename the weight of a linear layer to a path without `kernel`."""
    return transposed(f"{torch}.weight", path)


def linear(torch: str, path: str) -> Rename:
    """Rename the weight of a linear layer."""
    return matrix(torch, f"{path}/kernel")


def bias(torch: str, path: str) -> Rename:
    return Rename((f"{torch}.bias",), (f"{path}/bias",))


def norm(torch: str, path: str) -> tuple[Rename, Rename]:
    """Rename scale and bias of a LayerNorm."""
    return Rename((f"{torch}.weight",), (f"{path}/scale",)), bias(torch, path)


def patches(torch: str, path: str, side: int | None = None) -> Rename:
    """Rename a convolution whose stride is its kernel size, and reshape it to a matrix for `patches.split`.

    Args:
      torch, path: its names.
      side: size of the kernel; None infers it, for an input of three channels.
    """

    def forward(w):
        return (w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),)

    def backward(w):
        length = side or round((w.shape[0] / 3) ** 0.5)
        return (w.reshape(length, length, -1, w.shape[1]).transpose(3, 2, 0, 1),)

    return Rename((f"{torch}.weight",), (f"{path}/kernel",), forward, backward)


def parts(torch: str, paths: tuple[str, ...]) -> Rename:
    """Rename an array that PyTorch stacks along its rows, such as the joint kernel of queries, keys and values."""

    def forward(w):
        return tuple(part.T for part in w.reshape(len(paths), -1, *w.shape[1:]))

    return Rename((torch,), paths, forward, lambda *arrays: (np.concatenate([array.T for array in arrays]),))


def scaled(torch: str, scale: str, path: str) -> Rename:
    """Rename a linear layer and fold the LayerScale after it: `scale * (W x + b)` is `(scale * W) x + scale * b`.

    On the way back the scale is 1, which gives the same network.
    """
    return Rename(
        (f"{torch}.weight", f"{torch}.bias", scale),
        (f"{path}/kernel", f"{path}/bias"),
        lambda w, b, scale: ((scale[:, None] * w).T, scale * b),
        lambda w, b: (w.T, b, np.ones_like(b)),
    )


def low_rank(torch: str, path: str) -> tuple[Rename, Rename]:
    """Rename the two factors of a low-rank delta."""
    return transposed(f"{torch}.lora_A", f"{path}/a"), transposed(f"{torch}.lora_B", f"{path}/b")


def bottleneck(torch: str, path: str) -> tuple[Rename, ...]:
    """Rename the adapter of a block; `torch` and `path` are names of the block."""
    layers = [(f"{torch}.adapter.bottleneck.{i}", f"adapter/{path}/{name}") for i, name in ((1, "down"), (4, "up"))]
    return (
        *(matrix(*names) for names in layers),
        *(Rename((f"{layer}.bias",), (f"{name}_bias",)) for layer, name in layers),
        Rename((f"{torch}.adapter.scaling",), (f"adapter/{path}/scaling",)),
    )


def scale_and_shift(torch: str, paths: tuple[str, ...], number: str = "") -> tuple[Rename, Rename]:
    """Rename SSF's vectors of an operation, or of several whose outputs PyTorch has side by side; `number` follows its name."""
    forward, backward = (lambda v: np.split(v, len(paths))), (lambda *parts: (np.concatenate(parts),))
    scale, shift = (
        Rename((f"{torch}ssf_{kind}{number}",), tuple(f"ssf/{path}/{kind}" for path in paths), forward, backward)
        for kind in ("scale", "shift")
    )
    return scale, shift


# PyTorch's and our names of a block's two feedback layers.
FEEDBACK = (("linear", "back"), ("linear2", "out"))
STEERED = (
    # The classifier of the task that the backbone was trained on.
    linear("head", "classifier"),
    bias("head", "classifier"),
    linear("head.last_layer", "head"),
    bias("head.last_layer", "head"),
    # The attentive probe in front of it.
    Rename(("head.pool.cls_token",), ("probe/queries",), lambda q: (q[0],), lambda q: (q[None],)),
    matrix("head.pool.v", "probe/values"),
    *(Rename((f"head.norm.running_{name}",), (f"probe/norm/running_{name}",)) for name in ("mean", "var")),
    # The top-down module: prompt is the prior.
    Rename(("prompt",), ("top_down/prior",)),
    Rename(("top_down_transform",), ("top_down/transform",)),
)


def token_feedback(prefix: str = "") -> tuple[Rename, ...]:
    """Rename the feedback layers of a `TopDown` and their low-rank deltas; `prefix` is PyTorch's."""
    pairs = [(f"{prefix}decoders.{{i}}.{torch}", f"top_down/{path}/{{i}}") for torch, path in FEEDBACK]
    return (*(matrix(*names) for names in pairs), *(row for torch, path in pairs for row in low_rank(torch, f"lora/{path}")))
