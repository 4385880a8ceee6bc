"""Recordings of the PyTorch release: arrays, and the network, method and batch they were recorded with.

Sizes and the method are inferred from the arrays.
"""

import dataclasses
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model.additions.probe import AttentionProbe
from toast_jax.model.additions.prompts import Prompts
from toast_jax.model.families import FAMILIES, Family
from toast_jax.model.layers.batch_norm import without_statistics
from toast_jax.model.methods import LAST_BLOCKS, Method, pretuned, tuned_mask
from toast_jax.model.steered import Steered, classifier, init
from toast_jax.weights.rename import from_torch, recognized, to_torch

HEAD_WIDTH = 8  # of attention in all recordings; no array shows it
IGNORED = -100  # the release's label of tokens that are not predicted


@dataclasses.dataclass(frozen=True)
class Recording:
    """Holds a recording and the network it was recorded from.

    Attributes:
      arrays: all arrays of the file, by key.
      family: of the network.
      model, method, params: for `steered.apply`.
      batch: as `losses` read it.
      turned: batch of every second optimizer step.
      pretuning: whether the loss includes the variational loss.
    """

    arrays: dict[str, np.ndarray]
    family: Family
    model: Steered
    method: Method
    params: dict
    batch: dict
    turned: dict
    pretuning: bool

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays under a prefix by the rest of their names, without `enc.`."""
        return {name.removeprefix("enc."): value for name, value in group(self.arrays, prefix).items()}


def group(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays under a prefix by the rest of their names."""
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def read(path: str) -> dict[str, np.ndarray]:
    """Read the arrays of a recording, by key; InputError without such a file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a recording ({error}); give the path of an .npz file.") from error


def load(path: str, arrays: dict[str, np.ndarray]) -> Recording:
    """Build the network of a recording.

    Args:
      path: of the file, for messages.
      arrays: of the file, see `read`.

    Raises:
      InputError: it is not a recording of a supported network.
    """
    state = {name.removeprefix("params/").removeprefix("enc."): a for name, a in arrays.items() if name.startswith("params/")}
    family = recognized(state)
    if family is None:
        titles = ", a ".join(family.title for family in FAMILIES.values())
        raise InputError(f"{path} is not a recording of a {titles}; no other network can be replayed.")
    state = {name: array for name, array in state.items() if not name.endswith(".inv_freq")}  # not a parameter
    trainable = {str(name).removeprefix("enc.") for name in arrays["trainable_names"]}
    name, method, arrays_by_path = _row(state, trainable, family)
    model = _build(arrays_by_path, family, method, every_token=bool(arrays.get("config/with_cls")))
    method = _sized(method, arrays_by_path)
    shapes = jax.eval_shape(lambda: init(model, method, jax.random.key(0)))
    params = trees.nested({path: jnp.asarray(array) for path, array in arrays_by_path.items()})
    assert trees.shapes(params) == trees.shapes(shapes), "the recording has other parameters than the network"
    batch, turned = _BATCHES[family.reads](arrays)
    return Recording(arrays, family, model, method, params, batch, turned, pretuning=name == "pretune")


def _images(arrays) -> tuple[dict, dict]:
    image, label = arrays["input/images_nchw"].transpose(0, 2, 3, 1), arrays["input/labels"].astype(np.int32)
    return {"image": image, "label": label}, {"image": 0.5 * image[::-1], "label": label[::-1]}


def _text(arrays) -> tuple[dict, dict]:
    """Build batches of text: labels are shifted by one, padding belongs to the document before it (`llama.places`)."""
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


_BATCHES = {"images": _images, "text": _text}


def _row(state, trainable, family) -> tuple[str, Method, dict]:
    """Find the method whose created and tuned parameters are the recorded ones.

    Returns:
      its name, its row, and the parameters by path.
    """
    rows = {**family.methods, "pretune": pretuned(family.methods["toast"])}
    tuned_blocks = len({name.split(".")[1] for name in trainable if name.startswith("blocks.")})
    for name, method in rows.items():
        last_blocks = max(family.module.last_blocks, tuned_blocks if LAST_BLOCKS in method.tuned else 0)
        arrays, unknown = from_torch(state, last_blocks)
        assert not unknown, f"names without a line in the rename table: {unknown}"
        created = {path.split("/")[0] for path in arrays} - {"backbone", "head"}
        parts = (method.signal, method.added.group if method.added else "", "probe" if method.probe else "")
        if created != set(filter(None, parts)):
            continue
        tuned, _ = trees.split(trees.nested(arrays), tuned_mask(trees.nested(arrays), method))
        if set(to_torch(trees.flat(without_statistics(trees.prune(tuned))), family)) == trainable:
            return name, method, arrays
    raise InputError("No method has the tuned parameters of the recording.")


def _sized(method, arrays) -> Method:
    """Return a method with the width of the recording's adapters."""
    if widths := [array.shape[-1] for path, array in arrays.items() if re.fullmatch("adapter/.*/down", path)]:
        return dataclasses.replace(method, added=dataclasses.replace(method.added, rank=widths[0]))
    return method


def _build(arrays, family, method, every_token) -> Steered:
    backbone = family.sized(arrays, HEAD_WIDTH)
    parts: dict[str, Any] = {}
    if method.signal == "top_down":
        parts = {"top_down": family.top_down(backbone, family.sites(backbone))}
    if method.signal == "prompts":
        layers, num, _ = arrays["prompts/tokens"].shape
        parts = {"prompts": Prompts(layers, num, backbone.width, backbone.patch)}
    if method.probe:
        (queries, width), (_, channels) = arrays["probe/queries"].shape, arrays["probe/values"].shape
        parts["probe"] = AttentionProbe(width, queries, width // channels, every_token)
    return Steered(backbone, classifier(len(arrays["head/bias"])) if "head/bias" in arrays else None, **parts)
