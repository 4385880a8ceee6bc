"""The mask that a tuned run predicts for an image, and where its looks attend."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax.analysis import maps
from toast_jax.model.segmentation.counting import predict_pixels
from toast_jax.model.segmentation.segmenter import segment
from toast_jax.train.saved_run import SavedRun
from toast_jax.train.segmentation import mask_runs


@dataclasses.dataclass(frozen=True)
class Segmented:
    """One network's prediction for an image.

    Attributes:
      mask: predicted labels, uint8 `[H, W]`.
      maps: `[h, w]` by name: `maps.SELECTION`, the mask of the feedback; of a ViT also `maps.FIRST` and `maps.LAST`, the
        attention in the last block of a look, averaged over heads and over the patches that attend, as the head reads all of
        them. Empty with a sliding window.
    """

    mask: np.ndarray
    maps: dict[str, np.ndarray]


def compiled(run: SavedRun, *, with_maps: bool = True) -> Callable[[np.ndarray], Segmented]:
    """Compile a run for images uint8 `[H, W, 3]` of any sides, seen as in its evaluation."""
    view = mask_runs.eval_view(run.config, len(run.classes))
    predict, look = run.compiled(_predicted), run.compiled(_maps)

    def segmented(image: np.ndarray) -> Segmented:
        sides = image.shape[:2]
        batch = {name: array[None] for name, array in view(image, np.zeros(sides, np.uint8)).items()}
        mask = np.asarray(predict(run.params, batch))[: sides[0], : sides[1]].astype(np.uint8)
        if not with_maps or any(view.window):  # also of an image that fits one window, as all images have the same maps
            return Segmented(mask, {})
        return Segmented(mask, jax.device_get(look(run.params, batch["image"][:, 0, 0], batch["size"])))

    return segmented


def _predicted(model, method, params, batch):
    logits = mask_runs.of_windows(model, method, params, batch)
    return predict_pixels(logits[0], batch["rows"][0], batch["columns"][0])


def _maps(model, method, params, image, size):
    def call(model, image, rng=None):
        _, out = model.looks(image)
        looks = {maps.FIRST: out.get("first_look", {}), maps.LAST: out["look"]}
        values = {name: _attended(model.backbone, look["attention"]) for name, look in looks.items() if "attention" in look}
        if "selection" in out:
            values[maps.SELECTION] = out["selection"][..., 0]
        return {name: jnp.squeeze(model.backbone.on_grid(value), axis=0) for name, value in values.items()}

    return segment(model, method, params, image, size=size, call=call)


def _attended(backbone, attention):
    """Average the attention to each token in the last block over heads and patches: `[B, N]`."""
    return attention[-1][:, :, -backbone.num_patches :].mean(axis=(1, 2))
