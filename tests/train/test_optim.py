"""The schedule against the release's, SGD and AdamW against their formulas, and frozen parameters left alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import folder
from tests import FIXTURES
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.train import optim, setup

STEPS = 6
FIXTURE = FIXTURES / "lr_schedule.npz"
MASK = {"backbone": {"kernel": False, "norm": True}, "head": {"kernel": True, "bias": True}}
ALL = jax.tree.map(lambda _: True, MASK)
SETTINGS = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1, "no_decay": ("head/bias",), "clip": 0.0}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {
        "backbone": {"kernel": rng.normal(size=(3, 4)).astype(np.float32), "norm": rng.normal(size=3).astype(np.float32)},
        "head": {"kernel": rng.normal(size=(4, 2)).astype(np.float32), "bias": rng.normal(size=2).astype(np.float32)},
    }


def learning_rate(step):
    return 0.1 / (1 + step)


def optimizer(mask=ALL, **settings):
    return optim.optimizer(schedule=learning_rate, mask=mask, **{**SETTINGS, **settings})


def run(tx, params, gradients):
    """The parameters after the steps, and the updates of each."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    state, seen = tx.init(params), []
    for grads in gradients:
        params, state, updates = step(params, state, grads)
        seen.append(updates)
    return params, seen


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_schedule_is_the_release_s():
    with np.load(FIXTURE) as file:
        base, warmup, epochs = float(file["base_lr"]), int(file["warmup_epochs"]), int(file["total_epochs"])
        expected = file["lr_per_epoch"]
    per_epoch = 7
    schedule = optim.warmup_cosine(lr=base, epochs=epochs, warmup_epochs=warmup, steps_per_epoch=per_epoch)
    ours = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(epochs * per_epoch))).reshape(epochs, per_epoch)
    assert not np.ptp(ours, axis=1).any()  # constant within an epoch
    np.testing.assert_allclose(ours[:, 0], expected, rtol=1e-7)
    assert ours[0, 0] == 0.0 and ours[warmup, 0] == np.float32(base)


def test_schedule_without_warm_up_starts_high_and_approaches_zero():
    schedule = jax.jit(optim.warmup_cosine(lr=0.5, epochs=4, warmup_epochs=0, steps_per_epoch=2))
    expected = [0.25 * (1 + np.cos(np.pi * (step // 2) / 4)) for step in range(8)]
    np.testing.assert_allclose([schedule(jnp.asarray(step)) for step in range(8)], expected, atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 2])
def test_schedule_by_step_is_a_line_and_half_a_cosine(warmup):
    schedule = optim.SCHEDULES["step"](lr=0.5, epochs=6, warmup_epochs=warmup, steps_per_epoch=5)
    start = 5 * warmup
    line = [0.5 * step / start for step in range(start)]
    cosine = [0.25 * (1 + np.cos(np.pi * (step - start) / (30 - start))) for step in range(start, 30)]
    np.testing.assert_allclose([schedule(jnp.asarray(step)) for step in range(30)], line + cosine, atol=1e-7)


@pytest.mark.parametrize("warmup", [3, 5])
def test_schedule_that_only_warms_up_is_finite(warmup):
    schedule = optim.warmup_cosine(lr=1.0, epochs=3, warmup_epochs=warmup, steps_per_epoch=1)
    np.testing.assert_allclose([schedule(step) for step in range(3)], np.arange(3) / warmup, rtol=1e-6)


def test_sgd_is_torch_s():
    gradients = [draw(seed) for seed in range(1, 1 + STEPS)]
    ours, _ = run(optimizer(), draw(0), gradients)
    params, momentum = trees.flat(draw(0)), {}
    for step, grads in enumerate(gradients):
        for path, grad in trees.flat(grads).items():
            grad = grad + (0.0 if path == "head/bias" else 0.1) * params[path]
            momentum[path] = 0.9 * momentum[path] + grad if step else grad
            params[path] = params[path] - learning_rate(step) * momentum[path]
    assert_close(trees.flat(ours), params)


def test_adamw_decays_apart_from_its_moments():
    gradients = [draw(seed) for seed in range(1, 1 + STEPS)]
    ours, _ = run(optimizer(name="adamw"), draw(0), gradients)
    params, zero = trees.flat(draw(0)), {path: 0.0 for path in trees.flat(ALL)}
    mean, square = dict(zero), dict(zero)
    for step, grads in enumerate(gradients):
        for path, grad in trees.flat(grads).items():
            mean[path] = 0.9 * mean[path] + 0.1 * grad
            square[path] = 0.999 * square[path] + 0.001 * grad**2
            moment = mean[path] / (1 - 0.9 ** (step + 1)) / (np.sqrt(square[path] / (1 - 0.999 ** (step + 1))) + 1e-8)
            decay = (0.0 if path == "head/bias" else 0.1) * params[path]
            params[path] = params[path] - learning_rate(step) * (moment + decay)
    assert_close(trees.flat(ours), params)


def test_lars_is_its_slow_definition():
    """Momentum sums updates of a trusted size, and the rate of the step scales the sum; vectors are as with SGD."""
    params, gradients = draw(0), [draw(seed) for seed in range(1, 1 + STEPS)]
    params["head"]["kernel"][:] = 0.0  # without a norm, its first update is as it is
    for tree in (params, *gradients):
        tree["backbone"]["blocks"] = np.stack([tree["backbone"]["kernel"], 5 * tree["backbone"]["kernel"] ** 2])
    mask = jax.tree.map(lambda _: True, params)
    result, _ = run(optimizer(mask, name="lars", stacks="backbone/blocks"), params, gradients)

    def layers(tree):
        return {path: list(leaf) if path == "backbone/blocks" else [leaf] for path, leaf in trees.flat(tree).items()}

    expected, momentum = {path: list(leaves) for path, leaves in layers(params).items()}, {}
    for step, grads in enumerate(gradients):
        for path, leaves in layers(grads).items():
            for i, grad in enumerate(leaves):
                param = expected[path][i]
                update = grad + (0.0 if path == "head/bias" else 0.1) * param
                if update.ndim > 1:
                    norms = np.linalg.norm(param.ravel()), np.linalg.norm(update.ravel())
                    update = update * (0.001 * norms[0] / norms[1] if norms[0] and norms[1] else 1.0)
                momentum[path, i] = 0.9 * momentum.get((path, i), 0.0) + update
                expected[path][i] = param - learning_rate(step) * momentum[path, i]
    for path, leaves in layers(result).items():
        assert_close(np.stack(leaves), np.stack(expected[path]))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("no_decay", "spared"),
    [
        ((), set()),
        (("backbone/norm",), {"backbone/norm"}),
        (("head/bias", "backbone/.*m"), {"head/bias", "backbone/norm"}),
        ((".*",), set(trees.flat(MASK))),
    ],
)
def test_decay_spares_the_paths_that_a_regex_matches_whole(name, no_decay, spared):
    zeros = jax.tree.map(np.zeros_like, draw(0))
    _, (updates,) = run(optimizer(name=name, no_decay=no_decay), draw(0), [zeros])
    assert {path for path, update in trees.flat(updates).items() if not np.any(update)} == spared


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_scaled_parameters_have_a_learning_rate_of_their_own(name):
    """Decay, momentum and clipping see the gradients as they are: only the updates are scaled, and those of others are not."""
    tx = functools.partial(optimizer, MASK, name=name, clip=0.5)
    _, (plain,) = run(tx(), draw(0), [draw(1)])
    _, (scaled,) = run(tx(lr_scale=10.0, lr_scaled=("head/k.*",)), draw(0), [draw(1)])
    plain["head"]["kernel"] *= 10.0
    jax.tree.map(np.testing.assert_array_equal, scaled, plain)


def test_a_config_scales_the_rate_of_some_parameters():
    config = folder.get_config("method=linear")
    config.optimizer.update({"lr_scale": 10.0, "lr_scaled": ("head/bias",)})
    plain, scaled = (
        run(setup.optimizer(config, learning_rate, MASK), draw(0), [draw(1)])[1][0]
        for config in (folder.get_config("method=linear"), config)
    )
    np.testing.assert_array_equal(scaled["head"]["bias"], 10 * plain["head"]["bias"])
    np.testing.assert_array_equal(scaled["head"]["kernel"], plain["head"]["kernel"])


def test_scaling_is_no_part_of_the_state_unless_asked_for():
    """Checkpoints of runs without it keep their structure."""
    params = draw(0)
    plain, scaled = (optimizer(lr_scaled=paths).init(params) for paths in ((), ("head/bias",)))
    assert jax.tree.structure(plain) == jax.tree.structure(optimizer().init(params)) != jax.tree.structure(scaled)
    assert trees.count(plain) == trees.count(scaled)


@pytest.mark.parametrize("regex", ["bias", "backbone/kernel"])
def test_scaling_of_no_tuned_parameter_is_refused(regex):
    with pytest.raises(InputError, match=f"config.optimizer.lr_scaled has '{regex}', which matches no tuned parameter"):
        optimizer(MASK, lr_scale=2.0, lr_scaled=(regex,))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_frozen_leaves_get_updates_of_zero_and_change_nothing_else(name, clip):
    tx, params = optimizer(MASK, name=name, clip=clip), draw(0)
    gradients = [draw(seed) for seed in range(1, 4)]
    for grads in gradients:
        grads["backbone"]["kernel"] *= 1e6
    _, full = run(tx, params, gradients)
    split_params, _ = trees.split(params, MASK)
    _, split = run(tx, split_params, [trees.split(grads, MASK)[0] for grads in gradients])
    for of_full, of_split in zip(full, split, strict=True):
        assert not np.any(of_full["backbone"]["kernel"])
        tuned, _ = trees.split(of_full, MASK)
        assert jax.tree.structure(tuned) == jax.tree.structure(of_split)
        jax.tree.map(np.testing.assert_array_equal, tuned, of_split)
        assert all(np.all(update != 0) for update in jax.tree.leaves(tuned))


def test_clipping_bounds_the_norm_of_the_tuned_gradients():
    grads, clip = draw(1), 0.5
    grads["backbone"]["kernel"] *= 1e6
    plain = {"weight_decay": 0.0, "momentum": 0.0}
    _, (updates,) = run(optimizer(MASK, clip=clip, **plain), draw(0), [grads])
    np.testing.assert_allclose(optax.tree.norm(updates), 0.1 * clip, rtol=1e-5)
    small = jax.tree.map(lambda grad: 1e-3 * grad, draw(1))
    _, (unclipped,) = run(optimizer(MASK, clip=clip, **plain), draw(0), [small])
    assert_close(unclipped["head"], jax.tree.map(lambda grad: -0.1 * grad, small["head"]))


@pytest.mark.parametrize("whole_tree", [True, False])
@pytest.mark.parametrize(("name", "copies"), [("sgd", 1), ("adamw", 2)])
def test_state_has_no_leaf_for_frozen_parameters(name, copies, whole_tree):
    tuned, _ = trees.split(draw(0), MASK)
    state = optimizer(MASK, name=name).init(draw(0) if whole_tree else tuned)
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert trees.count(arrays) == copies * trees.count(tuned)
    assert (3, 4) not in {leaf.shape for leaf in arrays}


def test_unknown_optimizer_is_refused():
    with pytest.raises(InputError, match="config.optimizer.name is 'lamb'; it must be .*sgd.*adamw"):
        optimizer(name="lamb")


@pytest.mark.parametrize("regex", ["bias", "head"])
def test_regex_that_spares_nothing_is_refused(regex):
    with pytest.raises(InputError, match=f"config.optimizer.no_decay has '{regex}', which matches no parameter"):
        optim.optimizer(
            name="sgd",
            schedule=lambda _: 0.1,
            mask=MASK,
            momentum=0.9,
            weight_decay=0.1,
            no_decay=(regex,),
            clip=0.0,
        )


def test_poly_falls_linearly_after_a_linear_warm_up_from_a_millionth():
    """The numbers of mmsegmentation's `poly` with power 1 and `linear` warm-up with ratio 1e-6."""
    rate = optim.poly(lr=6e-5, epochs=20_000, warmup_epochs=1_500, steps_per_epoch=1)
    steps = np.array([0, 750, 1_499, 1_500, 10_000, 19_999])
    warm = np.where(steps < 1_500, 1 - (1 - steps / 1_500) * (1 - 1e-6), 1)
    np.testing.assert_allclose(rate(jnp.asarray(steps)), 6e-5 * (1 - steps / 20_000) * warm, rtol=1e-5)
    assert float(optim.poly(lr=1.0, epochs=10, warmup_epochs=0, steps_per_epoch=1)(0)) == 1
