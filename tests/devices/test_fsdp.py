"""Split parameters and batches: the numbers of replicated ones, what devices exchange, and that large networks fit."""

import functools
import re

import jax
import numpy as np
import optax
import pytest

from benchmarks import fsdp as benchmark
from tests.model.backbones.llama.test_network import OF_ALL_KINDS, V, network, parameters, text
from toast_jax import trees
from toast_jax.config.run_fields import language
from toast_jax.devices import fsdp, parallel
from toast_jax.model import losses, methods, steered
from toast_jax.model.backbones.llama import network as llama
from toast_jax.model.methods import LANGUAGE_METHODS
from toast_jax.model.top_down import TopDown
from toast_jax.train import optim
from toast_jax.train import text_runs as text_run
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
def steps(size, **fields):
    """Numbers, tuned parameters and state of two steps and an evaluation, on eight devices in groups of `size`."""
    params = parameters("toast", **fields)
    devices = parallel if size == 1 else fsdp.Shared(size, llama.PARTITION)
    row = LANGUAGE_METHODS["toast"]
    net = steered.Steered(network(remat=True, **fields), top_down=TopDown(3, 16))
    mask = methods.tuned_mask(params, row)
    tuned, frozen = trees.split(params, mask)
    tx = optim.optimizer(
        name="adamw", schedule=lambda _: 0.01, mask=mask, momentum=0.0, weight_decay=0.0, no_decay=(), clip=1.0
    )
    step = functools.partial(train_step, scores=losses.tune(net, row), tx=tx, augment=text_run.by_token)
    step = devices.replicate(step, num_replicated=2, donate=(0,))
    state, placed, seen = devices.place(init_state(tuned, tx, seed=0)), devices.place(frozen), []
    for _ in range(2):
        state, metrics = step(state, placed, devices.shard(batch()))
        seen.append(parallel.fetch(metrics))
    sums = mapped(losses.tune(net, row), devices)(state.tuned, placed, devices.shard(batch()))
    return seen, trees.flat(parallel.fetch(trees.prune(state.tuned))), parallel.fetch(sums), placed, state


@pytest.mark.parametrize(
    ("size", "fields"),
    [pytest.param(4, {}, marks=pytest.mark.slow), (8, {}), pytest.param(8, OF_ALL_KINDS, marks=pytest.mark.slow)],
    ids=["4", "8", "8 of all kinds"],
)
def test_numbers_are_those_of_devices_that_share_nothing(size, fields):
    (seen, tuned, sums, *_), (theirs, expected, counted, *_) = steps(size, **fields), steps(1, **fields)
    for ours, one in [*zip(seen, theirs, strict=True), (sums, counted)]:
        for name in one:
            np.testing.assert_allclose(ours[name], one[name], rtol=1e-5, err_msg=name)
    for path, leaf in expected.items():
        assert np.abs(leaf - trees.flat(parameters("toast", **fields))[path]).max() > 1e-3
        np.testing.assert_allclose(tuned[path], leaf, rtol=0, atol=1e-5 * np.abs(leaf).max(), err_msg=path)


def test_parameters_and_moments_are_split_and_norms_are_not():
    frozen, state = steps(4)[3:]
    placed = {**trees.flat(frozen), **trees.flat(trees.prune(state.tuned))}
    shares = {path: leaf.size // leaf.addressable_shards[0].data.size for path, leaf in placed.items() if leaf is not None}
    assert {path for path, share in shares.items() if share == 1} == {
        *(f"backbone/{name}/scale" for name in ("norm", "blocks/norm1", "blocks/norm2")),
        "top_down/transform",
        "top_down/prior",
    }
    assert set(shares.values()) == {1, 4} and "backbone/embed" in shares
    (adam,) = [part for part in jax.tree.leaves(state.opt_state, is_leaf=_has_moments) if _has_moments(part)]
    for moments in (adam.mu, adam.nu):
        moments = {path: leaf for path, leaf in trees.flat(moments).items() if isinstance(leaf, jax.Array)}
        assert moments.keys() == trees.flat(trees.prune(state.tuned)).keys()
        for path, leaf in moments.items():
            assert leaf.size // leaf.addressable_shards[0].data.size == shares[path], path


def _has_moments(part):
    return isinstance(part, optax.ScaleByAdamState)


def test_biases_and_norms_of_the_kinds_are_whole_and_kernels_are_split():
    shapes = trees.flat(fsdp.Shared(8, llama.PARTITION).placed_shapes(parameters("finetune", **OF_ALL_KINDS)))
    whole = {path for path, leaf in shapes.items() if leaf.sharding.is_fully_replicated}
    vectors = [f"blocks/attn/{name}" for name in ("q/bias", "k/bias", "v/bias", "q_norm/scale", "k_norm/scale")]
    vectors += [f"{name}/scale" for name in ("norm", "blocks/norm1", "blocks/norm2")]
    assert whole == {f"backbone/{name}" for name in vectors} and len(shapes) == len(whole) + 9


@pytest.fixture
def small(monkeypatch):
    """A LLaMA whose sizes are no multiples of the rows of a batch, so that the shape of an array says what it holds."""
    size = llama.Size(width=256, depth=6, num_heads=8, num_kv_heads=8, hidden=704, vocabulary=500, context=512)
    monkeypatch.setitem(llama.SIZES, "stories260k", size)
    return functools.partial(benchmark.compiled, "stories260k", batch=24, length=20)


@pytest.mark.parametrize("method", ["toast", "finetune"])
def test_devices_exchange_weights_of_a_layer_and_never_the_whole_batch(small, method):
    counts = benchmark.collectives(small(method, size=8).as_text())
    for kind, dtype, shape in counts:
        whole_batch = 24 in shape or 24 * 20 in shape
        # The tokens themselves, 4 bytes each, look up the width of the embedding that a device holds.
        assert not whole_batch or dtype == "s32", (kind, dtype, shape)
        whole_stack = kind == "all-gather" and shape[:1] == (6,) and len(shape) == 3
        assert not whole_stack, (kind, dtype, shape)
    assert any(kind == "all-gather" and shape == (256, 704) for kind, _, shape in counts)


@pytest.mark.slow
def test_memory_of_activations_shrinks_with_more_devices(small, monkeypatch):
    """A device of eight has a quarter of the rows that a device of two has; the rest is the gathered weights of a layer."""
    temporaries = {}
    for count in (2, 8):
        devices = jax.devices()[:count]
        with monkeypatch.context() as patch:
            patch.setattr(jax, "devices", lambda devices=devices: devices)
            patch.setattr(jax, "device_count", lambda count=count: count)
            temporaries[count] = small("toast", size=count, length=300).memory_analysis().temp_size_in_bytes
    assert temporaries[8] < 0.3 * temporaries[2], temporaries


def test_logits_and_feedback_are_never_whole(small, monkeypatch):
    monkeypatch.setattr(losses, "MAX_LOGITS", 2**16)
    program = small("toast", size=8, length=300, stage="pretune")
    shapes = {tuple(map(int, sizes.split(","))) for sizes in re.findall(r"f32\[([\d,]+)\]", program.as_text())}
    assert (3, losses.MIN_TOKENS, 500) in shapes or (1, 3, losses.MIN_TOKENS, 500) in shapes  # logits of one chunk on a device
    assert not {(3, 300, 500), (1, 3, 300, 500)} & shapes
    assert not {(6, 256, 256), (1, 6, 256, 256)} & shapes  # `back` of all layers, gathered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "arguments", "temporaries"),
    [
        ("llama1_7b", "toast", 3, 24),
        ("llama1_7b", "finetune", 10, 24),
        ("llama1_13b", "toast", 5, 40),
        ("llama1_13b", "finetune", 19, 40),
    ],
)
def test_step_of_a_large_network_compiles_and_fits(name, method, arguments, temporaries):
    """In GiB on each of eight devices, with the batch of the recipe."""
    memory = benchmark.compiled(name, method, batch=144, length=512, size=8).memory_analysis()
    net, row = steered.build(language(name="x", method=method, backbone=name), 0)
    shapes = jax.eval_shape(lambda: steered.init(net, row, jax.random.key(0)))
    tuned, frozen = map(trees.count, trees.split(shapes, methods.tuned_mask(shapes, row)))
    transform = trees.count(shapes["top_down"]["transform"]) if row.signal else 0
    # Frozen in bfloat16, split but for the transform; tuned in float32 with Adam's two moments, split.
    expected = (2 * (frozen - transform) + 12 * tuned) / 8 + 2 * transform
    assert memory.argument_size_in_bytes == pytest.approx(expected, rel=0.001)
    assert memory.argument_size_in_bytes < arguments * 2**30
    assert memory.temp_size_in_bytes < temporaries * 2**30


@pytest.mark.slow
def test_pretuning_of_a_large_network_fits():
    """The hidden states of all blocks come on top; the feedback layers are gathered one at a time."""
    memory = benchmark.compiled("llama1_7b", "toast", batch=144, length=512, size=8, stage="pretune").memory_analysis()
    assert memory.temp_size_in_bytes < 34 * 2**30


def test_an_array_of_the_host_is_not_sent_to_other_hosts(monkeypatch):
    """`device_put` with a sharding over several hosts would first compare the whole array across them."""
    calls = []
    sharding = type("OverHosts", (), {"is_fully_addressable": False})()
    monkeypatch.setattr(jax, "device_put", lambda *_: pytest.fail("the whole array is put"))
    monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, to, part: calls.append((shape, to, part(slice(1, 3)))))
    fsdp._put(np.arange(8.0), sharding)
    ((shape, to, part),) = calls
    assert shape == (8,) and to is sharding and part.tolist() == [1.0, 2.0]
