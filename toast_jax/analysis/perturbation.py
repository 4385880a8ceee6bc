"""Deletion and insertion: does the class hang on where a map is high? (Petsiuk et al., arXiv 1806.07421.)

For images without boxes. Cells of the image are removed, highest first, and the probability of the class should fall soon; or
they are put back into a blurred image, and it should rise soon. The score is the area under the curve.
"""

from collections.abc import Callable

import jax
import numpy as np
from PIL import Image, ImageFilter

from toast_jax.data.images.pixels import MEAN

_GREY = np.round(255 * np.array(MEAN)).astype(np.uint8)  # zero after normalisation
_BLUR = 5 / 224  # deviation of the blur, as a share of the side


def order(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rank of each cell of a map `[g, g]`, 0 for the highest; equal ones in random order, as are all of a uniform map."""
    flat = values.ravel()
    by_height = np.lexsort((rng.random(flat.size), -flat))
    ranks = np.empty(flat.size, int)
    ranks[by_height] = np.arange(flat.size)
    return ranks.reshape(values.shape)


def removed(ranks: np.ndarray, steps: int) -> np.ndarray:
    """Cells `[steps + 1, g, g]` that are taken after each step, as equal in number as can be: none at first, all at the end."""
    counts = np.round(np.arange(steps + 1) / steps * ranks.size)
    return ranks < counts[:, None, None]


def area(curve: np.ndarray) -> np.ndarray:
    """Under curves `[..., steps + 1]` over steps of equal length from 0 to 1, by trapezoids."""
    return (curve[..., 1:] + curve[..., :-1]).mean(axis=-1) / 2


def blurred(image: np.ndarray) -> np.ndarray:
    """An image uint8 `[S, S, 3]` without its details."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(_BLUR * image.shape[0])))


def deletion(image: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The image with cells `[K, g, g]` made grey: uint8 `[K, S, S, 3]`."""
    return np.where(_on_pixels(taken, image), _GREY, image)


def insertion(image: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The blurred image with cells `[K, g, g]` of the sharp one: uint8 `[K, S, S, 3]`."""
    return np.where(_on_pixels(taken, image), image, blurred(image))


def _on_pixels(taken, image):
    cell = image.shape[0] // taken.shape[1]
    return taken.repeat(cell, axis=1).repeat(cell, axis=2)[..., None]


def areas(
    probabilities: Callable, image: np.ndarray, values: np.ndarray, *, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """Area under the curves of deletion (low is good) and insertion (high is good) of one image and map: `[2]`.

    Args:
      probabilities: from uint8 `[steps + 1, S, S, 3]` to `[steps + 1, C]`; the class is that of the whole image.
      image: uint8 `[S, S, 3]`.
      values: the map `[g, g]`, S a multiple of g.
      steps: of removal; more than cells make no difference.
      rng: of the order of equal cells.
    """
    taken = removed(order(values, rng), steps)
    falling, rising = (jax.device_get(probabilities(one(image, taken))) for one in (deletion, insertion))
    named = falling[0].argmax()
    return area(np.stack([falling[:, named], rising[:, named]]))
