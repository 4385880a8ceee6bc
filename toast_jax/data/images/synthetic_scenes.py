"""Scenes for a demonstration without downloads: handwritten digits of several colors, and one question.

Each scene holds three digits and clutter made of pieces of others. One digit is brighter than the other two, and exactly one of
those two is green. Two tasks share the images. The labels of `salient` resemble those of photographs, which name one of several
objects: mostly the brightest digit, sometimes another. `target` asks for the green digit. A network trained on the first task
has seen every digit, and answers with the brightest.

The digits are scikit-learn's `load_digits` (1,797 handwritten digits of 8 x 8 pixels, shipped inside the package). Splits use
disjoint digits, so no stroke of a test scene occurs in training.
"""

import colorsys
import dataclasses
import functools
import io
import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from toast_jax.errors import InputError, of_extra

_CELLS, _DIGIT = 3, 16  # digits of 16 x 16 pixels stand in 3 x 3 cells
SIDE = _CELLS * _DIGIT  # pixels
TASKS = ("salient", "target")
SPLITS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # fractions of the digits

_GREEN = 0.33
_OTHER_HUES = (0.0, 0.08, 0.16, 0.5, 0.62, 0.78, 0.9)
_CLUTTER = 6
_NAMED = {"salient": 0.6, "target": 0.2, "other": 0.2}  # probability that the task `salient` names a digit


@dataclasses.dataclass(frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: uint8 [SIDE, SIDE, 3].
        digits: the classes of its digits: `salient` (the brightest), `target` (the green one) and `other`.
        masks: bool [SIDE, SIDE], the strokes of each digit.
        labels: by task.
    """

    image: np.ndarray
    digits: dict[str, int]
    masks: dict[str, np.ndarray]
    labels: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Scenes:
    """A source (see `sources.Source`) of the first `count` scenes of a split, with the labels of one task."""

    split: str
    count: int
    task: str
    classes: tuple[str, ...] = tuple("0123456789")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, labels = _record(self.split, index)
        return {"image": image, "label": labels[self.task], "name": f"{self.split}[{index}]"}


# Composing a scene takes longer than a step of a small network, so scenes are cached (7 kB each).
@functools.lru_cache(maxsize=50_000)
def _record(split: str, index: int) -> tuple[bytes, dict[str, int]]:
    made = scene(split, index)
    file = io.BytesIO()
    Image.fromarray(made.image).save(file, "PNG", compress_level=0)
    return file.getvalue(), made.labels


def read(data: ConfigDict, split: str) -> Scenes:
    """Open the scenes of a split such as `train[:500]`, with the labels of the task `data.name`."""
    if not data.labels:
        raise InputError("Scenes have labels; set --config.data.labels=True, and --config.task_weight=0 to do without.")
    if data.name not in TASKS:
        raise InputError(f"config.data.name is {data.name!r}; scenes have the tasks {' and '.join(TASKS)}.")
    match = re.fullmatch(r"(\w+)\[:([1-9]\d*)\]", data.splits[split])
    if not match or match[1] not in SPLITS:
        raise InputError(f"config.data.splits.{split} is {data.splits[split]!r}; write how many scenes, as in {split}[:500].")
    return Scenes(match[1], int(match[2]), data.name)


def scene(split: str, index: int) -> Scene:
    """Compose scene `index` of a split, deterministically."""
    rng = np.random.default_rng((tuple(SPLITS).index(split), index))
    images, classes = _digits(split)
    canvas = rng.normal(0.12, 0.04, (SIDE, SIDE, 3))
    for _ in range(_CLUTTER):
        glyph = _enlarged(images[rng.integers(len(images))], _DIGIT)
        top, left = rng.integers(0, 9, 2)
        place = rng.integers(0, SIDE - 7, 2)
        _draw(canvas, glyph[top : top + 8, left : left + 8], place, _color(rng.choice(_OTHER_HUES), 0.6, 0.35))
    hues = rng.permutation(_OTHER_HUES)
    brightest = rng.uniform(0.65, 1.0)
    dim = brightest * rng.uniform(0.55, 0.8, 2)
    wanted = {
        "salient": _color(hues[0], 0.75, brightest),
        "target": _color(_GREEN, 0.75, dim[0]),
        "other": _color(hues[1], 0.75, dim[1]),
    }
    cells = rng.permutation(_CELLS**2)
    digits, masks = {}, {}
    for (name, color), cell in zip(wanted.items(), cells, strict=False):
        chosen = rng.integers(len(images))
        place = np.array(divmod(cell, _CELLS)) * _DIGIT
        masks[name] = _draw(canvas, _enlarged(images[chosen], _DIGIT), place, color)
        digits[name] = int(classes[chosen])
    pixels = (np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    named = rng.choice(list(_NAMED), p=list(_NAMED.values()))
    return Scene(pixels, digits, masks, {"salient": digits[named], "target": digits["target"]})


@functools.cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of a split, uint8 [n, 8, 8], and their classes [n]."""
    data = of_extra("sklearn.datasets", "demo", "Drawing the scenes of digits").load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    first, last = (round(share * len(order)) for share in SPLITS[split])
    chosen = order[first:last]
    return np.round(data.images[chosen] * 255 / 16).astype(np.uint8), data.target[chosen]


def _enlarged(digit: np.ndarray, size: int) -> np.ndarray:
    """Enlarge a digit uint8 [8, 8] to floats [size, size] from 0 to 1."""
    return np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)) / 255


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _draw(canvas: np.ndarray, glyph: np.ndarray, place: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Paint a glyph onto the canvas, in place, and return the mask of its strokes."""
    (top, left), (height, width) = place, glyph.shape
    window = canvas[top : top + height, left : left + width]
    window[:] = window * (1 - glyph[..., None]) + glyph[..., None] * color
    mask = np.zeros(canvas.shape[:2], bool)
    mask[top : top + height, left : left + width] = glyph > 0.3
    return mask
