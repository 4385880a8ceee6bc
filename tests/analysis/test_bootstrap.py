"""Bootstrap intervals of means and of paired differences, by hand."""

import numpy as np
import pytest

from toast_jax.analysis import bootstrap


def test_interval_by_hand_and_of_its_seed():
    """Two values: the mean of two draws is 0, 1/2 or 1 with chances 1/4, 1/2 and 1/4."""
    assert bootstrap.interval([0, 1], seed=0) == (0.0, 1.0)
    assert bootstrap.interval([0, 1], seed=0, level=0.4) == (0.5, 0.5)
    assert bootstrap.interval([3.0] * 5, seed=1) == (3.0, 3.0)
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap.interval(values, seed=0)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert bootstrap.interval(values, seed=0) == (low, high) != bootstrap.interval(values, seed=1)


def test_paired_difference_cancels_what_the_images_share():
    hard = np.random.default_rng(0).normal(size=50)
    before, after = {"a": hard, "b": np.zeros(50, bool)}, {"a": hard + 0.25, "b": np.ones(50, bool)}
    differences = bootstrap.difference(after, before)
    low, high = bootstrap.interval(after["a"], seed=0)
    assert high - low > 0.3
    assert bootstrap.summary(differences, seed=0) == {
        "a": {"mean": pytest.approx(0.25), "interval": pytest.approx((0.25, 0.25))},
        "b": {"mean": 1.0, "interval": (1.0, 1.0)},
    }


def test_scores_of_a_summary_share_the_resamples_of_an_interval():
    rng = np.random.default_rng(0)
    scores = {"a": rng.normal(size=300), "b": rng.random(300) < 0.5}  # more draws than are made at once
    told = bootstrap.summary(scores, seed=3)
    for name, values in scores.items():
        assert told[name]["mean"] == pytest.approx(values.mean())
        assert told[name]["interval"] == pytest.approx(bootstrap.interval(values, seed=3))
    assert bootstrap.summary({}, seed=3) == {}
