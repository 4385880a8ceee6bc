"""Images as a tuned run sees them, in batches, and what happens to files that cannot be decoded."""

import dataclasses
from collections.abc import Iterator
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
    """

    source: Source
    resize: int
    size: int
    faults: dict[int, str]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self.source[index]
            image = pixels.decode(example["image"], example["name"])
            return {**example, "image": pixels.eval_view(image, resize=self.resize, size=self.size)}
        except InputError as error:
            self.faults[index] = str(error).rpartition(": ")[0]  # without its remedy, which may be a field of training
            return {"image": np.zeros((self.size, self.size, 3), np.uint8), "label": 0, "name": ""}


def choose(run: SavedRun, images: str, most: int) -> Source:
    """Opens `images` (see `chosen.open_images`), at most `most` of them at even distances; all if `most` is 0."""
    source, _ = chosen.open_images(run.config.data, images)
    return Subset(source, chosen.spread(len(source), most or len(source)))


def of_run(run: SavedRun, source: Source, batch_size: int, faults: dict[int, str] | None = None) -> Iterator[batches.Batch]:
    """Loads every image once, in order, resized and cropped as the run was evaluated; see `loaded`."""
    data = run.config.data
    return loaded(source, batch_size=batch_size, resize=data.resize, size=data.image_size, faults=faults)


def all_of_run(run: SavedRun, source: Source, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Loads all images of a source as a run sees them, uint8 `[B, S, S, 3]`, and their labels `[B]`."""
    loads = list(of_run(run, source, batch_size))
    real = np.concatenate([batch["mask"] for batch in loads]) > 0
    return tuple(np.concatenate([batch[key] for batch in loads])[real] for key in ("image", "label"))


def loaded(
    source: Source, *, batch_size: int, resize: int, size: int, faults: dict[int, str] | None = None
) -> Iterator[batches.Batch]:
    """Loads every image once, in the batches of `batches.eval_batches`.

    Args:
      faults: filled with the faults of images that cannot be decoded, by index; their rows have mask 0. None raises instead.

    Raises:
      InputError: while iterating, an image cannot be decoded.
    """
    noted = {} if faults is None else faults
    views = Views(source, resize, size, noted)
    for batch in batches.eval_batches(views, batch_size=batch_size, resize=size, size=size):
        if noted and faults is None:
            raise InputError(f"{next(iter(noted.values()))}: download it again, or remove it.")
        batch["mask"] = np.where(np.isin(batch["index"], list(noted)), 0, batch["mask"])
        yield batch
