"""Compare networks on the same images: load their runs, and show their maps side by side."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from toast_jax.analysis import drawing, maps, report
from toast_jax.analysis.maps import Parts
from toast_jax.config.task_fields import OF_SAVED
from toast_jax.data.images import image_files, selected, sources
from toast_jax.data.images.labels import held_out
from toast_jax.errors import InputError, renaming
from toast_jax.fields import flat_fields, nested
from toast_jax.train import saved_run
from toast_jax.train.saved_run import SavedRun
from toast_jax.workdir.progress import log_to_file


@dataclasses.dataclass(frozen=True)
class Looked:
    """One network's predictions and maps for B images.

    Attributes:
      named: the predicted class of each image.
      confidence: its probability, `[B]`.
      maps: `[B, g, g]` by name, see `maps.look`.
      parts: details of `maps.look_closely`, empty without it.
    """

    named: tuple[str, ...]
    confidence: np.ndarray
    maps: dict[str, np.ndarray]
    parts: Parts = Parts([], [], [])

    def only(self, i: int) -> "Looked":
        """Return predictions and maps of image i alone, without the details."""
        of_image = {name: values[i : i + 1] for name, values in self.maps.items()}
        return Looked(self.named[i : i + 1], self.confidence[i : i + 1], of_image)

    @property
    def difference(self) -> np.ndarray | None:
        """Attention in the last look minus the first; None if the network looks once."""
        return self.maps[maps.LAST] - self.maps[maps.FIRST] if maps.FIRST in self.maps else None


def open_runs(config: ConfigDict, folder: Path, log: logging.Logger, masks: bool = False) -> dict[str, SavedRun]:
    """Load `config.runs` as `saved_run.load_compared`, with data that has moved where `config.data` says.

    The dozen lines that each network logs go to `log.txt` alone.

    Raises:
      InputError: as of `saved_run.load_compared`; or `config.images` is a split that the data of the first run does not have,
        or one that it held out and another run has trained on.
    """
    with log_to_file(folder / "log.txt", but=log), renaming(OF_SAVED):
        runs = saved_run.load_compared(config.runs, config.weights, config.top_down, config.module, masks)
    moved = {name: place for name, place in flat_fields(config.data.to_dict()).items() if place}
    data = next(iter(runs.values())).config.data
    data.update(nested(moved))
    if config.images in selected.SPLITS and config.images not in (splits := sources.split_names(data)):
        raise InputError(
            f"The data of {config.runs[0]} has no {config.images} split, only {' and '.join(splits)}: write "
            f"--config.images={splits[-1]}, or give another split in --config.data.splits.{config.images}."
        )
    if config.images in (image_files.TRAIN, held_out.VAL) and data.get("held_out", 0):
        drawn = [(run.config.data.get("held_out", 0), run.config.seed) for run in runs.values()]
        if other := next((folder for folder, one in zip(config.runs, drawn, strict=True) if one != drawn[0]), None):
            raise InputError(
                f"The runs in {config.runs[0]} and {other} differ in seed or config.data.held_out, so one has trained on "
                "images that the other held out: give --config.images= images that both have not seen, or measure each alone."
            )
    return runs


def look_closely(run: SavedRun, images: np.ndarray, batch_size: int) -> Looked:
    """Run `maps.look_closely` on images uint8 `[B, S, S, 3]`, in batches of one size."""
    probabilities, by_name, parts = in_batches(run, maps.look_closely, batch_size, images)
    labels = probabilities.argmax(axis=-1)
    return Looked(tuple(run.classes[label] for label in labels), probabilities.max(axis=-1), by_name, parts)


def in_batches(run: SavedRun, function: Callable, batch_size: int, *arrays: np.ndarray) -> Any:
    """Apply `function(model, method, params, *arrays)` of a run to batches of arrays `[n, ...]`, and join its results.

    The function must return arrays with the images as their first axis, in any structure.
    """
    compiled = run.compiled(function)
    batches = zip(*(padded(values, batch_size) for values in arrays), strict=True)
    results = [jax.device_get(compiled(run.params, *batch)) for batch in batches]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(arrays[0])], *results)


def padded(values: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield batches of one size, so that one program is compiled; zeros fill up the last."""
    for start in range(0, len(values), size):
        batch = values[start : start + size]
        yield np.pad(batch, ((0, size - len(batch)), *[(0, 0)] * (values.ndim - 1)))


def verdict(named: str, truth: str) -> str:
    """Append right or wrong to the predicted class, unless the truth is unknown ("")."""
    return f"{named} {'right' if named == truth else 'wrong'}" if truth else named


def grid(
    images: list[np.ndarray], captions: Sequence[str], truths: Sequence[str], looked: dict[str, Looked], shown: Sequence[str]
) -> str:
    """Render a table of pictures: per image a row with the maps `shown` of each network, and its prediction below the last.

    The first look stands once, before the networks, if all networks that look twice share it; otherwise each shows its own.
    """
    firsts = [look.maps[maps.FIRST] for look in looked.values() if maps.FIRST in look.maps]
    shared = maps.FIRST in shown and bool(firsts) and all(_same(other, firsts[0]) for other in firsts)
    own = [name for name in shown if not (shared and name == maps.FIRST)]
    names = {network: [name for name in own if name in look.maps] for network, look in looked.items()}
    columns = {f"{network.replace('_', ' ')}: {name}": (network, name) for network in looked for name in names[network]}
    rows = []
    for i, image in enumerate(images):
        row = [report.picture(image, captions[i])]
        if shared:
            row.append(report.picture(drawing.overlay(image, firsts[0][i]), alt=maps.FIRST))
        for network, name in columns.values():
            prediction = verdict(looked[network].named[i], truths[i])
            below = prediction if name == names[network][-1] else ""
            drawn = drawing.overlay(image, looked[network].maps[name][i])
            row.append(report.picture(drawn, below, f"{name} of {network}, predicts {prediction}"))
        rows.append(row)
    return report.pictures(["image", *([maps.FIRST] if shared else []), *columns], rows)


def differences(images: list[np.ndarray], captions: Sequence[str], looked: dict[str, Looked]) -> str:
    """Render a table of pictures: last look minus first; "" if no network looks twice."""
    by_network = {network: look.difference for network, look in looked.items() if look.difference is not None}
    rows = []
    for i, image in enumerate(images):
        drawn = [report.picture(_of_difference(image, values[i]), alt=network) for network, values in by_network.items()]
        rows.append([report.picture(image, captions[i]), *drawn])
    return report.pictures(["image", *(network.replace("_", " ") for network in by_network)], rows) if by_network else ""


def _of_difference(image, values):
    return drawing.overlay(image, values, strength=0.75, colours=drawing.coloured_difference)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-6)


def picture_of(image: np.ndarray, title: str, looked: Looked, i: int) -> np.ndarray:
    """Draw everything about image i, with titles: maps, attention by head, norms of the top-down input."""
    rows, parts = [row_of(image, looked, i)], looked.parts
    for name, heads in ((maps.FIRST, parts.first_heads), (maps.LAST, parts.last_heads)):
        rows += _rows(image, [(f"{name}, head {k}", values[i]) for k, values in enumerate(heads, start=1)])
    where = "block" if parts.last_heads else "stage"
    numbered = enumerate(parts.top_down, parts.unsteered + 1)
    norms = [(f"norm fed back, {where} {k}, mean {norm[i].mean():.2g}", norm[i]) for k, norm in numbered]
    return drawing.titled(drawing.stacked(rows + _rows(image, norms)), title, lines=1)


def row_of(image: np.ndarray, looked: Looked, i: int, title: str = "image") -> np.ndarray:
    """Draw the image and its maps in a row, each with its name above."""
    panels = [drawing.titled(image, title)]
    panels += [drawing.titled(drawing.overlay(image, looked.maps[name][i]), name) for name in maps.ALL if name in looked.maps]
    if looked.difference is not None:
        panels.append(drawing.titled(_of_difference(image, looked.difference[i]), "last look minus first"))
    return drawing.side_by_side(panels)


_PANELS = 6  # in a row


def _rows(image: np.ndarray, titled_maps: Sequence[tuple[str, ArrayLike]]) -> list[np.ndarray]:
    panels = [drawing.titled(drawing.overlay(image, np.asarray(values)), title) for title, values in titled_maps]
    return [drawing.side_by_side(panels[i : i + _PANELS]) for i in range(0, len(panels), _PANELS)]
