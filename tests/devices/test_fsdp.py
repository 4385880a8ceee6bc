"""Devices that share what is frozen compute what devices that have all of it do; large networks fit, by their shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.backbones.test_llama import V, network, parameters, text
from toast_jax import trees
from toast_jax.config.runs import language
from toast_jax.devices import fsdp, parallel
from toast_jax.model import losses, methods, steered
from toast_jax.model.backbones import llama
from toast_jax.model.methods import LANGUAGE_METHODS
from toast_jax.model.top_down import TopDown
from toast_jax.train import optim
from toast_jax.train import text as text_run
from toast_jax.train.evaluation import mapped
from toast_jax.train.step import init_state, train_step

ROWS = 16


def batch():
    inputs, rng = text(rows=ROWS), np.random.default_rng(3)
    predicted = (rng.random(inputs["tokens"].shape) < rng.random((ROWS, 1))).astype(np.float32)
    mask = predicted.sum(axis=1)
    label = rng.integers(0, V, predicted.shape).astype(np.int32)
    return {**inputs, "label": label, "weight": predicted / np.maximum(mask, 1)[:, None], "mask": mask}


@functools.cache
def steps(size):
    """Numbers and tuned parameters of two steps and an evaluation, on eight devices of which `size` share what is frozen."""
    devices = parallel if size == 1 else fsdp.Shared(size, llama.PARTITION)
    row = LANGUAGE_METHODS["toast"]
    net = steered.Steered(network(remat=True), top_down=TopDown(3, 16))
    mask = methods.tuned_mask(parameters(), row)
    tuned, frozen = trees.split(parameters(), mask)
    tx = optim.optimizer(
        name="adamw", schedule=lambda _: 0.01, mask=mask, momentum=0.0, weight_decay=0.0, no_decay=(), clip=1.0
    )
    step = functools.partial(train_step, scores=losses.tune(net, row), tx=tx, augment=text_run.by_token)
    step = devices.replicate(step, num_replicated=2, donate=(0,))
    state, placed, seen = devices.place(init_state(tuned, tx, seed=0)), devices.spread(frozen), []
    for _ in range(2):
        state, metrics = step(state, placed, devices.shard(batch()))
        seen.append(parallel.fetch(metrics))
    sums = mapped(losses.tune(net, row), devices)(state.tuned, placed, devices.shard(batch()))
    return seen, trees.flat(parallel.fetch(trees.prune(state.tuned))), parallel.fetch(sums), placed


@pytest.mark.parametrize("size", [pytest.param(4, marks=pytest.mark.slow), 8])
def test_numbers_are_those_of_devices_that_share_nothing(size):
    (seen, tuned, sums, _), (theirs, expected, counted, _) = steps(size), steps(1)
    for ours, one in [*zip(seen, theirs, strict=True), (sums, counted)]:
        for name in one:
            np.testing.assert_allclose(ours[name], one[name], rtol=1e-5, err_msg=name)
    for path, leaf in expected.items():
        assert np.abs(leaf - trees.flat(parameters())[path]).max() > 1e-3
        np.testing.assert_allclose(tuned[path], leaf, rtol=0, atol=1e-5 * np.abs(leaf).max(), err_msg=path)


def test_what_is_frozen_is_split_and_norms_are_not():
    placed = trees.flat(steps(4)[3])
    shares = {path: leaf.size // leaf.addressable_shards[0].data.size for path, leaf in placed.items() if leaf is not None}
    assert {path for path, share in shares.items() if share == 1} == {
        *(f"backbone/{name}/scale" for name in ("norm", "blocks/norm1", "blocks/norm2")),
        "top_down/transform",
    }
    assert set(shares.values()) == {1, 4} and "backbone/embed" in shares


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gib"), [("llama1_7b", 8), ("llama1_13b", 15.5)])
def test_step_of_a_large_network_compiles_and_its_arguments_fit(name, gib):
    config = language(name="x", method="toast", backbone=name)
    config.backbone.update({"dtype": "bfloat16", "remat": True})
    net, row = steered.build(config, 0)
    shapes = jax.eval_shape(lambda: steered.init(net, row, jax.random.key(0)))
    mask, devices = methods.tuned_mask(shapes, row), fsdp.Shared(8, llama.PARTITION)
    frozen = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=devices.sharding(path)) if leaf is not None else None
        for path, leaf in trees.flat(trees.split(shapes, mask)[1]).items()
    }
    tx = optim.optimizer(
        name="adamw", schedule=lambda _: 1e-5, mask=mask, momentum=0.0, weight_decay=0.0, no_decay=(), clip=1.0
    )
    state = jax.eval_shape(lambda: init_state(trees.split(jax.tree.map(_zeros, shapes), mask)[0], tx, seed=0))
    everywhere = devices.sharding("top_down/prior")
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)
    integers, floats = (jax.ShapeDtypeStruct((1, 8, 512), dtype) for dtype in (jnp.int32, jnp.float32))
    inputs = {"tokens": integers, "segments": integers, "label": integers, "weight": floats}
    inputs["mask"] = jax.ShapeDtypeStruct((1, 8), jnp.float32)
    step = functools.partial(train_step, scores=losses.tune(net, row), tx=tx, augment=text_run.by_token)
    compiled = devices.replicate(step, num_replicated=2).lower(state, trees.nested(frozen), inputs).compile()
    used = compiled.memory_analysis().argument_size_in_bytes
    count = {part: trees.count(tree) for part, tree in zip(("tuned", "frozen"), trees.split(shapes, mask), strict=True)}
    # In bfloat16, split; in float32 with Adam's two moments, whole.
    assert used == pytest.approx(2 * count["frozen"] / 8 + 12 * count["tuned"], rel=0.01)
    assert used < gib * 2**30


def _zeros(leaf):
    return jnp.zeros(leaf.shape, leaf.dtype)
