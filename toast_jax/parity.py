"""Replays arrays recorded from the PyTorch release through the code that trains.

    python -m toast_jax.parity FILE.npz [FILE.npz ...]

A recording holds inputs, parameters under their PyTorch names, outputs, intermediates, gradients and six SGD steps of one
method, in float32 and without dropout. Sizes and the method are read from it. One line per quantity: its name, the relative
error `max|ours - theirs| / max|theirs|`, and the bound. The exit status is 1 if any bound is passed.
"""

import dataclasses
import functools
import re
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import losses, optim, parallel, train, trees
from toast_jax.backbones.convnext import STRIDES, ConvNeXt
from toast_jax.backbones.vit import ViT
from toast_jax.errors import InputError
from toast_jax.methods import METHODS, Method, tuned_mask
from toast_jax.model import Steered, apply, init
from toast_jax.prompts import Prompts
from toast_jax.rename import from_torch, kind, to_torch
from toast_jax.top_down import ConvTopDown, TopDown

FORWARD, BACKWARD = 1e-5, 1e-4
HEAD_WIDTH = 8  # of every recording of a ViT; the arrays do not tell
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01, "no_decay": ("head/bias",), "clip": 0.0}
SGD_LR, SGD_STEPS = 0.05, 6
VARIATIONAL_WEIGHT = {"ViT": 0.1, "ConvNeXt": 0.01}  # the release's; recordings include it


@dataclasses.dataclass(frozen=True)
class Check:
    """One compared quantity."""

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


def relative_error(ours, theirs) -> float:
    """`max|ours - theirs| / max|theirs|`; infinite when shapes differ or a number is not finite."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def replay(path: str) -> list[Check]:
    """Compares every quantity of a recording of a ViT or a ConvNeXt."""
    try:
        with np.load(path, allow_pickle=False) as file:
            recorded = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a recording ({error}); give the path of an .npz file.") from error
    if not {"params/enc.blocks.0.attn.qkv.weight", "params/enc.stages.0.0.dwconv.weight"} & recorded.keys():
        raise InputError(f"{path} is not a recording of a ViT or a ConvNeXt; no other network can be replayed.")
    batch = {
        "image": recorded["input/images_nchw"].transpose(0, 2, 3, 1),
        "label": recorded["input/labels"].astype(np.int32),
    }
    trainable = set(map(str, recorded["trainable_names"]))
    model, method, params = _network(_group(recorded, "params/"), trainable, batch["image"].shape[1])
    mask = tuned_mask(params, method)
    tuned, frozen = trees.split(params, mask)
    checks = [
        Check("count/total", abs(trees.count(params) - int(recorded["count/total"])), 0),
        Check("count/trainable", abs(trees.count(tuned) - int(recorded["count/trainable"])), 0),
    ]
    checks += _forward(model, method, params, batch, recorded)
    checks += _gradients(losses.tune(model, method), tuned, frozen, batch, _group(recorded, "grad/"), "grad/")
    if "var/loss" in recorded:
        weight = VARIATIONAL_WEIGHT[type(model.backbone).__name__]
        scores = losses.pretune(model, method, task_weight=0.0, variational_weight=weight)
        value = jax.jit(lambda params: scores(params, batch)["loss"].mean())(params)
        checks.append(Check("var/loss", relative_error(value, recorded["var/loss"]), FORWARD))
        checks += _gradients(scores, tuned, frozen, batch, _group(recorded, "var/grad/"), "var/grad/")
    if "sgd/losses" in recorded:
        checks += _sgd(losses.tune(model, method), mask, tuned, frozen, batch, recorded)
    return checks


def _group(recorded, prefix):
    names = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
    return {name.removeprefix("enc."): value for name, value in names.items()}


def _network(state, trainable, image_size) -> tuple[Steered, Method, dict]:
    """The network of the recorded sizes, the row of its method, and its parameters."""
    method, arrays = _row(state, {name.removeprefix("enc.") for name in trainable})
    model = _build(arrays, method)
    shapes = jax.eval_shape(lambda: init(model, method, jax.random.key(0), image_size))
    params = trees.nested({path: jnp.asarray(array) for path, array in arrays.items()})
    assert trees.shapes(params) == trees.shapes(shapes), "the recording has other parameters than the network"
    return model, method, params


def _row(state, trainable) -> tuple[Method, dict]:
    """The row whose created and tuned parameters are the recorded ones, and the parameters by our paths."""
    tuned_blocks = len({name.split(".")[1] for name in trainable if name.startswith("blocks.")})
    for name, method in METHODS.items():
        arrays, unknown = from_torch(state, max(1, tuned_blocks) if name == "partial" else 1)
        assert not unknown, f"names without a line in the rename table: {unknown}"
        created = {path.split("/")[0] for path in arrays} - {"backbone", "head"}
        if created != {part for part in (method.signal, "lora" if method.lora else "") if part}:
            continue
        tuned, _ = trees.split(trees.nested(arrays), tuned_mask(trees.nested(arrays), method))
        if set(to_torch(trees.flat(trees.prune(tuned)))) == trainable:
            return method, arrays
    raise InputError("No method has the tuned parameters of the recording.")


def _build(arrays, method) -> Steered:
    backbone = {"ViT": _vit, "ConvNeXt": _convnext}[kind(arrays)](arrays)
    signal = {}
    if method.signal == "top_down" and isinstance(backbone, ConvNeXt):
        signal = {"top_down": ConvTopDown((3, *backbone.widths), STRIDES)}
    elif method.signal == "top_down":
        signal = {"top_down": TopDown(backbone.depth, backbone.width)}
    if method.signal == "prompts":
        layers, num, _ = arrays["prompts/tokens"].shape
        signal = {"prompts": Prompts(layers, num, backbone.width, backbone.patch)}
    return Steered(backbone, arrays["head/bias"].shape[0], **signal)


def _vit(arrays) -> ViT:
    width = arrays["backbone/cls_token"].shape[-1]
    last = len({path.split("/")[1] for path in arrays if path.startswith("backbone/last_")})
    return ViT(
        width=width,
        depth=last + len(arrays.get("backbone/blocks/norm1/scale", ())),
        num_heads=width // HEAD_WIDTH,
        patch=round((arrays["backbone/patch_embed/kernel"].shape[0] / 3) ** 0.5),
        grid=round((arrays["backbone/pos_embed"].shape[1] - 1) ** 0.5),
        last_blocks=last,
    )


def _convnext(arrays) -> ConvNeXt:
    last = len({path.split("/")[2] for path in arrays if path.startswith("backbone/stages_3/last_")})
    stages = [f"backbone/stages_{i}" for i in range(len(STRIDES))]
    depths = [len(arrays.get(f"{stage}/blocks/gamma", ())) for stage in stages]
    return ConvNeXt(
        depths=(*depths[:-1], depths[-1] + last),
        widths=tuple(len(arrays[f"{stage}/downsample/conv/bias"]) for stage in stages),
        last_blocks=last,
    )


def _forward(model, method, params, batch, recorded) -> list[Check]:
    logits = jax.jit(functools.partial(apply, model, method))(params, batch["image"])
    explained, out = jax.jit(functools.partial(apply, model, method, call="explain"))(params, batch["image"])
    loss = losses.cross_entropy(logits, batch).mean()
    pairs = {"out/logits": logits, "out/logits (with intermediates)": explained, "out/loss": loss}
    if "selection" in out:
        pairs |= _intermediates(out, params["top_down"]["transform"])
    keys = {name: name.split(" ")[0] for name in pairs}
    missing = {key for key in recorded if key.startswith("mid/")} - set(keys.values())
    assert not missing, f"recorded, but not compared: {missing}"
    return [
        Check(name, relative_error(value, recorded[keys[name]]), FORWARD)
        for name, value in pairs.items()
        if keys[name] in recorded
    ]


def _intermediates(out, transform) -> dict:
    """By the names of the recordings, which have the channels of maps first."""
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


def _gradients(scores, tuned, frozen, batch, theirs, prefix) -> list[Check]:
    grads = jax.jit(jax.grad(lambda tuned: scores(trees.merge(tuned, frozen), batch)["loss"].mean()))(tuned)
    return _compare(grads, theirs, prefix)


def _compare(tree, theirs, prefix) -> list[Check]:
    ours = to_torch(trees.flat(trees.prune(tree)))
    return [Check(prefix + name, relative_error(ours[name], array), BACKWARD) for name, array in theirs.items()]


def _sgd(scores, mask, tuned, frozen, batch, recorded) -> list[Check]:
    """Six steps of the real train step on one device; the second, fourth and sixth batch is the first one turned around."""
    tx = optim.optimizer(schedule=lambda step: SGD_LR, mask=mask, **SGD)
    step = functools.partial(train.train_step, scores=scores, tx=tx)
    # One device, without asking the machine for one.
    step = jax.vmap(step, in_axes=(None, None, 0), out_axes=None, axis_name=parallel.AXIS)
    state = train.init_state(tuned, tx, seed=0)
    turned = {"image": 0.5 * batch["image"][::-1], "label": batch["label"][::-1]}
    seen = []
    for i in range(SGD_STEPS):
        state, metrics = jax.jit(step)(state, frozen, jax.tree.map(lambda a: a[None], turned if i % 2 else batch))
        seen.append(metrics["loss"])
    checks = [Check("sgd/losses", relative_error(jnp.stack(seen), recorded["sgd/losses"]), BACKWARD)]
    return checks + _compare(state.tuned, _group(recorded, "sgd/final/"), "sgd/final/")


def main(paths: list[str]) -> int:
    """Prints one line per quantity and returns the exit status."""
    if not paths or any(re.match("-", path) for path in paths):
        print(__doc__)
        return 2
    # Without this, accelerators multiply float32 matrices in fewer bits than the comparison needs.
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


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as message:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
