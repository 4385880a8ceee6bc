"""Replay recordings of semantic segmentation: maps of AbSViT's ViT, heads of mmsegmentation, position embeddings, metrics.

A network's recording holds images, parameters under their PyTorch names, the maps of some blocks, intermediates, and gradients
of the product of the maps with probes. Some networks of AbSViT differentiate both looks; these are composed here of the same
parts.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.model.additions.prompts import Prompts
from toast_jax.model.layers.batch_norm import STATISTICS
from toast_jax.model.methods import METHODS
from toast_jax.model.segmentation import heads, losses
from toast_jax.model.segmentation.segmenter import Segmenter, segment
from toast_jax.testing.comparison import Check, relative_error
from toast_jax.testing.one_device import on_one_device
from toast_jax.testing.recording import group
from toast_jax.train.segmentation import metrics
from toast_jax.weights.containers import Arrays
from toast_jax.weights.rename import from_torch, kind, recognized, to_torch

FORWARD, GRADIENTS = 1e-5, 1e-4
HEAD_WIDTH = 8  # of attention in all recordings
NORMED_GRADIENTS = 1e-3  # through batch statistics, of few values in the smallest map of a pyramid
_SIGNS = ("config/out_indices", "config/aux_weight", "input/pos_embed", "confusion")


def is_recording(arrays: Arrays) -> bool:
    """Return whether arrays are a recording of segmentation."""
    return any(sign in arrays for sign in _SIGNS)


def replay(arrays: Arrays) -> list[Check]:
    """Compare every quantity of a recording."""
    if "input/pos_embed" in arrays:
        return _positions(arrays)
    if "confusion" in arrays:
        return [check for prefix in ("", "predicted_absent/") for check in _metrics(arrays, prefix)]
    if "config/aux_weight" not in arrays:
        return _Network(arrays).checks()
    if "head/input_0" in arrays:
        return [check for training in (False, True) for check in _Heads(arrays, training, prefix="train/" * training).checks()]
    return _Heads(arrays, training=True, network=_Network(arrays)).checks()


def _last(maps_nchw) -> np.ndarray:
    return maps_nchw.transpose(0, 2, 3, 1)


def _first(maps) -> np.ndarray:
    return np.asarray(maps).transpose(0, 3, 1, 2)


def _positions(arrays: Arrays) -> list[Check]:
    family, embed = kind(["backbone/cls_token"]), arrays["input/pos_embed"]  # positions of a class token and patches
    grid = round((embed.shape[1] - 1) ** 0.5)
    model = family.module(width=embed.shape[2], depth=1, num_heads=1, patch=1, grid=grid)
    checks = []
    for name, recorded in group(arrays, "out/").items():
        rows, columns = map(int, name.split("x"))
        _, params = family.of_side(model, {"pos_embed": jnp.asarray(embed)}, (rows, columns))
        checks.append(Check(f"out/{name}", relative_error(params["pos_embed"], recorded), FORWARD))
    return checks


def _metrics(arrays: Arrays, prefix: str) -> list[Check]:
    recorded = group(arrays, prefix)
    predictions, labels = recorded["input/predictions"], recorded["input/labels"]
    counts = metrics.confusion(labels, predictions, int(arrays["config/num_classes"]), int(arrays["config/ignore_index"]))
    other = metrics.scores(counts, label_absent="nan")
    values = {"confusion": counts, **metrics.scores(counts)}
    values |= {"iou_label_absent_nan": other["iou"], "mean_iou_label_absent_nan": other["mean_iou"]}
    return [Check(prefix + name, _difference(value, recorded[name]), 1e-12) for name, value in values.items()]


def _difference(value, recorded) -> float:
    """Return the largest difference of arrays that are NaN at the same places, else infinity."""
    value, recorded = np.asarray(value, np.float64), np.asarray(recorded, np.float64)
    if value.shape != recorded.shape or (np.isnan(value) != np.isnan(recorded)).any():
        return float("inf")
    return float(np.nanmax(np.abs(value - recorded)))


class _Network:
    """The backbone of a recording, steered as it says, with its parameters."""

    def __init__(self, arrays: Arrays):
        self.arrays = arrays
        state = group(arrays, "params/")
        family = recognized(state)
        assert family, "the recording is of no family here"
        self.family = family
        by_path, unknown = from_torch(state, last_blocks=1)
        assert not unknown, f"names without a line in the rename table: {unknown}"
        self.model, self.trainable = self._build(by_path), {str(name) for name in arrays["trainable_names"]}
        self.count = sum(array.size for array in by_path.values())
        if steered := self.model.top_down is not None:
            by_path["top_down/transform"] = np.eye(self.model.backbone.width, dtype=np.float32)  # the reference has none
        self.method = METHODS["toast" if steered else "vpt" if self.model.prompts else "linear"]
        self.params = trees.nested({path: jnp.asarray(array) for path, array in by_path.items()})
        # Where more is tuned than the top-down module, the reference differentiates the first look too.
        tuned_first = steered and not all(re.match(r"decoders\.|prompt$", name) for name in self.trainable)
        self.looks = _two_differentiable_looks if tuned_first or self.model.prompts and steered else _looks

    def _build(self, by_path) -> Segmenter:
        backbone = self.family.sized(by_path, HEAD_WIDTH)
        parts: dict[str, Any] = {"map_sites": tuple(map(int, self.arrays["config/out_indices"]))}
        if "top_down/prior" in by_path:
            parts["top_down"] = self.family.top_down(backbone, self.family.sites(backbone))
        if "prompts/tokens" in by_path:
            layers, num, _ = by_path["prompts/tokens"].shape
            parts["prompts"] = Prompts(layers, num, self.family.width(backbone), self.family.image_multiple(backbone))
        return Segmenter(backbone, **parts)

    def run(self, params, images):
        """Return the maps and the intermediates of the looks at images."""
        return segment(self.model, self.method, params, images, call=self.looks)

    def gradients(self, loss: Callable) -> dict[str, Any]:
        """Return gradients of `loss(params)` by PyTorch names."""
        gradients = on_one_device(jax.grad(loss), self.params)
        gradients["top_down"].pop("transform", None) if "top_down" in gradients else None
        return to_torch(trees.flat(gradients), self.family)

    def checks(self) -> list[Check]:
        arrays, images = self.arrays, _last(self.arrays["input/images_nchw"])
        maps, out = on_one_device(self.run, self.params, images)
        probes = [_last(arrays[f"input/probe_{i}"]) for i in range(len(maps))]

        def product(params):
            return sum((x * probe).sum() for x, probe in zip(self.run(params, images)[0], probes, strict=True))

        parts = [np.asarray(x) * probe for x, probe in zip(maps, probes, strict=True)]
        total = sum(part.sum() for part in parts)
        scale = sum(np.abs(part).sum() for part in parts)
        tuned = [array for name, array in group(arrays, "params/").items() if name in self.trainable]
        checks = [
            Check("count/total", abs(self.count - int(arrays["count/total"])), 0),
            Check("count/trainable", abs(sum(array.size for array in tuned) - int(arrays["count/trainable"])), 0),
            *(self._compare(f"out/map_{i}", _first(x)) for i, x in enumerate(maps)),
            Check("out/probe_sum", abs(float(total - arrays["out/probe_sum"])) / float(scale), FORWARD),
        ]
        first = out.get("first_look", out["look"])
        values = {"tokens_first": first["tokens"], "tokens_second": out["look"]["tokens"]}
        if "selection" in out:
            values |= {"selection": out["selection"], "selected_tokens": out["selection"] * first["tokens"], "td": out["td"]}
        recorded = group(arrays, "mid/")
        checks += [self._compare(f"mid/{name}", value) for name, value in values.items() if name in recorded]
        assert recorded.keys() <= values.keys(), f"recorded, but not compared: {recorded.keys() - values.keys()}"
        if self.trainable:
            gradients = self.gradients(product)
            checks += [self._compare(f"grad/{name}", gradients[name], GRADIENTS) for name in group(arrays, "grad/")]
        if "rect/input/images_nchw" in arrays:
            maps, _ = on_one_device(self.run, self.params, _last(arrays["rect/input/images_nchw"]))
            checks += [self._compare(f"rect/out/map_{i}", _first(x)) for i, x in enumerate(maps)]
        return checks

    def _compare(self, name, value, bound=FORWARD) -> Check:
        return Check(name, relative_error(value, self.arrays[name]), bound)


# Modules of a head by mmsegmentation's names, the first part of a path here.
_POOL = {f"psp_modules.{i}.1": f"pool_{side}" for i, side in enumerate(heads.POOLS)}
_CONVS = {"bottleneck": "bottleneck", "fpn_bottleneck": "fusion", "convs.0": "conv", **_POOL}
_LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}


def _path(name: str) -> str:
    """Return the path of a head's parameter by its name in mmsegmentation and transformers."""
    module, _, leaf = name.rpartition(".")
    if module == "classifier":
        return f"classifier/linear/{'kernel' if leaf == 'weight' else 'bias'}"
    module, _, part = module.rpartition(".")
    module = re.sub(r"^fpn_convs\.", "level_", re.sub(r"^lateral_convs\.", "lateral_", _CONVS.get(module, module)))
    return f"{module}/conv/kernel" if part == "conv" else f"{module}/norm/{_LEAVES[leaf]}"


def _of_torch(name: str, array: np.ndarray):
    """Return a kernel with its axes in the order here, and other arrays as they are."""
    if array.ndim != 4:
        return jnp.asarray(array)
    kernel = array.transpose(2, 3, 1, 0)
    return jnp.asarray(kernel[0, 0] if name.startswith("classifier") else kernel)


class _Heads:
    """Both heads of a recording, on recorded maps or on those of a network."""

    def __init__(self, arrays: Arrays, training: bool, prefix: str = "", network: _Network | None = None):
        self.arrays, self.training, self.prefix, self.network = arrays, training, prefix, network
        own, second = (group(arrays, f"{part}/params/") for part in ("head", "aux"))
        self.head = heads.UperNet(
            num_classes=len(own["classifier.bias"]),
            channels=own["classifier.weight"].shape[1],
            auxiliary_channels=second["classifier.weight"].shape[1],
            auxiliary_map=int(arrays["config/aux_in_index"]),
            dropout=0.0,
        )
        self.names = {_path(name): f"head/{name}" for name in own}
        self.names |= {f"auxiliary/{_path(name)}": f"aux/{name}" for name in second}
        head = {_path(name): _of_torch(name, array) for name, array in own.items()}
        head |= {f"auxiliary/{_path(name)}": _of_torch(name, array) for name, array in second.items()}
        inputs = {name: jnp.asarray(_last(array)) for name, array in group(arrays, "head/").items() if name[:6] == "input_"}
        self.params = {"head": trees.nested(head), **({"network": network.params} if network else {"maps": inputs})}

    def run(self, params):
        """Return the logits of both heads, channels last."""
        if self.network:
            maps, _ = self.network.run(params["network"], _last(self.arrays["input/images_nchw"]))
        else:
            maps = tuple(params["maps"][f"input_{i}"] for i in range(len(params["maps"])))
        keys = jax.random.split(jax.random.key(0), len(maps[0])) if self.training else None
        return self.head.apply({"params": params["head"]}, maps, keys)

    def losses(self, logits) -> dict[str, jax.Array]:
        """Return the losses by their recorded names; `loss/` is the mean over counted pixels, `loss_all_pixels/` over all."""
        labels = self.arrays["input/labels"]
        of_all = [losses.of_pixels(each, labels)[0].mean() for each in logits]
        values = dict(zip(("decode", "aux"), of_all, strict=True))
        values["total"] = values["decode"] + float(self.arrays["config/aux_weight"]) * values["aux"]
        counted = (labels != IGNORED).mean()
        means = {f"loss/{name}": value / counted for name, value in values.items()}
        return means | {f"loss_all_pixels/{name}": value for name, value in values.items()}

    def checks(self) -> list[Check]:
        logits = on_one_device(self.run, self.params)
        pairs: dict[str, Any] = {f"{part}/out/logits": _first(each) for part, each in zip(("head", "aux"), logits, strict=True)}
        pairs |= self.losses(logits)
        bounds = dict.fromkeys(pairs, FORWARD)
        gradients = on_one_device(jax.grad(lambda params: self.losses(self.run(params))["loss/total"]), self.params)
        by_name = {self.names[path]: (path, leaf) for path, leaf in trees.flat(gradients["head"]).items()}
        running = {}
        for name, (path, leaf) in by_name.items():
            if re.fullmatch(STATISTICS, path):
                running[f"running/after/{name}"] = trees.flat(self.params["head"])[path] - leaf
            else:
                pairs[f"grad/{name}"] = self._to_torch(name, leaf)
        if self.network:
            gradients["network"].get("top_down", {}).pop("transform", None)
            own = to_torch(trees.flat(gradients["network"]), self.network.family)
            pairs |= {f"grad/{name}": array for name, array in own.items()}
        else:
            pairs |= {f"grad/{name}": _first(leaf) for name, leaf in gradients["maps"].items()}
        bounds |= dict.fromkeys(pairs.keys() - bounds.keys(), NORMED_GRADIENTS if self.training else GRADIENTS)
        checks = [
            Check(self.prefix + name, relative_error(value, self.arrays[self.prefix + name]), bounds[name])
            for name, value in pairs.items()
            if self.prefix + name in self.arrays
        ]
        if self.training:
            checks += [Check(name, relative_error(value, self.arrays[name]), FORWARD) for name, value in running.items()]
        return checks

    def _to_torch(self, name, leaf):
        shape = self.arrays[name.replace("/", "/params/", 1)].shape
        if len(shape) != 4:
            return leaf
        return np.asarray(leaf).reshape(*shape[2:], *leaf.shape[-2:]).transpose(3, 2, 0, 1)


def _looks(model: Segmenter, images, rng=None):
    _, out = model.looks(images, rng, maps=False)
    return model.maps_of(out), out


def _two_differentiable_looks(model: Segmenter, images, rng=None):
    """Look twice with gradients through both looks, and with prompts in both if there are any."""
    assert model.top_down is not None
    prompts: dict[str, Any] = {"prompts": model.prompts()} if model.prompts else {}
    _, first = model.backbone(images, **prompts, maps=False)
    td, selection = model.top_down(first["tokens"], first["tokens"])
    _, second = model.backbone(images, td=td, **prompts, maps=False)
    out = {"first_look": first, "selection": selection, "td": td, "look": second}
    return model.maps_of(out), out
