"""Load images as a tuned run sees them, and report files that cannot be decoded."""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from toast_jax.data.images import batches, image_files, pixels, selected, sources
from toast_jax.data.images.sources import Source
from toast_jax.data.images.verify import Subset
from toast_jax.errors import InputError, fault_of
from toast_jax.train.saved_run import SavedRun

_AHEAD = 3  # batches that `stream` loads at once


@dataclasses.dataclass(frozen=True)
class Views:
    """Shows the images of a source as a run on some data sees them at evaluation.

    Attributes:
      data: of the config of the run, see `sources.new_view`.
      change: applied to each view uint8 `[size, size, 3]` and its index, if set.
      faults: filled with the fault of each image that cannot be decoded, by index; its view is black.
    """

    source: Source
    data: ConfigDict
    change: Callable[[np.ndarray, int], np.ndarray] | None = None
    faults: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self.source[index]
            view = sources.new_view(self.data, pixels.decode_example(example))
        except InputError as error:
            self.faults[index] = fault_of(error)
            return {"image": np.zeros((self.data.image_size, self.data.image_size, 3), np.uint8), "label": 0, "name": ""}
        return {**example, "image": self.change(view, index) if self.change else view}


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A batch of `stream`.

    Attributes:
      image: views uint8 `[batch_size, size, size, 3]`; black where there is none.
      paths: of the images, or names of the examples, by row; those that could not be read are missing.
      faults: of these, what was wrong.
    """

    image: np.ndarray
    paths: dict[int, str]
    faults: tuple[str, ...]


def stream(run: SavedRun, images: Iterable[str | dict[str, Any]], batch_size: int) -> Iterator[Streamed]:
    """Load images, by path or as examples of a `Source`, upright and in order; memory does not grow with their number."""
    size = run.config.data.image_size

    def load(image: str | dict[str, Any]) -> tuple[np.ndarray | None, str]:
        try:
            example = image if isinstance(image, dict) else _upright(image)
            return sources.new_view(run.config.data, pixels.decode_example(example)), ""
        except InputError as error:
            return None, fault_of(error)

    remaining = iter(images)
    loading: collections.deque[list[tuple[str, concurrent.futures.Future]]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        while True:
            while len(loading) < _AHEAD and (some := list(itertools.islice(remaining, batch_size))):
                named = ((image["name"] if isinstance(image, dict) else image, image) for image in some)
                loading.append([(name, pool.submit(load, image)) for name, image in named])
            if not loading:
                return
            image, read, faults = np.zeros((batch_size, size, size, 3), np.uint8), {}, []
            for row, (name, future) in enumerate(loading.popleft()):
                view, fault = future.result()
                if view is None:
                    faults.append(fault)
                else:
                    image[row], read[row] = view, name
            yield Streamed(image, read, tuple(faults))
    finally:
        pool.shutdown(cancel_futures=True)


def _upright(path: str) -> dict[str, Any]:
    image_files.require_text(path)
    return image_files.UprightFiles((path,), (0,), (image_files.UNLABELLED,))[0]


def choose(run: SavedRun, images: str, most: int) -> Source:
    """Open `images` (see `selected.open_images`), at most `most` of them at even distances; all if `most` is 0."""
    source, _ = selected.open_images(run.config.data, images, run.classes, seed=run.config.seed, run=run.folder)
    return Subset(source, selected.spread(len(source), most or len(source)))


def of_run(run: SavedRun, source: Source, batch_size: int, change=None, faults=None) -> Generator[batches.Batch]:
    """Load every image once, in the batches of `batches.eval_batches`; `change` and `faults` are those of `Views`.

    Raises:
      InputError: while iterating, an image cannot be decoded and `faults` is None.
    """
    size, noted = run.config.data.image_size, {} if faults is None else faults
    views = Views(source, run.config.data, change, noted)
    for batch in batches.eval_batches(views, batch_size=batch_size, resize=size, size=size):
        if noted and faults is None:  # not raised by `Views`: Grain would append lines to the message
            raise InputError(f"{next(iter(noted.values()))}: download it again, or remove it.")
        yield batch


def all_of_run(run: SavedRun, source: Source, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Load all images of a source at once: uint8 `[B, S, S, 3]`, and labels `[B]`."""
    loaded = list(of_run(run, source, batch_size))
    real = np.concatenate([batch["mask"] for batch in loaded]) > 0
    images, labels = (np.concatenate([batch[key] for batch in loaded])[real] for key in ("image", "label"))
    return images, labels
