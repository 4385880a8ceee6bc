"""A few training images of each class, drawn by seed."""

import collections

import numpy as np

from toast_jax.data.images.sources import Source
from toast_jax.data.images.verify import Subset
from toast_jax.errors import InputError


def draw(source: Source, shots: int, seed: int) -> Source:
    """Keep `shots` random images of each class, in the order of the source.

    Draws are nested: the images of four shots contain those of one shot with the same seed. Each class is drawn independently,
    so leaving one out does not change the images of the others.

    Args:
        source: the training images.
        shots: how many images to keep of each class; 0 keeps all.
        seed: of the draw.

    Raises:
        InputError: a class has fewer images.
    """
    if not shots:
        return source
    positions = collections.defaultdict(list)
    for index, label in enumerate(_labels(source)):
        positions[label].append(index)
    few = {label: len(members) for label, members in positions.items() if len(members) < shots}
    if few:
        label = min(few, key=few.__getitem__)
        raise InputError(
            f"Class {source.classes[label]} has {few[label]} training images, fewer than config.data.shots ({shots}): set "
            f"--config.data.shots={few[label]} or fewer."
        )
    kept = [
        member
        for label, members in positions.items()
        for member in np.random.default_rng((seed, label)).permutation(members)[:shots].tolist()
    ]
    return Subset(source, tuple(sorted(kept)))


def _labels(source):
    """Return the label of every example, without reading images if the source lists its labels."""
    if isinstance(source, Subset):
        labels = _labels(source.source)
        return [labels[index] for index in source.indices]
    labels = getattr(source, "labels", None)
    return [source[index]["label"] for index in range(len(source))] if labels is None else labels
