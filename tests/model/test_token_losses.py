"""Scores of text: means over tokens, however they lie on examples and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.backbones.llama.test_network import N, V, apply, parameters, steered_llama, text
from toast_jax import trees
from toast_jax.devices import parallel
from toast_jax.model import losses, methods, steered
from toast_jax.model.methods import LANGUAGE_METHODS
from toast_jax.train import evaluation, optim
from toast_jax.train import text_runs as text_run
from toast_jax.train.step import init_state, train_step

ROWS = 4
PREDICTED = (np.arange(N) < np.array([[7], [1], [0], [3]])).astype(np.float32)  # of very different number, and none


def batch():
    """As data gives it: the weights of an example add up to 1, its mask is the number of its predicted tokens."""
    inputs, mask = text(rows=ROWS), PREDICTED.sum(axis=1)
    label = np.random.default_rng(3).integers(0, V, (ROWS, N)).astype(np.int32)
    return {**inputs, "label": label, "weight": PREDICTED / np.maximum(mask, 1)[:, None], "mask": mask}


def on_devices(function, devices, *args):
    """Runs a per-device function whose last argument is split over so many devices that are one."""
    *same, split = args
    split = jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), split)
    mapped = jax.vmap(function, in_axes=(None,) * len(same) + (0,), out_axes=None, axis_name=parallel.AXIS)
    return jax.jit(mapped)(*same, split)


def token_losses(params, method):
    logits = np.asarray(apply({name: batch()[name] for name in ("tokens", "segments")}, method, params), np.float64)
    chosen = np.take_along_axis(logits, batch()["label"][..., None], axis=-1)[..., 0]
    hits = logits.argmax(-1) == batch()["label"]
    return np.log(np.exp(logits).sum(-1)) - chosen, hits


@functools.cache
def steps(devices, parts=1):
    """The metrics of two optimizer steps of toast, and the parameters after them."""
    net, row = steered_llama("toast")
    mask = methods.tuned_mask(parameters(), row)
    tuned, frozen = trees.split(parameters(), mask)
    tx = optim.optimizer(name="sgd", schedule=lambda _: 0.5, mask=mask, momentum=0.9, weight_decay=0.0, no_decay=(), clip=0.0)
    step = functools.partial(train_step, scores=losses.tune(net, row), tx=tx, augment=text_run.by_token, microbatches=parts)
    state, seen = init_state(tuned, tx, seed=0), []
    for _ in range(2):
        state, metrics = on_devices(step, devices, state, frozen, batch())
        seen.append(metrics)
    return jax.tree.map(np.asarray, (seen, trees.flat(trees.prune(state.tuned))))


def test_a_step_minimises_the_mean_over_tokens():
    metrics = steps(1)[0][0]
    expected, hits = token_losses(parameters(), "toast")
    np.testing.assert_allclose(metrics["loss"], (PREDICTED * expected).sum() / PREDICTED.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (PREDICTED * hits).sum() / PREDICTED.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("devices", "parts"), [(2, 1), (1, 4), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((4, 1), (2, 2)))]
)
def test_tokens_count_alike_on_any_number_of_devices_and_in_parts(devices, parts):
    (metrics, params), (theirs, expected) = steps(devices, parts), steps(1)
    for ours, one in zip(metrics, theirs, strict=True):
        for name in one:
            np.testing.assert_allclose(ours[name], one[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for path, leaf in expected.items():
        assert np.abs(leaf - trees.flat(parameters())[path]).max() > 1e-4
        np.testing.assert_allclose(params[path], leaf, rtol=0, atol=1e-6 + 1e-5 * np.abs(leaf).max(), err_msg=path)


@pytest.mark.parametrize("devices", [1, 2])
def test_evaluation_sums_over_tokens(devices):
    net, row = steered_llama("toast")
    tuned, frozen = trees.split(parameters(), methods.tuned_mask(parameters(), row))
    step = functools.partial(evaluation.eval_step, scores=losses.tune(net, row))
    sums = on_devices(step, devices, tuned, frozen, batch())
    expected, hits = token_losses(parameters(), "toast")
    assert sums["count"] == PREDICTED.sum() == 11
    np.testing.assert_allclose(sums["loss"], (PREDICTED * expected).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["accuracy"], (PREDICTED * hits).sum(), rtol=1e-5, atol=1e-6)


def test_variational_loss_of_text_is_over_all_positions():
    net, row = steered_llama("toast")
    scores = losses.pretune(net, methods.pretuned(LANGUAGE_METHODS["toast"]), task_weight=1.0, variational_weight=0.01)
    ours = jax.jit(lambda params: scores(params, batch()))(parameters())
    inputs = {name: batch()[name] for name in ("tokens", "segments")}
    hidden = np.asarray(apply(inputs, "toast", call="explain")[1]["look"]["hidden"], np.float64)
    back = np.asarray(parameters()["top_down"]["back"], np.float64)
    rebuilt = np.einsum("lbnd,lde->lbne", hidden[1:], back)
    # Both sides divided by ten, as in the release.
    expected = ((rebuilt / 10 - hidden[:-1] / 10) ** 2).mean(axis=(2, 3)).sum(axis=0)
    np.testing.assert_allclose(ours["loss"] - ours["task_loss"], expected, rtol=1e-4)


def whole_scores(net, row, params, batch):
    """As defined, with all logits at once."""
    logits = steered.apply(net, row, params, losses.inputs(batch))
    entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][..., None], axis=-1)[..., 0]
    hits = jnp.argmax(logits, axis=-1) == batch["label"]
    return {name: (batch["weight"] * values).sum(axis=1) for name, values in (("loss", entropy), ("accuracy", hits))}


@pytest.mark.parametrize(
    ("method", "size"), [pytest.param("toast", 4, marks=pytest.mark.slow), ("finetune", 5)]
)  # 10 tokens, with and without padding
def test_chunks_of_tokens_score_as_all_tokens_at_once(method, size, monkeypatch):
    monkeypatch.setattr(losses, "MAX_LOGITS", size * ROWS * V)
    monkeypatch.setattr(losses, "MIN_TOKENS", 1)
    net, row = steered_llama(method)

    @functools.partial(jax.jit, static_argnums=0)
    def graded(scores, params):
        (_, all_scores), gradient = jax.value_and_grad(lambda params: _summed(scores(params)), has_aux=True)(params)
        return all_scores, gradient

    chunked, whole = lambda p: losses.tune(net, row)(p, batch()), lambda p: whole_scores(net, row, p, batch())
    assert (f"f32[{ROWS},{N},{V}]" in str(jax.make_jaxpr(chunked)(parameters(method)))) is False
    ours, expected = graded(chunked, parameters(method)), graded(whole, parameters(method))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * max(1, np.abs(y).max()))


def _summed(scores):
    return scores["loss"].sum(), scores
