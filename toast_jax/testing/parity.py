"""Replay arrays recorded from the PyTorch release through the training code, and of backbones from timm and transformers.

    python -m toast_jax.parity FILE.npz [FILE.npz ...]

A recording holds inputs, parameters under their PyTorch names, outputs, intermediates, gradients and six SGD steps of one
method, in float32 and without dropout; those of a backbone alone, of a language model alone and of segmentation
are described in `backbone_parity`, `language_parity` and `segmentation_parity`. Each line shows a quantity's
relative error `max|value - recorded| / max|recorded|`, its bound and its name. The exit status is 1 if any error exceeds its
bound.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.devices import parallel
from toast_jax.model import generation, losses
from toast_jax.model.additions.adapter import Bottleneck
from toast_jax.model.layers.batch_norm import without_statistics
from toast_jax.model.methods import tuned_mask
from toast_jax.model.steered import apply, merged
from toast_jax.testing import backbone_parity, language_parity, recording, segmentation_parity
from toast_jax.testing.comparison import Check, relative_error
from toast_jax.testing.one_device import on_one_device
from toast_jax.testing.recording import Recording
from toast_jax.train import optim, step
from toast_jax.train.augment import by_token
from toast_jax.weights.rename import to_torch

FORWARD, BACKWARD = 1e-5, 1e-4
_sgd_optimizer = functools.partial(optim.optimizer, name="sgd", momentum=0.9, weight_decay=0.01, clip=0.0)
SGD_LR, SGD_STEPS = 0.05, 6


def replay(path: str) -> list[Check]:
    """Compare every quantity of a recording."""
    arrays = recording.read(path)
    if backbone_parity.is_recording(arrays):
        return backbone_parity.replay(path, arrays)
    if language_parity.is_recording(arrays):
        return language_parity.replay(arrays)
    if segmentation_parity.is_recording(arrays):
        return segmentation_parity.replay(arrays)
    recorded = recording.load(path, arrays)
    model, method, arrays = recorded.model, recorded.method, recorded.arrays
    mask = tuned_mask(recorded.params, method)
    tuned, frozen = trees.split(recorded.params, mask)
    # Recordings include the weight of the variational loss.
    pretune = functools.partial(losses.pretune, model, method, variational_weight=recorded.family.variational_weight)
    scores = pretune(task_weight=1.0) if recorded.pretuning else losses.tune(model, method)
    checks = [
        Check("count/total", abs(trees.count(without_statistics(recorded.params)) - int(arrays["count/total"])), 0),
        Check("count/trainable", abs(trees.count(without_statistics(tuned)) - int(arrays["count/trainable"])), 0),
    ]
    checks += _forward(recorded)
    checks += _gradients(recorded, scores, tuned, frozen, "out/loss", "grad/")
    if "var/loss" in arrays:
        checks += _gradients(recorded, pretune(task_weight=0.0), tuned, frozen, "var/loss", "var/grad/")
    if "sgd/losses" in arrays:
        checks += _sgd(recorded, scores, mask, tuned, frozen)
    if "eval/out/logits" in arrays:
        checks += _evaluation(recorded)
    if "merged/out/logits" in arrays:
        checks += _merged(recorded)
    if "generate/prompt" in arrays:
        checks += _generate(recorded)
    return checks


def _keys(batch):
    """Return keys that mark a forward pass as one of training, in which nothing is dropped here."""
    return jax.random.split(jax.random.key(0), len(batch["label"]))


def _weighed(batch):
    """Weigh the tokens of a batch as a step does."""
    return on_one_device(lambda batch: by_token(batch, None), batch) if "weight" in batch else batch


def _forward(recorded: Recording) -> list[Check]:
    seen, arrays = losses.inputs(recorded.batch), recorded.arrays
    run = functools.partial(apply, recorded.model, recorded.method)
    both = lambda *args: (run(*args), run(*args, call="explain"))  # noqa: E731
    logits, (explained, out) = jax.device_get(on_one_device(both, recorded.params, seen, _keys(recorded.batch)))
    pairs = {"out/logits": logits, "out/logits (with intermediates)": explained}
    pairs |= _tokens(recorded, out["look"])
    if "selection" in out:
        pairs |= _intermediates(out, recorded.params["top_down"]["transform"])
    keys = {name: name.split(" ")[0] for name in pairs}
    missing = {key for key in arrays if key.startswith("mid/")} - set(keys.values())
    assert not missing, f"recorded, but not compared: {missing}"
    return [
        Check(name, relative_error(value, arrays[keys[name]]), FORWARD) for name, value in pairs.items() if keys[name] in arrays
    ]


def _tokens(recorded: Recording, look) -> dict:
    """Return what the recordings of methods with a single look have of its tokens."""
    backbone, hidden = recorded.params["backbone"], look["hidden"]
    pairs = {"mid/tokens": look["tokens"]}
    if recorded.model.probe is not None:
        pairs = _probed(recorded, hidden[-1])
    if "mid/patch_embed" in recorded.arrays:
        pairs["mid/patch_embed"] = (hidden[0] - backbone["pos_embed"])[:, 1:]
    if "mid/block/0" in recorded.arrays:
        blocks = recorded.params["adapter"]["backbone"]
        layers = jax.tree.map(lambda stack, last: jnp.concatenate([stack, last[None]]), blocks["blocks"], blocks["last_0"])
        for i, output in enumerate(hidden[1:]):
            adapter = Bottleneck(**{name: leaf[i] for name, leaf in layers.items()})
            pairs |= {f"mid/block/{i}": output, f"mid/adapter/{i}": adapter(output - recorded.arrays[f"mid/adapter/{i}"])}
    return pairs


def _probed(recorded: Recording, last) -> dict:
    """Return what the probe makes of the output of the last block."""

    def steps(model, last):
        tokens = model.tokens_read(last)
        pooled, attention = model.probe.pool(tokens)
        normed = model.probe(tokens, training=True)
        return {"mid/tokens": tokens, "mid/pooled": pooled, "mid/attention": attention, "mid/normed_train": normed}

    return on_one_device(functools.partial(apply, recorded.model, recorded.method, call=steps), recorded.params, last)


def _intermediates(out, transform) -> dict:
    """Return intermediates by the names of the recordings, which put the channels of maps first."""
    first = out["first_look"]["fed_back"]
    selected = out["selection"] * first @ transform
    if first.ndim == 3:
        pairs = {"pass1_tokens": first, "selection_mask": out["selection"], "selected_tokens": selected}
        pairs |= {"pass2_tokens": out["look"]["tokens"], **{f"top_down/{i}": td for i, td in enumerate(out["td"])}}
    else:
        maps = {"pass1_features_nchw": first, "selection_mask": out["selection"], "selected_features_nchw": selected}
        maps |= {f"top_down_nchw/{i}": td for i, td in enumerate(out["td"])}
        pairs = {name: array.transpose(0, 3, 1, 2) for name, array in maps.items()}
    return {f"mid/{name}": array for name, array in pairs.items()}


def _gradients(recorded: Recording, scores, tuned, frozen, name, prefix) -> list[Check]:
    """Compare a loss with the recorded array `name`, and its gradients with those that begin with `prefix`."""
    batch = _weighed(recorded.batch)
    mean = lambda tuned: scores(trees.merge(tuned, frozen), batch, _keys(batch))["loss"].mean()  # noqa: E731
    loss, grads = on_one_device(jax.value_and_grad(mean), tuned)
    after = jax.tree.map(lambda running, step: np.asarray(running) - step, tuned, jax.device_get(grads))
    checks = [Check(name, relative_error(loss, recorded.arrays[name]), FORWARD)] if name in recorded.arrays else []
    return checks + _compare(recorded, grads, prefix) + _compare(recorded, after, "running/after/")


def _compare(recorded: Recording, tree, prefix) -> list[Check]:
    values = to_torch(trees.flat(trees.prune(tree)), recorded.family)
    expected = recorded.group(prefix)
    return [Check(prefix + name, relative_error(values[name], array), BACKWARD) for name, array in expected.items()]


def _sgd(recorded: Recording, scores, mask, tuned, frozen) -> list[Check]:
    """Run six steps of the train step on one device; every second one takes `recorded.turned`."""
    no_decay = ("head/bias",) if "head" in recorded.params else ()
    tx = _sgd_optimizer(schedule=lambda step: SGD_LR, mask=mask, no_decay=no_decay)
    augment = by_token if "weight" in recorded.batch else lambda batch, rng: batch
    one_step = functools.partial(step.train_step, scores=scores, tx=tx, augment=augment)
    # A vmap of size one stands in for `pmap` on one device.
    one_step = jax.vmap(one_step, in_axes=(None, None, 0), out_axes=None, axis_name=parallel.AXIS)
    state = step.init_state(tuned, tx, seed=0)
    seen = []
    for i in range(SGD_STEPS):
        batch = jax.tree.map(lambda a: a[None], recorded.turned if i % 2 else recorded.batch)
        state, metrics = jax.jit(one_step)(state, frozen, batch)
        seen.append(metrics["loss"])
    checks = [Check("sgd/losses", relative_error(jnp.stack(seen), recorded.arrays["sgd/losses"]), BACKWARD)]
    return checks + _compare(recorded, state.tuned, "sgd/final/")


def _evaluation(recorded: Recording) -> list[Check]:
    """Compare the network with running statistics, as an evaluation uses it."""
    logits = jax.jit(functools.partial(apply, recorded.model, recorded.method))(recorded.params, recorded.batch["image"])
    loss = losses.cross_entropy(logits, recorded.batch).mean()
    values = {"eval/out/logits": logits, "eval/out/loss": loss}
    return [Check(name, relative_error(value, recorded.arrays[name]), FORWARD) for name, value in values.items()]


def _merged(recorded: Recording) -> list[Check]:
    """Merge the method's addition into the weights, and compare them and their logits."""
    plain = merged(recorded.method, recorded.params)
    logits = jax.jit(recorded.model.apply)({"params": plain}, losses.inputs(recorded.batch))
    values = to_torch(trees.flat(plain), recorded.family)
    checks = [Check("merged/out/logits", relative_error(logits, recorded.arrays["merged/out/logits"]), FORWARD)]
    expected = recorded.group("merged/params/")
    assert set(values) == set(expected), "the recording has other merged parameters than the network"
    return checks + [Check(f"merged/params/{name}", relative_error(values[name], expected[name]), FORWARD) for name in expected]


def _generate(recorded: Recording) -> list[Check]:
    """Generate greedily, and compare with the release's texts with and without its cache."""
    prompt, *texts = (recorded.arrays[f"generate/{name}"] for name in ("prompt", "greedy_with_cache", "greedy_no_cache"))
    most = texts[0].shape[1] - prompt.shape[1]
    run = functools.partial(generation.generate, recorded.model, recorded.method, recorded.params)
    text = np.concatenate([prompt, *run(prompt.tolist(), most=most, sampling=generation.Sampling())], axis=1)
    names = ("generate/greedy_with_cache", "generate/greedy_no_cache")
    return [Check(name, int((text != recorded_text).sum()), 0) for name, recorded_text in zip(names, texts, strict=True)]


def main(paths: list[str]) -> int:
    """Print a line per quantity and return the exit status."""
    if not paths or any(path.startswith("-") for path in paths):
        print(__doc__)
        return 2
    # By default, accelerators multiply float32 matrices in lower precision than the comparison needs.
    jax.config.update("jax_default_matmul_precision", "highest")
    failed = 0
    for path in paths:
        checks = replay(path)
        failed += sum(not check.passed for check in checks)
        print(path)
        for check in checks:
            print(f"  {'ok  ' if check.passed else 'FAIL'} {check.error:8.1e} <= {check.bound:.0e}  {check.name}")
    print(f"{failed} quantities past their bound" if failed else "all quantities within their bounds")
    return 1 if failed else 0
