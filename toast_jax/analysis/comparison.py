"""What several networks make of the same images, side by side in a page."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from toast_jax.analysis import drawing, maps, report
from toast_jax.data.images import batches
from toast_jax.data.images.sources import Source
from toast_jax.train.saved_run import SavedRun


@dataclasses.dataclass(frozen=True)
class Looked:
    """What one network made of B images.

    Attributes:
      named: its class of each image.
      confidence: the probability of it, `[B]`.
      maps: `[B, g, g]` by name, see `maps.look`.
      parts: of `maps.look_closely`, or None.
    """

    named: tuple[str, ...]
    confidence: np.ndarray
    maps: dict[str, np.ndarray]
    parts: maps.Parts | None = None

    @property
    def difference(self) -> np.ndarray | None:
        """Attention of the last look less that of the first, or None without the two."""
        return self.maps[maps.LAST] - self.maps[maps.FIRST] if maps.FIRST in self.maps else None


def views(source: Source, run: SavedRun, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All images of a source as a run sees them, uint8 `[B, S, S, 3]`, and their labels."""
    data = run.config.data
    parts = list(batches.eval_batches(source, batch_size=batch_size, resize=data.resize, size=data.image_size))
    real = np.concatenate([one["mask"] for one in parts]) > 0
    return tuple(np.concatenate([one[key] for one in parts])[real] for key in ("image", "label"))


def look_closely(run: SavedRun, images: np.ndarray, batch_size: int) -> Looked:
    """Lets a run look at images (see `maps.look_closely`)."""
    look = jax.jit(functools.partial(maps.look_closely, run.model, run.method))
    found = [jax.device_get(look(run.params, batch)) for batch in padded(images, batch_size)]
    probabilities, by_name, parts = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(images)], *found)
    named = probabilities.argmax(axis=-1)
    return Looked(tuple(run.classes[one] for one in named), probabilities.max(axis=-1), by_name, parts)


def padded(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Batches of one size, so that one program is compiled; the last one is filled up with zeros."""
    for start in range(0, len(values), size):
        batch = values[start : start + size]
        yield np.pad(batch, ((0, size - len(batch)), *[(0, 0)] * (values.ndim - 1)))


def verdict(named: str, truth: str) -> str:
    """`named`, and whether it is right; nothing is right or wrong where the truth is not known ("")."""
    return f"{named} {'right' if named == truth else 'wrong'}" if truth else named


def grid(
    images: np.ndarray, captions: Sequence[str], truths: Sequence[str], looked: dict[str, Looked], shown: Sequence[str]
) -> str:
    """A table of pictures: a line for each image; the maps `shown` of each network, and what it names below the last of them.

    The first look stands once, before the networks, if it is the same in all that look twice; else it is shown for each.
    """
    firsts = {name: one.maps[maps.FIRST] for name, one in looked.items() if maps.FIRST in one.maps}
    first = next(iter(firsts.values()), None)
    common = maps.FIRST in shown and bool(firsts) and all(_same(one, first) for one in firsts.values())
    wanted = {name: [one for one in shown if one in found.maps] for name, found in looked.items()}
    if common:
        wanted = {name: [one for one in names if one != maps.FIRST] for name, names in wanted.items()}
    columns = {f"{name.replace('_', ' ')}: {one}": (name, one) for name, names in wanted.items() for one in names}
    lines = []
    for i, image in enumerate(images):
        line = [report.picture(image, captions[i])]
        if common:
            line.append(report.picture(drawing.overlay(image, first[i]), alt=maps.FIRST))
        for name, one in columns.values():
            told = verdict(looked[name].named[i], truths[i])
            below = told if one == wanted[name][-1] else ""
            line.append(
                report.picture(drawing.overlay(image, looked[name].maps[one][i]), below, f"{one} of {name}, names {told}")
            )
        lines.append(line)
    return report.pictures(["image", *([maps.FIRST] if common else []), *columns], lines)


def differences(images: np.ndarray, captions: Sequence[str], looked: dict[str, Looked]) -> str:
    """A table of pictures: by how much the attention of the last look differs from that of the first."""
    twice = {name: one.difference for name, one in looked.items() if one.difference is not None}
    lines = []
    for i, image in enumerate(images):
        drawn = {name: report.picture(_of_difference(image, one[i]), alt=name) for name, one in twice.items()}
        lines.append([report.picture(image, captions[i]), *drawn.values()])
    return report.pictures(["image", *(name.replace("_", " ") for name in twice)], lines) if twice else ""


def _of_difference(image, values):
    return drawing.overlay(image, values, strength=0.75, colours=drawing.coloured_difference)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-6)


def picture_of(image: np.ndarray, title: str, looked: Looked, i: int) -> np.ndarray:
    """All that a network made of image i, with titles: its maps, the attention of each head, the norm of what is fed back."""
    rows, parts = [row_of(image, looked, i)], looked.parts
    rows += _rows(image, [(f"{maps.FIRST}, head {k + 1}", one[i]) for k, one in enumerate(parts.first_heads)])
    rows += _rows(image, [(f"{maps.LAST}, head {k + 1}", one[i]) for k, one in enumerate(parts.last_heads)])
    where = "block" if parts.last_heads else "stage"
    norms = [(f"norm fed back, {where} {k + 1}, mean {one[i].mean():.2g}", one[i]) for k, one in enumerate(parts.top_down)]
    return drawing.titled(drawing.stacked(rows + _rows(image, norms)), title, lines=1)


def row_of(image: np.ndarray, looked: Looked, i: int, title: str = "image") -> np.ndarray:
    """The image and its maps in a row, each with its name."""
    panels = [drawing.titled(image, title)]
    panels += [drawing.titled(drawing.overlay(image, looked.maps[one][i]), one) for one in maps.ALL if one in looked.maps]
    if looked.difference is not None:
        panels.append(drawing.titled(_of_difference(image, looked.difference[i]), "last look less first"))
    return drawing.side_by_side(panels)


_PANELS = 6  # in a row


def _rows(image: np.ndarray, named: list[tuple[str, np.ndarray]]) -> list[np.ndarray]:
    panels = [drawing.titled(drawing.overlay(image, values), title) for title, values in named]
    return [drawing.side_by_side(panels[i : i + _PANELS]) for i in range(0, len(panels), _PANELS)]
