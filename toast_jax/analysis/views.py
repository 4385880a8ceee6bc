"""Load images as a tuned run sees them, and report files that cannot be decoded."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from toast_jax.data.images import batches, chosen, pixels
from toast_jax.data.images.sources import Source
from toast_jax.data.images.verify import Subset
from toast_jax.errors import InputError
from toast_jax.train.saved_run import SavedRun


@dataclasses.dataclass(frozen=True)
class Views:
    """Resizes and crops the images of a source as for evaluation; an image that cannot be decoded becomes a black one.

    Attributes:
      resize, size: of `pixels.eval_view`.
      faults: filled while images are read: what is wrong with each broken one, by its index.
      change: applied to each view uint8 `[size, size, 3]` and its index, if given.
    """

    source: Source
    resize: int
    size: int
    faults: dict[int, str]
    change: Callable[[np.ndarray, int], np.ndarray] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self.source[index]
            image = pixels.decode(example["image"], example["name"])
            view = pixels.eval_view(image, resize=self.resize, size=self.size)
            return {**example, "image": self.change(view, index) if self.change else view}
        except InputError as error:
            self.faults[index] = str(error).rpartition(": ")[0]  # without its remedy, which may be a field of training
            return {"image": np.zeros((self.size, self.size, 3), np.uint8), "label": 0, "name": ""}


def choose(run: SavedRun, images: str, most: int) -> Source:
    """Opens `images` (see `chosen.open_images`), at most `most` of them at even distances; all if `most` is 0."""
    source, _ = chosen.open_images(run.config.data, images)
    return Subset(source, chosen.spread(len(source), most or len(source)))


def of_run(
    run: SavedRun,
    source: Source,
    batch_size: int,
    *,
    faults: dict[int, str] | None = None,
    change: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> Iterator[batches.Batch]:
    """Loads every image once, in the batches of `batches.eval_batches`, as the run was evaluated.

    Args:
      faults: filled with the faults of images that cannot be decoded, by index; their rows have mask 0. None raises instead.
      change: see `Views`.

    Raises:
      InputError: while iterating, an image cannot be decoded.
    """
    size, noted = run.config.data.image_size, {} if faults is None else faults
    views = Views(source, run.config.data.resize, size, noted, change)
    for batch in batches.eval_batches(views, batch_size=batch_size, resize=size, size=size):
        if noted and faults is None:
            raise InputError(f"{next(iter(noted.values()))}: download it again, or remove it.")
        batch["mask"] = np.where(np.isin(batch["index"], list(noted)), 0, batch["mask"])
        yield batch


def all_of_run(run: SavedRun, source: Source, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Loads all images of a source at once: uint8 `[B, S, S, 3]`, and labels `[B]`."""
    loaded = list(of_run(run, source, batch_size))
    real = np.concatenate([batch["mask"] for batch in loaded]) > 0
    return tuple(np.concatenate([batch[key] for batch in loaded])[real] for key in ("image", "label"))
