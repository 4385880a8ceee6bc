"""Deletion and insertion: does the prediction depend on where a map is high? (Petsiuk et al., arXiv 1806.07421.)

These scores need no annotated objects. Deletion removes the cells of an image, highest first: the class probability should fall
early. Insertion restores them in a blurred image: it should rise early. The score is the area under the curve.
"""

from collections.abc import Callable

import jax
import numpy as np
from PIL import Image, ImageFilter

from toast_jax.data.images.statistics import MEAN

GREY = np.round(255 * np.array(MEAN)).astype(np.uint8)  # zero after normalization with ImageNet's statistics
_BLUR = 5 / 224  # standard deviation, as a fraction of the side


def order(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rank the cells of a map `[g, g]`, 0 the highest, ties in random order."""
    flat = values.ravel()
    ranks = np.lexsort((rng.random(flat.size), -flat)).argsort()
    return ranks.reshape(values.shape)


def removed(ranks: np.ndarray, steps: int) -> np.ndarray:
    """Return which cells are changed after each step: bool `[steps + 1, g, g]`, none at first and all at the end."""
    counts = np.round(np.arange(steps + 1) / steps * ranks.size)
    return ranks < counts[:, None, None]


def area(curve: np.ndarray) -> np.ndarray:
    """Integrate curves `[..., steps + 1]` over [0, 1] by the trapezoidal rule."""
    return (curve[..., 1:] + curve[..., :-1]).mean(axis=-1) / 2


def blurred(image: np.ndarray) -> np.ndarray:
    """Blur away the details of an image uint8 `[S, S, 3]`."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(_BLUR * image.shape[0])))


def deletion(image: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Gray out cells `[K, g, g]` of an image: uint8 `[K, S, S, 3]`."""
    return np.where(_on_pixels(taken, image), GREY, image)


def insertion(image: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Restore cells `[K, g, g]` of an image in its blurred copy: uint8 `[K, S, S, 3]`."""
    return np.where(_on_pixels(taken, image), image, blurred(image))


def _on_pixels(taken, image):
    cell = image.shape[0] // taken.shape[1]
    return taken.repeat(cell, axis=1).repeat(cell, axis=2)[..., None]


def areas(
    probabilities: Callable, image: np.ndarray, values: np.ndarray, *, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the deletion (low is good) and insertion (high is good) areas of one image and map: `[2]`.

    Args:
      probabilities: maps uint8 `[steps + 1, S, S, 3]` to `[steps + 1, C]`; the class is the one predicted for the intact image.
      image: uint8 `[S, S, 3]`.
      values: the map `[g, g]`, S a multiple of g.
      steps: number of steps from none to all cells; at most the number of cells is useful.
      rng: orders tied cells.
    """
    taken = removed(order(values, rng), steps)
    falling, rising = (jax.device_get(probabilities(change(image, taken))) for change in (deletion, insertion))
    predicted = falling[0].argmax()
    return area(np.stack([falling[:, predicted], rising[:, predicted]]))
