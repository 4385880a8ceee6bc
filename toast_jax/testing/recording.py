"""Arrays recorded from the PyTorch release: the network, the method and the batch that they belong to.

Sizes and the method are read from the arrays.
"""

import dataclasses
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model.backbones.convnext import STRIDES, ConvNeXt
from toast_jax.model.backbones.llama import LLaMA
from toast_jax.model.backbones.vit import ViT
from toast_jax.model.methods import LANGUAGE_METHODS, METHODS, Method, pretuned, tuned_mask
from toast_jax.model.prompts import Prompts
from toast_jax.model.steered import Steered, classifier, init
from toast_jax.model.top_down import ConvTopDown, TopDown
from toast_jax.weights.rename import from_torch, kind, to_torch

HEAD_WIDTH = 8  # of every recording of a ViT or a LLaMA; the arrays do not tell
IGNORED = -100  # the label of a token that is not predicted, in the release


@dataclasses.dataclass(frozen=True)
class Recording:
    """What was recorded, and what it was recorded from.

    Attributes:
      arrays: everything in the file, by its key there.
      network: "ViT", "ConvNeXt" or "LLaMA".
      model, method, params: for `steered.apply`.
      batch: what `losses` read.
      turned: the batch of every second optimizer step.
      pretuning: whether its loss includes the variational one.
    """

    arrays: dict[str, np.ndarray]
    network: str
    model: Steered
    method: Method
    params: dict
    batch: dict
    turned: dict
    pretuning: bool

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays under a prefix, by the names of PyTorch that follow it, without `enc.`."""
        names = {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}
        return {name.removeprefix("enc."): value for name, value in names.items()}


# A parameter that each kind of network has, and no other.
_SIGNS = {
    "ViT": "params/enc.blocks.0.attn.qkv.weight",
    "ConvNeXt": "params/enc.stages.0.0.dwconv.weight",
    "LLaMA": "params/model.layers.0.self_attn.q_proj.weight",
}


def load(path: str) -> Recording:
    """Reads a recording.

    Raises:
      InputError: there is no such file, or it is no recording of a network that is here.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a recording ({error}); give the path of an .npz file.") from error
    network = next((name for name, sign in _SIGNS.items() if sign in arrays), None)
    if network is None:
        raise InputError(f"{path} is not a recording of a {', a '.join(_SIGNS)}; no other network can be replayed.")
    state = {name.removeprefix("params/").removeprefix("enc."): a for name, a in arrays.items() if name.startswith("params/")}
    state = {name: array for name, array in state.items() if not name.endswith(".inv_freq")}  # computed, here and there
    trainable = {str(name).removeprefix("enc.") for name in arrays["trainable_names"]}
    name, method, ours = _row(state, trainable, network)
    model = _build(ours, method)
    shapes = jax.eval_shape(lambda: init(model, method, jax.random.key(0)))
    params = trees.nested({path: jnp.asarray(array) for path, array in ours.items()})
    assert trees.shapes(params) == trees.shapes(shapes), "the recording has other parameters than the network"
    batch, turned = (_text if network == "LLaMA" else _images)(arrays)
    return Recording(arrays, network, model, method, params, batch, turned, pretuning=name == "pretune")


def _images(arrays) -> tuple[dict, dict]:
    image, label = arrays["input/images_nchw"].transpose(0, 2, 3, 1), arrays["input/labels"].astype(np.int32)
    return {"image": image, "label": label}, {"image": 0.5 * image[::-1], "label": label[::-1]}


def _text(arrays) -> tuple[dict, dict]:
    """The label of a token is the next one. Padding belongs to the document before it (see `llama.places`)."""
    ids, wanted, real = (arrays[f"input/{name}"].astype(np.int32) for name in ("ids", "labels", "attention_mask"))
    label = np.concatenate([wanted[:, 1:], np.full_like(wanted[:, :1], IGNORED)], axis=1)
    predicted = (label != IGNORED).astype(np.float32)
    mask = predicted.sum(axis=1)
    batch = {
        "tokens": ids,
        "segments": np.where(real > 0, 1, -1).astype(np.int32),
        "label": np.maximum(label, 0),
        "weight": predicted / np.maximum(mask, 1)[:, None],
        "mask": mask,
    }
    return batch, {name: array[::-1] for name, array in batch.items()}


def _row(state, trainable, network) -> tuple[str, Method, dict]:
    """The row whose created and tuned parameters are the recorded ones, its name, and the parameters by our paths."""
    rows = METHODS
    if network == "LLaMA":
        rows = {**LANGUAGE_METHODS, "pretune": pretuned(LANGUAGE_METHODS["toast"])}
    tuned_blocks = len({name.split(".")[1] for name in trainable if name.startswith("blocks.")})
    for name, method in rows.items():
        last_blocks = max(1, tuned_blocks) if name == "partial" else int(network != "LLaMA")
        arrays, unknown = from_torch(state, last_blocks)
        assert not unknown, f"names without a line in the rename table: {unknown}"
        created = {path.split("/")[0] for path in arrays} - {"backbone", "head"}
        if created != {part for part in (method.signal, "lora" if method.lora else "") if part}:
            continue
        tuned, _ = trees.split(trees.nested(arrays), tuned_mask(trees.nested(arrays), method))
        if set(to_torch(trees.flat(trees.prune(tuned)), network)) == trainable:
            return name, method, arrays
    raise InputError("No method has the tuned parameters of the recording.")


def _build(arrays, method) -> Steered:
    backbone = {"ViT": _vit, "ConvNeXt": _convnext, "LLaMA": _llama}[kind(arrays)](arrays)
    signal = {}
    if method.signal == "top_down" and isinstance(backbone, ConvNeXt):
        signal = {"top_down": ConvTopDown((3, *backbone.widths), STRIDES)}
    elif method.signal == "top_down":
        signal = {"top_down": TopDown(backbone.depth, backbone.width)}
    if method.signal == "prompts":
        layers, num, _ = arrays["prompts/tokens"].shape
        signal = {"prompts": Prompts(layers, num, backbone.width, backbone.patch)}
    return Steered(backbone, classifier(len(arrays["head/bias"])) if "head/bias" in arrays else None, **signal)


def _vit(arrays) -> ViT:
    width = arrays["backbone/cls_token"].shape[-1]
    last = len({path.split("/")[1] for path in arrays if path.startswith("backbone/last_")})
    return ViT(
        width=width,
        depth=last + len(arrays.get("backbone/blocks/norm1/scale", ())),
        num_heads=width // HEAD_WIDTH,
        patch=round((arrays["backbone/patch_embed/kernel"].shape[0] / 3) ** 0.5),
        grid=round((arrays["backbone/pos_embed"].shape[1] - 1) ** 0.5),
        last_blocks=last,
    )


def _convnext(arrays) -> ConvNeXt:
    last = len({path.split("/")[2] for path in arrays if re.match("backbone/stages_3/last_", path)})
    stages = [f"backbone/stages_{i}" for i in range(len(STRIDES))]
    depths = [len(arrays.get(f"{stage}/blocks/gamma", ())) for stage in stages]
    return ConvNeXt(
        depths=(*depths[:-1], depths[-1] + last),
        widths=tuple(len(arrays[f"{stage}/downsample/conv/bias"]) for stage in stages),
        last_blocks=last,
    )


def _llama(arrays) -> LLaMA:
    vocabulary, width = arrays["backbone/embed"].shape
    blocks = "backbone/blocks"
    return LLaMA(
        width=width,
        depth=len(arrays[f"{blocks}/norm1/scale"]),
        num_heads=width // HEAD_WIDTH,
        num_kv_heads=arrays[f"{blocks}/attn/k/kernel"].shape[-1] // HEAD_WIDTH,
        hidden=arrays[f"{blocks}/mlp/gate/kernel"].shape[-1],
        vocabulary=vocabulary,
        tied="backbone/head" not in arrays,
    )
