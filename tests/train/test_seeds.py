"""What a seed decides: parameters, order and views of images, and drop-path are streams of their own."""

import shutil

import jax
import numpy as np
import optax
import pytest

from configs import demo
from tests.conftest import tiny_config
from toast_jax import trees
from toast_jax.devices import parallel
from toast_jax.errors import InputError
from toast_jax.train import image_runs, loop, setup
from toast_jax.train.setup import load_network
from toast_jax.train.step import draw, init_state
from toast_jax.workdir import fingerprint


def streams(image_folder, **changes):
    """Parameters, the first batch of images, and the keys of the first step's examples."""
    config = tiny_config(image_folder, "linear")
    config.update_from_flattened_dict(changes)
    config.backbone.size, config.data.verify = "Mini", False  # a size that is there before a test begins
    source, _ = image_runs.open_sources(config, verified=True)
    network = load_network(config, 3)
    loader = image_runs.train_batches(config, source, 0)
    batch = next(loader)
    loader.close()
    state = init_state({}, optax.identity(), config.seed)
    one_device = jax.vmap(lambda label: draw(state, {"label": label}, lambda batch, rng: batch)[1], axis_name=parallel.AXIS)
    keys = jax.random.key_data(one_device(batch["label"][None]))
    return trees.flat(trees.merge(network.tuned, network.frozen)), batch, np.asarray(keys)


@pytest.fixture(scope="module")
def plain(image_folder):
    return streams(image_folder)


@pytest.mark.parametrize("change", [{"backbone.drop_path": 0.5}, {"augment.flip": False}, {"prompts.dropout": 0.5, "ema": 0.5}])
def test_what_draws_more_or_less_changes_no_other_stream(change, plain, image_folder):
    params, batch, keys = streams(image_folder, **change)
    jax.tree.map(np.testing.assert_array_equal, params, plain[0])
    np.testing.assert_array_equal(batch["index"], plain[1]["index"])
    np.testing.assert_array_equal(keys, plain[2])
    same = (batch["image"] == plain[1]["image"]).all()
    assert same != ("augment.flip" in change)


def test_another_seed_changes_every_stream(plain, image_folder):
    params, batch, keys = streams(image_folder, seed=43)
    assert (params["head/kernel"] != plain[0]["head/kernel"]).any()
    assert (params["backbone/pos_embed"] != plain[0]["backbone/pos_embed"]).any()
    assert (batch["index"] != plain[1]["index"]).any() and (keys != plain[2]).all()


def test_no_key_is_used_twice(plain):
    _, _, keys = plain
    created = [jax.random.key(42), *jax.random.split(jax.random.key(42))]  # parameters, and of those the deltas of LoRA
    stepped = jax.random.wrap_key_data(init_state({}, optax.identity(), 42).rng)
    every = [*keys.reshape(-1, 2), *(jax.random.key_data(key) for key in (*created, stepped))]
    assert len({tuple(np.asarray(key).tolist()) for key in every}) == len(every) == 8 + 4


# Accuracy and loss with jax 0.10.2 on a CPU; a change of any step, view, draw or update moves them by more than is let through.
GOLDEN = {"linear": (0.51333, 2.05674), "toast": (0.69333, 0.99768)}


@pytest.mark.slow
@pytest.mark.parametrize("row", GOLDEN)
def test_a_row_of_the_demo_comes_to_the_numbers_it_came_to(row, tmp_path):
    config = demo.get_config().runs[row]
    config.seed, config.epochs, config.warmup_epochs, config.eval_every, config.checkpoint_every = 42, 2, 1, 2, 2
    config.data.splits.update({"train": "train[:320]", "val": "", "test": "test[:300]"})
    test = loop.fit(config, tmp_path)["test"]
    accuracy, loss = GOLDEN[row]
    assert test["accuracy"] == pytest.approx(accuracy, abs=2.5 / 300) and test["loss"] == pytest.approx(loss, rel=2e-3), test


def test_few_shots_are_drawn_by_the_seed_of_each_run(image_folder, tmp_path):
    config = tiny_config(image_folder, "linear")
    config.data.shots, config.data.verify = 4, False
    first, _ = setup.prepare(config, tmp_path / "first")
    assert (len(first.train), len(first.evals["test"]), first.steps_per_epoch) == (12, 9, 1)
    second, _ = setup.reseed(first, 43, tmp_path / "second")
    config.seed = 43
    alone, _ = setup.prepare(config, tmp_path / "alone")
    assert first.train.indices != second.train.indices == alone.train.indices
    assert fingerprint.of_source(first.train) != fingerprint.of_source(second.train)


def test_corrupt_images_do_not_cost_a_class_its_shots(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    for broken in sorted((tmp_path / "data/train/kite").iterdir())[:5]:
        broken.write_bytes(b"")
    config = tiny_config(tmp_path / "data", "linear")
    config.data.shots, config.data.skip_corrupt = 3, True
    source, _ = image_runs.open_sources(config, verified=False)
    assert [source[i]["label"] for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    config.data.shots = 4
    with pytest.raises(InputError, match="Class kite has 3 training images, fewer than config.data.shots .4."):
        image_runs.open_sources(config, verified=False)


def class_folders(image_folder, root, broken=()):
    """Class folders without splits, of 8 images a class."""
    shutil.copytree(image_folder / "train", root)
    for path in broken:
        (root / path).write_bytes(b"")
    config = tiny_config(root, "linear")
    config.data.update({"held_out": 0.5, "skip_corrupt": bool(broken), "verify": False})
    config.data.splits.test = ""
    return config


def readable(config, seed):
    """How many training images a seed leaves."""
    config.seed = seed
    return len(image_runs.open_sources(config, verified=True)[0])


@pytest.mark.parametrize(("broken", "shots"), [(["kite/3.jpg", "kite/4.jpg"], 0), ([], 3), (["kite/3.jpg"], 3)])
def test_a_run_that_holds_out_images_and_leaves_some_out_goes_on(broken, shots, image_folder, tmp_path):
    config = class_folders(image_folder, tmp_path / "data", broken)
    config.data.shots, config.eval_every = shots, 2
    folder = tmp_path / "run"
    before = loop.fit(config, folder)
    shutil.rmtree(folder / "checkpoints/2")
    (folder / "result.json").unlink()
    (tmp_path / "data/owl/new.jpg").write_bytes((tmp_path / "data/owl/0.jpg").read_bytes())  # is in neither part
    assert loop.fit(config, folder)["val"] == before["val"]


def test_seeds_that_hold_out_other_numbers_of_corrupt_images_train_for_their_own_steps(image_folder, tmp_path):
    config = class_folders(image_folder, tmp_path / "data", [f"kite/{i}.jpg" for i in range(3)])
    config.data.held_out, config.eval_every = 0.25, 2
    sizes = {seed: readable(config, seed) for seed in (2, 5)}
    assert sorted(sizes.values()) == [15, 16]  # one and two steps in an epoch
    for seeds in ((2, 5), (5, 2)):
        folders = {seed: tmp_path / f"{seeds}/{seed}" for seed in seeds}
        for (seed, folder), result in zip(folders.items(), loop.fit_seeds(config, folders), strict=True):
            steps = sizes[seed] // config.batch_size * config.epochs
            assert result["steps"] == steps and (folder / f"checkpoints/{steps}").exists()
            assert result["val"]["count"] == 24 - 3 - sizes[seed]
