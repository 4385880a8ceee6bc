"""The loss from a few rows of pixels at a time is that of all pixels at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import segment
from toast_jax.model.segmentation import heads, losses, pixels, segmenter

BATCH, CLASSES = 3, 4


def of_all_pixels(logits, labels):
    """Compute `losses.of_pixels` as it is defined, with all logits in memory."""
    logits, counted = heads.upsample(logits, labels.shape[1:]), labels != losses.IGNORED
    expected = jnp.where(counted, labels, 0).astype(jnp.int32)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, expected) * counted
    correct = (jnp.argmax(logits, axis=-1) == expected) & counted
    return entropy.mean(axis=(1, 2)), correct.sum(axis=(1, 2)) / jnp.maximum(counted.sum(axis=(1, 2)), 1)


def arrays(places, sides):
    """Return bfloat16 logits of two heads, and labels with a fifth of ignored pixels and one ignored image."""
    rng = np.random.default_rng(0)
    outputs = [jnp.asarray(rng.normal(0, 3, (BATCH, *shape, CLASSES)), jnp.bfloat16) for shape in (places, (2, 2))]
    labels = rng.integers(0, CLASSES, (BATCH, *sides)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = labels[1] = losses.IGNORED
    return outputs, labels


def rows_at_once(monkeypatch, rows, width):
    monkeypatch.setattr(losses, "MAX_LOGITS", dict.fromkeys(losses.MAX_LOGITS, rows * BATCH * width * CLASSES))


def scored(outputs, labels):
    """Return the gradients of the mean loss, and the scores of `losses.tune`, of a network with these outputs."""
    network = segmenter.build(segment.get_config("method=linear,backbone=vit_ti16,head=linear"), CLASSES)
    score = losses.tune(*network, auxiliary_weight=0.4)
    batch = {"image": None, "label": labels, "scale": jnp.array([1.0, 2.0, 0.5])}

    def loss(outputs):
        scores = score({"outputs": outputs}, batch)
        return scores["loss"].mean(), scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "segment", lambda model, method, params, *_, **__: params["outputs"])
        return jax.jit(jax.grad(loss, has_aux=True))(outputs)


@functools.cache
def expected_of(places, sides):
    outputs, labels = arrays(places, sides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "of_pixels", of_all_pixels)
        return scored([logits.astype(jnp.float32) for logits in outputs], labels)


@pytest.mark.parametrize(
    ("places", "sides", "rows", "dtype"),
    [
        ((3, 5), (13, 17), 5, jnp.float32),
        ((3, 5), (13, 17), 1, jnp.bfloat16),
        pytest.param((7, 7), (3, 4), 2, jnp.float32, marks=pytest.mark.slow),
    ],
    ids=["last chunk shorter", "row by row, bfloat16", "fewer pixels than places"],
)
def test_scores_and_gradients_are_those_of_all_pixels_at_once(places, sides, rows, dtype, monkeypatch):
    outputs, labels = arrays(places, sides)
    rows_at_once(monkeypatch, rows, sides[1])
    gradients, scores = scored([logits.astype(dtype) for logits in outputs], labels)
    expected_gradients, expected = expected_of(places, sides)
    assert scores.keys() == expected.keys() == {"loss", "head_loss", "auxiliary_loss", "accuracy"}
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values, rtol=1e-6, err_msg=name)
    rounding = {"float32": 0, "bfloat16": 2**-8}[dtype.__name__]  # of the gradients of bfloat16 logits, at the end
    for gradient, values in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        assert np.abs(values[1]).max() == 0 < np.abs(values).max()
        np.testing.assert_allclose(gradient.astype(np.float32), values, rtol=rounding, atol=1e-6 * np.abs(values).max())


def test_a_train_step_needs_memory_for_some_rows_only(monkeypatch):
    outputs = jax.ShapeDtypeStruct((BATCH, 4, 4, CLASSES), jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH, 64, 64), jnp.uint8)
    rows_at_once(monkeypatch, 4, 64)

    def temporary(of_pixels):
        gradient = jax.jit(jax.grad(lambda logits, labels: of_pixels(logits, labels)[0].mean()))
        return gradient.lower(outputs, labels).compile().memory_analysis().temp_size_in_bytes

    assert temporary(losses.of_pixels) < temporary(of_all_pixels) / 5


def test_the_first_of_equal_logits_is_predicted_and_a_class_in_any_case():
    logits = jnp.array([[0.0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [jnp.nan] * 4]).T[None]
    assert pixels.predict(logits).tolist() == [[1, 0, 3, 3]]
