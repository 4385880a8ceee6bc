"""The train step: what moves, what stays, and that the number of devices does not matter."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import ROOT
from tests.conftest import METHODS, SOME_SLOW, tiny_config
from toast_jax import trees
from toast_jax.data.images import batches
from toast_jax.devices import parallel
from toast_jax.model import losses, methods, steered
from toast_jax.model.layers.batch_norm import without_statistics
from toast_jax.train import optim, setup
from toast_jax.train.step import init_state, train_step

EVERY = (*METHODS, "pretune")
# Of toast_lite: signal, deltas, drop-path, mixing and moving average in one program; on one and eight devices.
QUICK = ("pretune",)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    return steps_of("vit_ti8", tmp_path_factory.mktemp("steps"), QUICK, counts=(1, 8))


@pytest.fixture(scope="module")
def other_steps(tmp_path_factory):
    return steps_of("vit_ti8", tmp_path_factory.mktemp("steps"), EVERY)


def steps_of(backbone, folder, names, counts=(1, 2, 8)):
    """What two steps of some methods, or of pre-tuning, give on 1, 2 and 8 devices."""
    results = {}
    for devices in counts:
        flags = f"--xla_force_host_platform_device_count={devices}"
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for compile time
        path = folder / f"{devices}.npz"
        subprocess.run([sys.executable, "tests/steps_on_devices.py", path, backbone, *names], check=True, cwd=ROOT, env=env)
        with np.load(path) as file:
            results[devices] = {key: file[key] for key in file.files}
        assert results[devices].pop("devices") == devices
    return results


@pytest.mark.parametrize("method", QUICK)
def test_number_of_devices_does_not_matter(steps, method):
    assert_same_steps(steps, method, 8)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("method", EVERY)
def test_number_of_devices_does_not_matter_to_other_methods(other_steps, method, devices):
    assert_same_steps(other_steps, method, devices)


@pytest.mark.slow
def test_number_of_devices_does_not_matter_to_a_convnext(tmp_path):
    names = [name for name in EVERY if name != "vpt"]
    steps = steps_of("convnext_t", tmp_path, names)
    for method in names:
        assert_same_steps(steps, method, 2)
        assert_same_steps(steps, method, 8)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("backbone", "convolves"), [("vit_ti8", False), ("convnext_t", True)])
def test_a_step_can_be_lowered_for_accelerators(platform, backbone, convolves):
    """As far as a machine without one can tell; a ConvNeXt has another depthwise convolution there."""
    config = tiny_config("", "toast", backbone)
    config.backbone.dtype = "bfloat16"
    network, method = steered.build(config, num_classes=3)
    params = jax.eval_shape(lambda: steered.init(network, method, jax.random.key(0)))
    mask = methods.tuned_mask(params, method)
    tx = optim.optimizer(
        name="adamw", schedule=lambda _: 0.5, mask=mask, momentum=0.9, weight_decay=0.01, no_decay=(), clip=1.0
    )
    tuned, frozen = trees.split(params, mask)
    state = jax.eval_shape(lambda: init_state(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tuned), tx, seed=0))
    side, devices = config.data.image_size, jax.device_count()
    image = jax.ShapeDtypeStruct((devices, 2, side, side, 3), np.uint8)
    batch = {"image": image, "label": jax.ShapeDtypeStruct((devices, 2), np.int32)}
    step = parallel.replicate(functools.partial(train_step, scores=losses.tune(network, method), tx=tx), num_replicated=2)
    program = jax.jit(step).trace(state, frozen, batch).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.all_reduce" in program
    assert ("stablehlo.convolution" in program) == convolves


def assert_same_steps(steps, method, devices):
    names = [name for name in steps[1] if name.startswith(f"{method}/")]
    assert len(names) > 4
    for name in names:
        one, many = steps[1][name], steps[devices][name]
        assert np.abs(one - many).max() <= 1e-5 * max(np.abs(one).max(), 1e-3), name


@pytest.mark.parametrize("method", QUICK)
def test_every_tuned_leaf_moves(steps, method):
    assert_all_move(steps, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY)
def test_every_tuned_leaf_of_other_methods_moves(other_steps, method):
    assert_all_move(other_steps, method)


def assert_all_move(steps, method):
    moved = {name: value for name, value in steps[1].items() if name.startswith(f"moved/{method}/")}
    assert moved and all(moved.values()), moved


@pytest.mark.parametrize("method", SOME_SLOW)
def test_state_holds_the_tuned_leaves_alone(method, image_folder, tmp_path):
    run, state = setup.prepare(tiny_config(image_folder, method), tmp_path)
    tuned = {path for path, leaf in trees.flat(state.tuned).items() if leaf is not None}
    assert tuned == {path for path, leaf in trees.flat(run.frozen).items() if leaf is None}
    assert trees.count(without_statistics(state.tuned)) == run.tuned_parameters["all"]
    # SGD keeps one number for each tuned parameter, and none for a frozen one or a running statistic.
    assert trees.count([leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]) == run.tuned_parameters["all"]


@pytest.mark.parametrize("method", [pytest.param("bias", marks=pytest.mark.slow), "toast"])
def test_frozen_leaves_stay_bit_identical(method, image_folder, tmp_path):
    config = tiny_config(image_folder, method)
    run, state = setup.prepare(config, tmp_path)
    before = parallel.fetch(trees.prune(run.frozen))
    placed = parallel.place(state)
    loader = batches.train_batches(run.train, batch_size=8, epochs=1, seed=0, resize=18, size=16)
    for batch in parallel.sharded(loader):
        placed, _ = run.step(placed, run.frozen, batch)
    assert int(placed.step) == run.steps_per_epoch
    jax.tree.map(np.testing.assert_array_equal, parallel.fetch(trees.prune(run.frozen)), before)


def test_state_is_donated(config, tmp_path):
    run, state = setup.prepare(config, tmp_path)
    placed = parallel.place(state)
    loader = batches.train_batches(run.train, batch_size=8, epochs=1, seed=0, resize=18, size=16)
    run.step(placed, run.frozen, next(parallel.sharded(loader)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed.tuned))
