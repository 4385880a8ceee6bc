"""Batches: what is in them, and that step k is the same however it is loaded."""

import multiprocessing
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from toast_jax.data import loader
from toast_jax.data.images import batches, pixels
from toast_jax.data.images.image_files import Files
from toast_jax.errors import InputError

COUNT = 11
VIEWS = {"resize": 20, "size": 16}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eleven noise images; the label of each is its position."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = tuple(str(folder / f"{index}.png") for index in range(COUNT))
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)
    return Files(paths, tuple(range(COUNT)), tuple(map(str, range(COUNT))))


class Recorder:
    """A source that notes which examples are read."""

    def __init__(self, source):
        self.source, self.classes, self.read = source, source.classes, []

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.read.append(index)
        return self.source[index]


def train(source, **changes):
    options = {"batch_size": 4, "epochs": 3, "seed": 0, **VIEWS, **changes}
    return list(batches.train_batches(source, **options))


def evaluate(source, **changes):
    return list(batches.eval_batches(source, **{"batch_size": 4, **VIEWS, **changes}))


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def concatenate(parts):
    return [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)]


def labels(steps):
    return np.array([batch["label"] for batch in steps])


def test_a_training_batch_has_these_arrays(source):
    steps = train(source)
    assert len(steps) == 3 * loader.steps_per_epoch(source, 4) == 6
    for batch in steps:
        assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
            "image": (np.uint8, (4, 16, 16, 3)),
            "label": (np.int32, (4,)),
            "mask": (np.float32, (4,)),
            "index": (np.int32, (4,)),
            "view": (np.int32, (4,)),
        }
        assert (batch["mask"] == 1).all()
        assert [source[i]["label"] for i in batch["index"]] == list(batch["label"])


def test_the_image_of_a_training_example_belongs_to_its_label(source):
    batch = train(source, epochs=1, resize=16)[0]
    for view, label in zip(batch["image"], batch["label"], strict=True):
        image = pixels.decode(source[label]["image"], "")
        resized = np.asarray(Image.fromarray(image).resize((20, 16), Image.Resampling.BILINEAR))
        crops = [resized[:, left : left + 16] for left in range(5)]
        assert any((view == crop).all() or (view == crop[:, ::-1]).all() for crop in crops)


def test_every_epoch_has_each_example_at_most_once_in_a_new_order(source):
    epochs = labels(train(source)).reshape(3, 8)
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # The incomplete batch that is dropped is not always made of the same images.
    assert len({frozenset(epoch) for epoch in epochs}) > 1


def test_an_example_is_augmented_differently_in_each_epoch(source):
    epochs = train(source, batch_size=COUNT)
    first, second, third = (batch["image"][np.argsort(batch["label"])] for batch in epochs)
    for earlier, later in [(first, second), (second, third)]:
        assert sum((a != b).any() for a, b in zip(earlier, later, strict=True)) > COUNT // 2


def test_the_seed_decides_order_and_augmentation(source):
    assert_same(train(source, seed=3), train(source, seed=3))
    assert (labels(train(source, seed=3)) != labels(train(source, seed=4))).any()
    one_image = Files(source.paths[:1] * COUNT, source.labels, source.classes)
    left, right = (np.array([batch["image"] for batch in train(one_image, seed=seed)]) for seed in (3, 4))
    assert (left != right).any()
    # Neighbouring seeds are not the same run an epoch apart.
    assert (labels(train(source, seed=3))[2:4] != labels(train(source, seed=4))[:2]).any()


@pytest.mark.parametrize("start_step", [1, 2, 5, 6])
def test_resuming_gives_the_batches_that_were_left(source, start_step):
    assert_same(train(source, start_step=start_step), train(source)[start_step:])


def test_resuming_does_not_read_what_is_behind(source):
    recorder = Recorder(source)
    steps = train(recorder, start_step=4)
    assert sorted(recorder.read) == sorted(labels(steps).ravel())


@pytest.mark.parametrize("threads", [1, 5])
def test_the_number_of_threads_changes_nothing(source, monkeypatch, threads):
    expected = train(source)
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    assert_same(train(source), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_share_the_rows_of_one_global_batch(source, count):
    shards = [train(source, start_step=1, shard=(index, count)) for index in range(count)]
    assert all(batch["label"].shape == (4 // count,) for shard in shards for batch in shard)
    assert_same(concatenate(shards), train(source, start_step=1))


def test_a_host_reads_its_own_rows_only(source):
    recorder = Recorder(source)
    steps = train(recorder, shard=(1, 2))
    assert sorted(recorder.read) == sorted(labels(steps).ravel())


def test_worker_processes_change_nothing_and_end_when_closed(source):
    assert_same(train(source, workers=2, start_step=1, shard=(1, 2)), train(source, start_step=1, shard=(1, 2)))
    assert_same(evaluate(source, workers=1), evaluate(source))
    unfinished = batches.train_batches(source, batch_size=4, epochs=50, seed=0, workers=1, **VIEWS)
    next(unfinished)
    assert multiprocessing.active_children()
    unfinished.close()
    assert not multiprocessing.active_children()


def test_threads_end_when_closed_early(source):
    unfinished = batches.train_batches(source, batch_size=4, epochs=50, seed=0, **VIEWS)
    next(unfinished)
    assert loading_threads()
    unfinished.close()
    assert_threads_end()


def loading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def assert_threads_end():
    deadline = time.monotonic() + 5
    while loading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loading_threads()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_an_input_error_with_its_path_and_ends_the_loading(source, tmp_path, workers):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"nothing")
    broken = Files((*source.paths[:3], str(bad)), source.labels[:4], source.classes)
    with pytest.raises(InputError, match=f"{bad} cannot be decoded"):
        train(broken, workers=workers)
    assert_threads_end()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_evaluation_has_every_example_once_in_order(source, batch_size):
    steps = evaluate(source, batch_size=batch_size)
    assert len(steps) == -(-COUNT // batch_size)
    index, label, mask = (np.concatenate([batch[key] for batch in steps]) for key in ("index", "label", "mask"))
    padding = len(steps) * batch_size - COUNT
    np.testing.assert_array_equal(index, [*range(COUNT), *[-1] * padding])
    np.testing.assert_array_equal(label, [*range(COUNT), *[0] * padding])
    np.testing.assert_array_equal(mask, [1] * COUNT + [0] * padding)


def test_an_evaluation_batch_holds_the_central_crops(source):
    last = evaluate(source)[-1]
    assert {key: (value.dtype, value.shape) for key, value in last.items()} == {
        "image": (np.uint8, (4, 16, 16, 3)),
        "label": (np.int32, (4,)),
        "mask": (np.float32, (4,)),
        "index": (np.int32, (4,)),
    }
    for row, index in enumerate([8, 9, 10]):
        expected = pixels.eval_view(pixels.decode(source[index]["image"], ""), **VIEWS)
        np.testing.assert_array_equal(last["image"][row], expected)
    assert not last["image"][3].any()


@pytest.mark.parametrize("count", [2, 4, 8])
def test_hosts_evaluate_the_rows_of_one_global_batch(source, count):
    shards = [evaluate(source, batch_size=8, shard=(index, count)) for index in range(count)]
    assert_same(concatenate(shards), evaluate(source, batch_size=8))


def test_evaluation_on_a_single_image(source):
    single = Files(source.paths[:1], source.labels[:1], source.classes)
    shards = [evaluate(single, shard=(index, 2)) for index in range(2)]
    assert [[batch["index"].tolist() for batch in shard] for shard in shards] == [[[0, -1]], [[-1, -1]]]


UNEVEN = ({"shard": (0, 3)}, "batch of 4 cannot be shared by 3 hosts: set --config.batch_size to a multiple of 3")
NO_ROOM = ({"resize": 15}, "crop of 16 pixels does not fit in images resized to 15: set --config.data.resize=16")
TOO_FEW = ({"batch_size": 12}, "11 examples, fewer than one batch of 12: set --config.batch_size=11 or less")


@pytest.mark.parametrize(("changes", "message"), [UNEVEN, NO_ROOM, TOO_FEW])
def test_an_impossible_request_is_an_input_error_before_any_batch(source, changes, message):
    options = {"batch_size": 4, "epochs": 1, "seed": 0, **VIEWS, **changes}
    with pytest.raises(InputError, match=message):
        batches.train_batches(source, **options)


@pytest.mark.parametrize(("changes", "message"), [UNEVEN, NO_ROOM])
def test_an_impossible_evaluation_is_an_input_error_before_any_batch(source, changes, message):
    with pytest.raises(InputError, match=message):
        batches.eval_batches(source, **{"batch_size": 4, **VIEWS, **changes})


@pytest.mark.parametrize("changes", [{"min_crop_area": 0.3}, {"flip": False}, {"randaugment_ops": 2}])
def test_every_augmentation_changes_the_images_and_nothing_else(source, changes):
    plain, augmented = train(source), train(source, **changes)
    assert any((a["image"] != b["image"]).any() for a, b in zip(plain, augmented, strict=True))
    assert all(
        (a["label"] == b["label"]).all() and a["image"].shape == b["image"].shape for a, b in zip(plain, augmented, strict=True)
    )
    assert_same(augmented, train(source, **changes))


def test_magnitude_of_randaugment_matters(source):
    weak, strong = (train(source, randaugment_ops=2, randaugment_magnitude=magnitude) for magnitude in (1.0, 9.0))
    assert any((a["image"] != b["image"]).any() for a, b in zip(weak, strong, strict=True))


def test_without_flips_every_view_is_a_window_of_the_image(source):
    views = np.concatenate([batch["image"] for batch in train(source, flip=False, epochs=6)])
    labels = np.concatenate([batch["label"] for batch in train(source, flip=False, epochs=6)])
    for view, label in zip(views, labels, strict=True):
        image = np.asarray(Image.open(source.paths[label]))
        resized = np.asarray(
            Image.fromarray(image).resize((int(VIEWS["resize"] * 30 / 24), VIEWS["resize"]), Image.Resampling.BILINEAR)
        )
        windows = np.lib.stride_tricks.sliding_window_view(resized, (VIEWS["size"], VIEWS["size"]), axis=(0, 1))
        assert (windows == view.transpose(2, 0, 1)).all(axis=(2, 3, 4)).any()


def test_fixed_views_are_taken_in_turn(source):
    shown = train(source, epochs=5, views=2)
    seen = {}
    for step, batch in enumerate(shown):
        assert set(batch["view"]) == {step // 2 % 2}
        for image, index, view in zip(batch["image"], batch["index"], batch["view"], strict=True):
            np.testing.assert_array_equal(image, seen.setdefault((index, view), image))
    assert any(np.any(seen[i, 0] != seen[i, 1]) for i in range(COUNT) if {(i, 0), (i, 1)} <= seen.keys())
    assert_same(train(source, epochs=5, views=2, start_step=3), shown[3:])
    assert [list(batch["index"]) for batch in shown] == [list(batch["index"]) for batch in train(source, epochs=5)]
    every = list(batches.fixed_views(source, batch_size=4, seed=0, views=2, **VIEWS))
    rows = {key: np.concatenate([batch[key] for batch in every]) for key in every[0]}
    assert len(rows["mask"]) == 24 and rows["mask"].sum() == 22
    for (index, view), image in seen.items():
        row = 2 * index + view
        assert (rows["index"][row], rows["view"][row], rows["label"][row]) == (index, view, index)
        np.testing.assert_array_equal(rows["image"][row], image)


def test_nothing_is_read_where_labels_are_given(source):
    reads = Recorder(source)
    labels = 10 + np.arange(COUNT)
    for batch, whole in zip(train(reads, views=2, labels=labels), train(source, views=2), strict=True):
        assert "image" not in batch
        np.testing.assert_array_equal(batch["label"], 10 + whole["label"])
        assert all(np.array_equal(batch[key], whole[key]) for key in ("index", "view", "mask"))
    assert not reads.read
