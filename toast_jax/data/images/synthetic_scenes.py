"""Scenes for the demo: colored handwritten digits among scrambled ones, with the labels of three tasks.

A scene has 4 x 4 cells of 16 pixels, six of which hold an object: a digit or a scrambled digit, whose quarters are rotated and
permuted. Scenes of the task `generic` have one digit, whose class is the label. The tasks `brightest` and `green` share their
scenes, with four digits of different colors: one is brighter than the others and one is green, and in a quarter of the scenes
the green digit is the brightest. All tasks have the same classes, each a color and a digit, and `background`, for patches
without a digit, which labels no scene.

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

_CELLS, _DIGIT = 4, 16  # digits of 16 x 16 pixels stand in 4 x 4 cells
_OBJECTS = 6
SIDE = _CELLS * _DIGIT  # pixels
TASKS = ("generic", "brightest", "green")
SPLITS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # fractions of the digits

_HUES = {"red": 0.0, "orange": 0.09, "yellow": 0.17, "green": 0.33, "blue": 0.55, "purple": 0.72, "pink": 0.87}
_GREEN = list(_HUES).index("green")
CLASSES = (*(f"{color} {digit}" for digit in range(10) for color in _HUES), "background")
# Orders of the quarters of a scrambled glyph.
_ORDERS = ((1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2), (1, 0, 3, 2), (3, 2, 1, 0), (2, 0, 3, 1))


@dataclasses.dataclass(frozen=True)
class Scene:
    """A rendered scene of n digits: one (`generic`) or four.

    Attributes:
        image: uint8 [SIDE, SIDE, 3].
        classes: int [n], of its digits, in `CLASSES`.
        masks: bool [n, SIDE, SIDE], the strokes of each digit.
        boxes: bool [n, SIDE, SIDE], the cell of each digit.
        asked: by task, the index of the digit whose class is the label.
    """

    image: np.ndarray
    classes: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    asked: dict[str, int]

    def label(self, task: str) -> int:
        """Return the label of the scene in a task."""
        return int(self.classes[self.asked[task]])


@dataclasses.dataclass(frozen=True)
class Scenes:
    """A source (see `sources.Source`) of the first `count` scenes of a split, with the labels of one task."""

    split: str
    count: int
    task: str
    classes: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = _record(self.task, self.split, index)
        return {"image": image, "label": label, "name": f"{self.split}[{index}]"}


# Composing a scene takes longer than a step of a small network, so scenes are cached (12 kB each).
@functools.lru_cache(maxsize=25_000)
def _record(task: str, split: str, index: int) -> tuple[bytes, int]:
    made = scene(task, split, index)
    file = io.BytesIO()
    Image.fromarray(made.image).save(file, "PNG", compress_level=0)
    return file.getvalue(), made.label(task)


def read(data: ConfigDict, split: str) -> Scenes:
    """Open the scenes of a split such as `train[:500]`, with the labels of the task `data.name`."""
    if not data.labels:
        raise InputError("Scenes have labels; set --config.data.labels=True, and --config.task_weight=0 to do without.")
    if data.name not in TASKS:
        raise InputError(f"config.data.name is {data.name!r}; scenes have the tasks {', '.join(TASKS)}.")
    return Scenes(*part(split, data.splits[split]), data.name)


def part(split: str, value: str) -> tuple[str, int]:
    """Parse the value of `config.data.splits.SPLIT`, such as `train[:500]`: which of `SPLITS`, and how many scenes."""
    match = re.fullmatch(r"(\w+)\[:([1-9]\d*)\]", value)
    if not match or match[1] not in SPLITS:
        raise InputError(f"config.data.splits.{split} is {value!r}; write how many scenes, as in {split}[:500].")
    return match[1], int(match[2])


def scene(task: str, split: str, index: int) -> Scene:
    """Compose scene `index` of a task and split, deterministically."""
    generic = task == "generic"
    rng = np.random.default_rng((tuple(SPLITS).index(split), 0 if generic else 1, index))
    glyphs, classes = _digits(split)
    canvas = rng.normal(0.12, 0.04, (SIDE, SIDE, 3))
    if generic:
        digits, asked = 1, {"generic": 0}
        hues = rng.integers(len(_HUES), size=_OBJECTS)
    else:
        digits, asked = 4, {"brightest": 0, "green": int(rng.integers(4))}
        others = rng.permutation(np.delete(np.arange(len(_HUES)), _GREEN))[: digits - 1]
        hues = [*np.insert(others, asked["green"], _GREEN), *rng.integers(len(_HUES), size=_OBJECTS - digits)]
    brightest = 1.0
    chosen, masks = [], np.zeros((_OBJECTS, SIDE, SIDE), bool)
    boxes = np.zeros_like(masks)
    for i, cell in enumerate(rng.permutation(_CELLS**2)[:_OBJECTS]):
        if generic:
            value = rng.uniform(0.45, 1.0)
        elif i == 0:
            value = brightest = rng.uniform(0.8, 1.0)
        else:
            value = brightest * rng.uniform(0.45, 0.75)
        drawn = rng.integers(len(glyphs))
        glyph = glyphs[drawn] if i < digits else _scrambled(glyphs[drawn], rng)
        top, left = np.array(divmod(cell, _CELLS)) * _DIGIT
        window = np.s_[top : top + _DIGIT, left : left + _DIGIT]
        color = np.array(colorsys.hsv_to_rgb(list(_HUES.values())[hues[i]], 0.75, value))
        canvas[window] = canvas[window] * (1 - glyph[..., None]) + glyph[..., None] * color
        masks[i][window], boxes[i][window] = glyph > 0.3, True
        chosen.append(classes[drawn] * len(_HUES) + hues[i])
    pixels = (np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return Scene(pixels, np.array(chosen[:digits]), masks[:digits], boxes[:digits], asked)


@functools.cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the glyphs of a split, float [n, 16, 16] from 0 to 1, and the digit of each, int [n]."""
    data = of_extra("sklearn.datasets", "demo", "Drawing the scenes of digits").load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    first, last = (round(share * len(order)) for share in SPLITS[split])
    chosen = order[first:last]
    images = np.round(data.images[chosen] * 255 / 16).astype(np.uint8)
    enlarged = [np.asarray(Image.fromarray(image).resize((_DIGIT, _DIGIT), Image.Resampling.BICUBIC)) for image in images]
    return np.stack(enlarged) / 255, data.target[chosen]


def _scrambled(glyph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate and permute the quarters of a glyph."""
    half = _DIGIT // 2
    quarters = [
        np.rot90(glyph[top : top + half, left : left + half], int(rng.integers(4))) for top in (0, half) for left in (0, half)
    ]
    a, b, c, d = (quarters[i] for i in _ORDERS[rng.integers(len(_ORDERS))])
    return np.block([[a, b], [c, d]])
