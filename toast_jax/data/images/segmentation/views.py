"""Training and test views of images with labels, with the steps and numbers of mmsegmentation's pipelines."""

import dataclasses

import numpy as np
from PIL import Image

from toast_jax.data.images.segmentation.bilinear import interpolation, neighbors
from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.data.images.segmentation.masks import fitted

_TRIES, _MOST = 10, 0.75  # crops until no class has more than this share of the counted pixels


@dataclasses.dataclass(frozen=True)
class TrainView:
    """The random view of an image and its labels.

    Attributes:
        scale: longer and shorter side that images fit before a random factor.
        factors: smallest and largest factor.
        crop: height and width.
        flip: whether half of the views are flipped.
        distort: whether colors are changed.
    """

    scale: tuple[int, int]
    factors: tuple[float, float]
    crop: tuple[int, int]
    flip: bool
    distort: bool

    def __call__(
        self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Resize, crop, flip and distort.

        Args:
            image, labels: uint8 [H, W, 3] and [H, W].
            rng: source of all draws.

        Returns:
            image and labels of the crop's size, and height and width of the part that is not padding; labels of padding are
            ignored.
        """
        factor = rng.uniform(*self.factors)
        shape = fitted(labels.shape, [int(side * factor) for side in self.scale])
        image, labels = resize(image, shape), resize_labels(labels, shape)
        image, labels = self._crop(image, labels, rng)
        if self.flip and rng.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if self.distort:
            image = distort(image, rng)
        height, width = labels.shape
        border = ((0, self.crop[0] - height), (0, self.crop[1] - width))
        labels = np.pad(labels, border, constant_values=IGNORED)
        return np.pad(image, (*border, (0, 0))), labels, (height, width)

    def _crop(self, image, labels, rng):
        free = [max(0, have - want) for have, want in zip(labels.shape, self.crop, strict=True)]
        for _ in range(_TRIES):
            top, left = (int(rng.integers(side + 1)) for side in free)
            part = slice(top, top + self.crop[0]), slice(left, left + self.crop[1])
            counts = np.bincount(labels[part].ravel(), minlength=IGNORED + 1)[:IGNORED]
            if np.count_nonzero(counts) > 1 and counts.max() < _MOST * counts.sum():
                break
        return image[part], labels[part]


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each half of the time.

    Brightness by up to 32 of 255, contrast (before or after the colors) and saturation by factors of 0.5 to 1.5, hue by up to
    36 degrees.
    """
    if rng.random() < 0.5:
        image = _rounded(image + rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    if contrast_first:
        image = _rounded(image * contrast)
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-36, 36) if rng.random() < 0.5 else 0.0
    if saturation != 1 or hue:
        colors = np.asarray(Image.fromarray(image).convert("HSV")).astype(np.float32)
        colors[..., 0] = (colors[..., 0] + hue * 256 / 360) % 256
        colors[..., 1] *= saturation
        changed = Image.frombytes("HSV", image.shape[1::-1], _rounded(colors).tobytes())
        image = np.asarray(changed.convert("RGB"))
    return image if contrast_first else _rounded(image * contrast)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize uint8 [H, W, 3] to height and width `shape`, bilinearly and without antialiasing, as OpenCV does."""
    for axis, length in enumerate(shape):
        before, after, share = neighbors(image.shape[axis], length)
        share = share.astype(np.float32).reshape(-1, *(1,) * (2 - axis))
        first, second = (image.take(places, axis).astype(np.float32) for places in (before, after))
        image = first + share * (second - first)
    return np.rint(image).astype(np.uint8)


def resize_labels(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize [H, W] to `shape` by the nearest pixel above and to the left, as OpenCV does."""
    rows, columns = (np.arange(new) * old // new for old, new in zip(labels.shape, shape, strict=True))
    return labels[rows[:, None], columns]


@dataclasses.dataclass(frozen=True)
class EvalView:
    """The windows of an image that a network sees in a test, and how their logits become those of the image's pixels.

    Windows start at the products of some rows and columns. The logits of a pixel are a bilinear interpolation, averaged over
    the windows that cover it; both are matrices along rows and along columns.

    Attributes:
        scale: longer and shorter side that images fit.
        window: height and width of a window; (0, 0) for the whole image.
        stride: distance of windows.
        multiple: sides of windows are padded to a multiple of it.
        cell: pixels of a window along the side of a place of the head's map.
        canvas: sides of the labels are padded to a multiple of it, so that images of many sizes share a program.
    """

    scale: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]
    multiple: int
    cell: int
    canvas: int

    def shapes(self, sides: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of an image's arrays, by which a program is compiled: windows along an axis, sides, labels."""
        return tuple((len(starts), padded, full) for starts, _, padded, full in (self._axis(sides, axis) for axis in (0, 1)))

    def __call__(self, image: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of an image uint8 [H, W, 3] and its labels uint8 [H, W].

        Returns:
            image: uint8 [rows, columns, h, w, 3], the windows, padded at bottom and right.
            size: int32 [2], height and width of a window without padding.
            label: uint8 [H', W'], padded with ignored labels.
            rows, columns: float32 [H', rows * h / cell] and [W', columns * w / cell]: the logits of pixels are
                `rows @ logits @ columns.T`, for the logits of all windows side by side.
        """
        image = resize(image, fitted(labels.shape, self.scale))
        (tops, height, padded_height, full_height), (lefts, width, padded_width, full_width) = (
            self._axis(labels.shape, axis) for axis in (0, 1)
        )
        border = ((0, padded_height - height), (0, padded_width - width), (0, 0))
        windows = [[np.pad(image[y : y + height, x : x + width], border) for x in lefts] for y in tops]
        down, along = (full_height - labels.shape[0], full_width - labels.shape[1])
        return {
            "image": np.array(windows),
            "size": np.array((height, width), np.int32),
            "label": np.pad(labels, ((0, down), (0, along)), constant_values=IGNORED),
            "rows": self._matrix(labels.shape, 0),
            "columns": self._matrix(labels.shape, 1),
        }

    def _axis(self, sides, axis) -> tuple[list[int], int, int, int]:
        """Return, along an axis, the starts of windows, their side, this side with padding, and the padded length of labels."""
        length = fitted(sides, self.scale)[axis]
        side = min(self.window[axis] or length, length)
        count = -(-max(0, length - side) // self.stride[axis]) + 1 if self.window[axis] else 1
        starts = [min(i * self.stride[axis], length - side) for i in range(count)]
        return starts, side, -(-side // self.multiple) * self.multiple, -(-sides[axis] // self.canvas) * self.canvas

    def _matrix(self, sides, axis) -> np.ndarray:
        starts, side, padded, full = self._axis(sides, axis)
        length = fitted(sides, self.scale)[axis]
        # The logits of a padded window are stretched to the window without padding, as the reference does.
        of_window = interpolation(padded // self.cell, side)
        of_input = np.zeros((length, len(starts) * of_window.shape[1]))
        for i, start in enumerate(starts):
            of_input[start : start + side, i * of_window.shape[1] : (i + 1) * of_window.shape[1]] = of_window
        places = np.arange(length)
        covering = np.sum([(places >= start) & (places < start + side) for start in starts], axis=0)
        of_input /= covering[:, None]
        matrix = interpolation(length, sides[axis]) @ of_input
        return np.pad(matrix, ((0, full - sides[axis]), (0, 0))).astype(np.float32)
