"""Decode every image once before training, so that damaged files are reported before the first step."""

import concurrent.futures
import dataclasses
import functools
import logging
import os
from typing import Any

from toast_jax.data.images import pixels
from toast_jax.data.images.sources import Source
from toast_jax.errors import InputError, listed

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Subset:
    """The examples of another source at `indices`."""

    source: Source
    indices: tuple[int, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.indices[index]]


def verify(source: Source, *, skip_corrupt: bool) -> Source:
    """Decode every image of a source once.

    Args:
        source: the images to check.
        skip_corrupt: leave out images that cannot be decoded, with a warning, instead of raising.

    Returns:
        The source, without its corrupt images.

    Raises:
        InputError: a label is outside the classes, an image cannot be decoded, or a class would lose all of its images.
    """
    log.info("Decoding %d images once to verify them.", len(source))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = list(pool.map(functools.partial(_check_image, source), range(len(source))))
    outside = [f"{name} has {label}" for name, label, _ in checks if not 0 <= label < len(source.classes)]
    if outside:
        raise InputError(
            f"{len(outside)} of {len(source)} images have a label outside the {len(source.classes)} classes ({outside[0]}): "
            "choose a split with labels in --config.data.splits."
        )
    corrupt = [name for name, _, readable in checks if not readable]
    if not corrupt:
        return source
    summary = f"{len(corrupt)} of {len(source)} images cannot be decoded ({listed(corrupt, most=3)})"
    if not skip_corrupt:
        raise InputError(f"{summary}: download them again, or leave them out with --config.data.skip_corrupt=True.")
    lost = {label for _, label, _ in checks} - {label for _, label, readable in checks if readable}
    if lost:
        raise InputError(f"{summary} and class {source.classes[min(lost)]} has no other image: download them again.")
    log.warning("%s and are left out.", summary)
    return Subset(source, tuple(index for index, (_, _, readable) in enumerate(checks) if readable))


def _check_image(source: Source, index: int) -> tuple[str, int, bool]:
    example = source[index]
    try:
        pixels.decode_example(example)
    except InputError:
        return example["name"], example["label"], False
    return example["name"], example["label"], True
