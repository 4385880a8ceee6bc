"""Background exchange: does a prediction follow the object, or the background that its class usually has?

The object of each image is pasted, at its place, on the background of an image of another class, whose own object was painted
over (Xiao et al., arXiv 2006.09994, where these images are "mixed-rand"). Pasting leaves edges; the control has the same edges
and a background of the same class ("mixed-same").
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from toast_jax.analysis.perturbation import GREY
from toast_jax.errors import InputError

_MARGIN = 1 / 50  # of the side: how far around its mask an object is painted over, as its edge is blurred


def check_sizes(images: np.ndarray | Sequence[np.ndarray], masks: np.ndarray | Sequence[np.ndarray]) -> None:
    """Raise InputError unless every image `[H, W, 3]` has a mask `[H, W]`."""
    if len(images) != len(masks):
        raise InputError(f"There are {len(images)} images and {len(masks)} masks: pass one mask for each image.")
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if np.shape(image)[:2] != np.shape(mask):
            (height, width), (rows, columns) = np.shape(image)[:2], np.shape(mask)
            raise InputError(
                f"The mask of image {i} is {columns} x {rows}, the image {width} x {height}: resize the mask to its image."
            )


def donors(labels: np.ndarray, seed: int, same: bool = False) -> np.ndarray:
    """Choose the image whose background each image gets: indices `[n]`.

    They are a permutation. If one class has more than half of the images, none without a class of its own exists, and the
    backgrounds are drawn with replacement.

    Args:
      labels: classes `[n]`.
      seed: of the choice.
      same: choose another image of the same class; an image alone in its class keeps its background.

    Raises:
      InputError: all images have the same class, and `same` is False.
    """
    rng = np.random.default_rng(seed)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    count, largest = len(classes), counts.max(initial=0)
    if not same and len(counts) < 2:
        raise InputError("All images have the same class, so no background is another's: pass images of two classes or more.")
    # Classes stand in random order, and the images of a class side by side in random order.
    order = np.lexsort((rng.random(count), rng.permutation(len(counts))[classes]))
    chosen = np.empty(count, int)
    if same:
        for label in range(len(counts)):
            members = order[classes[order] == label]
            chosen[members] = np.roll(members, 1)
    elif 2 * largest <= count:  # a shift this long leaves every class
        chosen[order] = np.roll(order, rng.integers(largest, count - largest, endpoint=True))
    else:
        for i, label in enumerate(classes):
            chosen[i] = rng.choice(np.flatnonzero(classes != label))
    return chosen


def without_object(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Paint over the object of an image uint8 `[H, W, 3]`: each pixel takes the color of the nearest background pixel.

    An image without a background becomes gray.
    """
    hidden = ndimage.binary_dilation(mask, iterations=max(1, round(_MARGIN * max(mask.shape))))
    if hidden.all():
        return np.broadcast_to(GREY, image.shape).copy()
    rows, columns = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return image[rows, columns]


def exchange(
    images: np.ndarray, masks: np.ndarray, labels: np.ndarray, seed: int, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Paste the object of each image on the background of another one.

    Args:
      images: uint8 `[n, S, S, 3]`.
      masks: bool `[n, S, S]`, the objects or their boxes.
      labels, seed, same: see `donors`.

    Returns:
      images uint8 `[n, S, S, 3]`, and the indices `[n]` of the images that their backgrounds are from.

    Raises:
      InputError: a mask is not as large as its image, or all images have the same class.
    """
    check_sizes(images, masks)
    chosen = donors(labels, seed, same)
    exchanged = [
        np.where(mask[..., None], image, without_object(images[k], masks[k]))
        for image, mask, k in zip(images, masks, chosen, strict=True)
    ]
    return np.stack(exchanged), chosen
