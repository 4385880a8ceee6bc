"""Does a network look elsewhere, or is it only more accurate? Every measure of one network on annotated images.

`measure` computes scores per image, so that two looks, or two networks, can be compared image by image.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from toast_jax.analysis import background, bootstrap, comparison, localization, maps
from toast_jax.analysis.localization import Thresholds
from toast_jax.errors import InputError
from toast_jax.model.steered import apply
from toast_jax.train.saved_run import SavedRun

Scores = dict[str, np.ndarray]

ACCURACY, OTHER, SAME = "accuracy", "background of another class", "background of the same class"
DROP, GAP, FOLLOWED = "drop", "gap", "named after the background"


@dataclasses.dataclass(frozen=True)
class Annotated:
    """Images with the masks of their objects.

    Attributes:
      images: uint8 `[n, S, S, 3]`.
      masks: bool `[n, S, S]`, none of them empty: the objects or their boxes.
      labels: int `[n]`; -1 if unknown.

    Raises:
      InputError: a mask is empty or not as large as its image.
    """

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        background.check_sizes(self.images, self.masks)
        if len(empty := np.flatnonzero([not np.any(mask) for mask in self.masks])):
            raise InputError(f"The mask of image {empty[0]} is empty: leave out images without an object.")

    @property
    def exchangeable(self) -> bool:
        """Whether the images have at least two classes."""
        return len(np.unique(self.labels)) > 1 and min(self.labels) >= 0


@dataclasses.dataclass(frozen=True)
class Measured:
    """Predictions, maps and scores of one network.

    Attributes:
      predicted: the class of each image, `[n]`.
      seen: maps `[n, g, g]` by name: those of `maps.MEASURED` that the network has.
      scores: of each map, those of `localization.scores`: `[n]` by map and score.
      thresholds: those of the scores, by map.
      exchange: `[n]` by name; empty for images of fewer than two classes. Whether the prediction is right for each image as it
        is (`ACCURACY`), on the background of another class (`OTHER`) and on another background of its class (`SAME`); `DROP`,
        the first minus the second, and `GAP`, the third minus the second; and whether the prediction on the background of
        another class is that class (`FOLLOWED`).
    """

    predicted: np.ndarray
    seen: dict[str, np.ndarray]
    scores: dict[str, Scores]
    thresholds: dict[str, Thresholds]
    exchange: Scores

    @property
    def refocused(self) -> dict[str, Scores]:
        """Scores of the last look minus those of the first, by kind of map (`maps.PAIRS`); empty if the network looks once."""
        pairs = {kind: pair for kind, pair in maps.PAIRS.items() if pair[0] in self.scores}
        return {kind: bootstrap.difference(self.scores[last], self.scores[first]) for kind, (first, last) in pairs.items()}

    def summary(self, seed: int = 0) -> dict[str, dict]:
        """Summarize each score as its mean and 95 % bootstrap interval over images.

        Returns:
          `maps` and `refocused`, by map and score, and `exchange`, by score: `{"mean": float, "interval": (low, high)}`.
        """
        by_map = {name: bootstrap.summary(scores, seed) for name, scores in self.scores.items()}
        refocused = {kind: bootstrap.summary(scores, seed) for kind, scores in self.refocused.items()}
        return {"maps": by_map, "refocused": refocused, "exchange": bootstrap.summary(self.exchange, seed)}


def measure(
    run: SavedRun,
    test: Annotated,
    val: Annotated | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    shares: Sequence[float] = (),
) -> Measured:
    """Measure where a network looks, in each of its looks, and how much its accuracy depends on backgrounds.

    Args:
      run: the network, such as `saved_run.load` returns it.
      test: the images to measure.
      val: the images to choose thresholds on, for each map; None chooses them on `test`, which flatters the scores.
      seed: of the choice of backgrounds.
      batch_size: images per step.
      shares: see `localization.iou_of_highest`.
    """
    logits, seen = looks(run, test, batch_size)
    predicted = logits.argmax(axis=-1)
    scores, thresholds = scored(seen, test.masks, looks(run, val, batch_size)[1] if val else seen, val or test, shares)
    return Measured(predicted, seen, scores, thresholds, _exchanged(run, test, predicted, seed, batch_size))


def scored(
    seen: Mapping[str, np.ndarray],
    masks: np.ndarray,
    seen_on_val: Mapping[str, np.ndarray],
    val: Annotated,
    shares: Sequence[float] = (),
) -> tuple[dict[str, Scores], dict[str, Thresholds]]:
    """Score maps `[n, g, g]` with the thresholds that are best for the same maps of `val`; return both, by map."""
    thresholds = {name: localization.best_thresholds(values, val.masks) for name, values in seen_on_val.items()}
    scores = {name: localization.scores(values, masks, thresholds[name], shares) for name, values in seen.items()}
    return scores, thresholds


def looks(run: SavedRun, annotated: Annotated, batch_size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run `maps.look_to_measure` on all images: logits `[n, C]`, and maps `[n, g, g]` by name, in the order of `MEASURED`."""
    logits, by_name = comparison.in_batches(run, maps.look_to_measure, batch_size, annotated.images, annotated.labels)
    return logits, {name: by_name[name] for name in maps.MEASURED if name in by_name}


def _exchanged(run, test, predicted, seed, batch_size) -> Scores:
    if not test.exchangeable:
        return {}

    def predict(same):
        exchanged, donors = background.exchange(test.images, test.masks, test.labels, seed, same)
        return comparison.in_batches(run, apply, batch_size, exchanged).argmax(axis=-1), test.labels[donors]

    (on_other, followed), (on_same, _) = predict(same=False), predict(same=True)
    right, right_on_other, right_on_same = (classes == test.labels for classes in (predicted, on_other, on_same))
    return {
        ACCURACY: right,
        OTHER: right_on_other,
        DROP: np.subtract(right, right_on_other, dtype=float),
        SAME: right_on_same,
        GAP: np.subtract(right_on_same, right_on_other, dtype=float),
        FOLLOWED: on_other == followed,
    }
