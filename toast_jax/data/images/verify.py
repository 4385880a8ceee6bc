"""Decode every image once before training, so that damaged files are reported before the first step."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from toast_jax.data.images import pixels
from toast_jax.data.images.image_files import TRAIN
from toast_jax.data.images.sources import Source
from toast_jax.errors import InputError, listed

log = logging.getLogger(__name__)

_AT_ONCE = 4096  # images submitted to the threads, which need about a kilobyte for each
_INTERVAL = 60.0  # seconds between log lines of the progress
_LISTED = 3  # corrupt images that an error names; all of them are logged


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


class _Checked(NamedTuple):
    """Describes an example: whether its image decodes, and a hash of its file, None where it is not a file."""

    name: str
    label: int
    readable: bool
    content: bytes | None


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
    return verify_splits({TRAIN: source}, skip_corrupt=skip_corrupt)[TRAIN]


def verify_splits(splits: Mapping[str, Source], *, skip_corrupt: bool) -> dict[str, Source]:
    """Verify splits as `verify` does, and log evaluation images that are training images too, byte for byte.

    All splits are decoded before an error is raised, so that it counts the faults of all of them.
    """
    checks = {name: _checks(source) for name, source in splits.items()}
    total = sum(map(len, checks.values()))
    outside = [
        (f"{check.name} has {check.label}", len(source.classes))
        for name, source in splits.items()
        for check in checks[name]
        if not 0 <= check.label < len(source.classes)
    ]
    if outside:
        first, classes = outside[0]
        raise InputError(
            f"{len(outside)} of {total} images have a label outside the {classes} classes ({first}): "
            "choose a split with labels in --config.data.splits."
        )
    if corrupt := [check.name for split in checks.values() for check in split if not check.readable]:
        if len(corrupt) > _LISTED:
            log.warning("Images that cannot be decoded:\n%s", "\n".join(corrupt))
        summary = f"{len(corrupt)} of {total} images cannot be decoded ({listed(corrupt, most=_LISTED)})"
        if not skip_corrupt:
            raise InputError(f"{summary}: download them again, or leave them out with --config.data.skip_corrupt=True.")
        for name, source in splits.items():
            lost = {check.label for check in checks[name]} - {check.label for check in checks[name] if check.readable}
            if lost:
                raise InputError(f"{summary} and class {source.classes[min(lost)]} has no other image: download them again.")
        log.warning("%s and are left out.", summary)
    _log_shared(checks)
    return {name: _readable(source, checks[name]) for name, source in splits.items()}


def _log_shared(checks: Mapping[str, Sequence[_Checked]]) -> None:
    """Log readable evaluation images with the content of a training image."""
    training = {check.content: check.name for check in checks.get(TRAIN, ()) if check.content and check.readable}
    for name in [name for name in checks if name != TRAIN]:
        readable = [check for check in checks[name] if check.readable]
        shared = [f"{check.name} is {training[check.content]}" for check in readable if check.content in training]
        if shared:
            log.warning(
                "%d of the %d images of %s are training images too (%s): scores on them say little about new images.",
                len(shared),
                len(checks[name]),
                name,
                listed(shared, most=1),
            )


def _readable(source: Source, checks: Sequence[_Checked]) -> Source:
    if all(check.readable for check in checks):
        return source
    return Subset(source, tuple(index for index, check in enumerate(checks) if check.readable))


def _checks(source: Source) -> list[_Checked]:
    """Decode every image of a source once, in threads."""
    log.info("Decoding %d images once to verify them.", len(source))
    checks: list[_Checked] = []
    logged = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(source), _AT_ONCE):
            indices = range(start, min(start + _AT_ONCE, len(source)))
            checks += pool.map(functools.partial(_check_image, source), indices)
            if time.monotonic() - logged > _INTERVAL:
                log.info("%d of %d images are verified.", len(checks), len(source))
                logged = time.monotonic()
    return checks


def _check_image(source: Source, index: int) -> _Checked:
    example = source[index]
    content = example["image"]
    digest = hashlib.blake2b(content, digest_size=8).digest() if isinstance(content, bytes) else None
    try:
        pixels.decode_example(example)
    except InputError:
        return _Checked(example["name"], example["label"], False, digest)
    return _Checked(example["name"], example["label"], True, digest)
