"""Few-shot training splits: how many images of each class, which ones, and in what order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toast_jax.data.images import few_shot
from toast_jax.data.images.image_files import Files
from toast_jax.data.images.verify import Subset
from toast_jax.errors import InputError


def source(labels, classes=5):
    return Files(tuple(f"{i}.png" for i in range(len(labels))), tuple(labels), tuple(f"class {i}" for i in range(classes)))


def kept(labels, shots, seed=0):
    return few_shot.draw(source(labels), shots, seed).indices


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 3))
def test_each_class_has_so_many_and_more_shots_contain_fewer(labels, shots, seed):
    least = min(labels.count(label) for label in set(labels))
    if shots > least:
        with pytest.raises(InputError, match=f"has {least} training images, fewer than config.data.shots .{shots}."):
            kept(labels, shots, seed)
        return
    indices = kept(labels, shots, seed)
    assert list(indices) == sorted(set(indices))
    drawn = [labels[index] for index in indices]
    assert {label: drawn.count(label) for label in set(drawn)} == dict.fromkeys(set(labels), shots)
    assert set(indices) >= set(kept(labels, max(1, shots - 1), seed))


def test_seeds_differ_and_none_is_all():
    labels = [0, 1, 2, 3, 4] * 20
    assert len({kept(labels, 4, seed) for seed in range(5)}) == 5
    assert kept(labels, 4, 1) == kept(labels, 4, 1)
    assert few_shot.draw(whole := source(labels), 0, 0) is whole


def test_a_class_draws_independently_of_the_others():
    labels = np.repeat([0, 1, 2], 10).tolist()
    first = [index for index in kept(labels, 3) if labels[index] == 1]
    assert first == [index for index in kept(labels[:20], 3) if labels[index] == 1]


def test_the_first_shot_of_each_class_is_random_within_it():
    labels = [0] * 50 + [1] * 50
    places = [[index % 50 for index in kept(labels, 1, seed)] for seed in range(40)]
    assert 15 < np.mean(places) < 35 and np.std(places) > 8
    assert sum(a == b for a, b in places) < 8


def test_a_source_without_a_list_of_labels_and_one_without_corrupt_images():
    class Records:
        classes = ("a", "b")

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"label": index % 2, "name": str(index), "image": b""}

    drawn = few_shot.draw(Records(), 2, 0)
    assert sorted(drawn[i]["label"] for i in range(4)) == [0, 0, 1, 1]
    again = few_shot.draw(Subset(source([0, 1] * 10), tuple(range(10, 20))), 3, 0)
    assert sorted(again.source.indices[i] % 2 for i in again.indices) == [0, 0, 0, 1, 1, 1]


def test_the_class_with_the_fewest_images_is_named():
    with pytest.raises(InputError, match=r"Class class 2 has 1 training images.*set --config.data.shots=1 or fewer"):
        kept([0, 0, 0, 1, 1, 2], 3)
