"""Scores: cross-entropy against NumPy, and parts that add up to what is minimised."""

import functools
import re

import jax
import numpy as np
import pytest

from tests.conftest import tiny_config
from toast_jax import trees
from toast_jax.model import losses, steered

CLASSES, SIDE, TASK, VARIATIONAL = 3, 16, 0.7, 0.3


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8),
        "label": np.arange(8, dtype=np.int32) % CLASSES,
    }


@functools.cache
def outputs():
    """Of a network with random parameters: scores of both stages, its logits, its hidden tokens, and `back`."""

    @jax.jit
    def run(params):
        tuned = losses.tune(network, method)(params, batch())
        both = losses.pretune(network, method, task_weight=TASK, variational_weight=VARIATIONAL)(params, batch())
        alone = losses.pretune(network, method, task_weight=0.0, variational_weight=VARIATIONAL)(params, batch())
        logits, out = steered.apply(network, method, params, batch()["image"], call="explain")
        return tuned, both, alone, logits, out["look"]["hidden"]

    network, method = steered.build(tiny_config("", "toast"), CLASSES)
    shapes = jax.eval_shape(lambda: steered.init(network, method, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    return *jax.tree.map(np.asarray, run(params)), params["top_down"]["back"]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_cross_entropy_of_every_example(scale):
    rng = np.random.default_rng(0)
    logits, labels = (scale * rng.normal(size=(6, 5))).astype(np.float32), rng.integers(0, 5, 6)
    ours = losses.cross_entropy(logits, {"label": labels})
    assert ours.shape == (6,)
    np.testing.assert_allclose(ours, cross_entropy(logits, labels), rtol=1e-5, atol=1e-5)


def test_cross_entropy_with_targets_that_are_no_single_class():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(6, 5)).astype(np.float32), rng.dirichlet(np.ones(5), 6).astype(np.float32)
    expected = sum(target[:, c] * cross_entropy(logits, np.full(6, c)) for c in range(5))
    ours = losses.cross_entropy(logits, {"target": target, "label": np.zeros(6, np.int32)})
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_accuracy_asks_for_the_largest_target():
    logits, target = np.eye(3, dtype=np.float32)[[0, 1, 2]], np.eye(3, dtype=np.float32)[[0, 2, 2]]
    hits = losses._hits(logits, {"target": target, "label": np.array([1, 1, 1])})
    np.testing.assert_array_equal(hits, [1, 0, 1])
    np.testing.assert_array_equal(losses._hits(logits, {"label": np.array([1, 1, 1])}), [0, 1, 0])


def test_tuning_minimises_the_cross_entropy_of_the_final_look():
    scores, _, _, logits, _, _ = outputs()
    labels = batch()["label"]
    assert set(scores) == {"loss", "accuracy"}
    np.testing.assert_allclose(scores["loss"], cross_entropy(logits, labels), rtol=1e-5)
    np.testing.assert_array_equal(scores["accuracy"], logits.argmax(-1) == labels)


def test_pretuning_adds_the_weighted_variational_loss_of_the_final_look():
    tuned, scores, alone, _, hidden, back = outputs()
    assert set(scores) == {"loss", "accuracy", "task_loss", "variational_loss"}
    np.testing.assert_allclose(scores["task_loss"], tuned["loss"], rtol=1e-5)
    np.testing.assert_array_equal(scores["accuracy"], tuned["accuracy"])
    np.testing.assert_allclose(scores["loss"], TASK * scores["task_loss"] + VARIATIONAL * scores["variational_loss"], rtol=1e-6)
    rebuilt = np.stack([after @ matrix for after, matrix in zip(hidden[1:], back, strict=True)])
    expected = ((rebuilt - hidden[:-1]) ** 2).mean(axis=(2, 3)).sum(axis=0)
    assert expected.min() > 1e-2 and np.ptp(expected) > 1e-3
    np.testing.assert_allclose(scores["variational_loss"], expected, rtol=1e-4)
    # Without labels that is all there is.
    assert set(alone) == {"loss", "variational_loss"}
    np.testing.assert_allclose(alone["loss"], VARIATIONAL * expected, rtol=1e-4)


# Without labels: the final look at a degraded image against the frozen look at the clean one.


def views():
    rng = np.random.default_rng(1)
    image, clean = rng.normal(size=(2, 8, SIDE, SIDE, 3)).astype(np.float32)
    return {"image": image, "clean": clean, "label": np.zeros(8, np.int32)}


@functools.cache
def distilled(name):
    """A network's random parameters, and `(params, batch) -> scores, gradients, looks`: one program for all tests.

    Scores are those of a head that is a frozen classifier and of another one; gradients are those of the sum of their losses.
    """
    network, method = steered.build(tiny_config("", name), CLASSES)
    shapes = jax.eval_shape(lambda: steered.init(network, method, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    weights = {"task_weight": 0.0, "variational_weight": 0.0, "distillation_weight": 2.0}
    both = [losses.pretune(network, method, **weights, by_class=by_class) for by_class in (True, False)]

    def loss(params, batch):
        scores = [scores(params, batch) for scores in both]
        return sum(of["loss"].mean() for of in scores), scores

    @jax.jit
    def run(params, batch):
        (of_params, of_batch), scores = jax.grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)(params, batch)
        pooled, out = steered.apply(network, method, params, batch["image"], call="looks")
        teacher, clean = network.backbone.apply({"params": params["backbone"]}, batch["clean"])
        return scores, (of_params, of_batch["clean"]), ((pooled, out["look"]["tokens"]), (teacher, clean["tokens"]))

    return params, lambda params, batch: jax.tree.map(np.asarray, run(params, batch))


NAMES = ["toast", pytest.param("lora", marks=pytest.mark.slow), pytest.param("vpt", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", NAMES)
def test_distillation_is_the_divergence_of_class_distributions_or_the_distance_of_tokens(name):
    params, run = distilled(name)
    (by_class, by_tokens), _, looks = run(params, views())
    logits = [(pooled @ params["head"]["kernel"] + params["head"]["bias"]).astype(float) for pooled, _ in looks]
    student, teacher = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits)
    expected = (teacher * np.log(teacher / student)).sum(-1)
    assert expected.mean() > 1e-2
    np.testing.assert_allclose(by_class["distillation_loss"], expected, rtol=1e-3, atol=1e-6)
    student, teacher = (tokens.astype(float) for _, tokens in looks)
    student = np.delete(student, slice(1, 1 + student.shape[1] - teacher.shape[1]), axis=1)  # prompts
    norm = functools.partial(np.linalg.norm, axis=-1)
    distances = 1 - (student * teacher).sum(-1) / (norm(student) * norm(teacher))
    assert distances.shape == (8, 1 + (SIDE // 8) ** 2)  # the class token is the first
    np.testing.assert_allclose(by_tokens["distillation_loss"], distances[:, 0] + distances.mean(axis=1), rtol=1e-4)
    for scores in (by_class, by_tokens):
        np.testing.assert_allclose(scores["loss"], 2.0 * scores["distillation_loss"], rtol=1e-6)
        assert set(scores) - {"variational_loss"} == {"loss", "distillation_loss"}
        assert ("variational_loss" in scores) == (name == "toast")


def test_prompts_that_come_first_are_left_out_of_the_distance():
    config = tiny_config("", "vpt")
    config.backbone.update({"class_token": False, "pool": "mean"})
    network, method = steered.build(config, CLASSES)
    shapes = jax.eval_shape(lambda: steered.init(network, method, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)

    @jax.jit
    def run(params, batch):
        scores = losses.pretune(network, method, task_weight=0.0, variational_weight=0.0, distillation_weight=1.0)
        _, out = steered.apply(network, method, params, batch["image"], call="looks")
        pooled, clean = network.backbone.apply({"params": params["backbone"]}, batch["clean"])
        patches = out["look"]["tokens"][:, config.prompts.num :]
        expected = losses._distance(patches.mean(axis=1), pooled) + losses._distance(patches, clean["tokens"])
        return scores(params, batch)["distillation_loss"], expected

    np.testing.assert_allclose(*run(params, views()), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_distillation_has_gradients_of_all_that_is_tuned_and_none_of_its_teacher(name):
    params, run = distilled(name)
    _, (of_params, of_clean), _ = run(params, views())
    tuned = {"toast": r"top_down/(back|out|prior)", "lora": "lora/.*", "vpt": "prompts/.*"}[name]
    norms = [np.abs(leaf).max() for path, leaf in trees.flat(of_params).items() if re.fullmatch(tuned, path)]
    assert norms and min(norms) > 1e-6
    assert of_clean.shape == (8, SIDE, SIDE, 3) and not np.any(of_clean)


def test_a_student_that_sees_and_computes_what_its_teacher_does_has_no_loss():
    params, run = distilled("toast")
    # A second look counts the bias of the values twice, as in the release.
    still = {path: leaf * (not re.search(r"top_down/out|attn/v/bias", path)) for path, leaf in trees.flat(params).items()}
    same, still = {**views(), "clean": views()["image"]}, trees.nested(still)
    some = [scores["distillation_loss"] for each in (run(params, same), run(still, views())) for scores in each[0]]
    assert min(map(np.mean, some)) > 5e-3
    for scores in run(still, same)[0]:
        np.testing.assert_allclose(scores["distillation_loss"], 0, atol=1e-5)


def test_steps_lower_the_distillation_loss():
    params, run = distilled("toast")
    seen = []
    for _ in range(4):
        scores, (gradients, _), _ = run(params, views())
        seen.append([each["loss"].mean() for each in scores])
        module = {name: leaf - 0.3 * gradients["top_down"][name] for name, leaf in params["top_down"].items()}
        params = {**params, "top_down": module}
    assert np.all(np.diff(np.sum(seen, axis=1)) < 0) and np.all(seen[-1] < 0.99 * np.array(seen[0]))


@pytest.mark.parametrize("backbone", ["vit_ti8", "convnext_t"])
@pytest.mark.parametrize("method", ["lora", "toast_lite"])
def test_only_a_network_with_a_top_down_module_has_a_variational_loss(method, backbone):
    config = tiny_config("", method, backbone)
    network, row = steered.build(config, CLASSES)
    shapes = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))
    scores = losses.pretune(network, row, task_weight=TASK, variational_weight=VARIATIONAL)
    image = np.zeros((8, config.data.image_size, config.data.image_size, 3), np.uint8)
    names = set(jax.eval_shape(scores, shapes, {**batch(), "image": image}))
    assert names == {"loss", "accuracy", "task_loss"} | ({"variational_loss"} if method == "toast_lite" else set())
