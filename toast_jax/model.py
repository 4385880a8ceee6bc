"""A steered network: look once, form the signal, look again, classify."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from toast_jax import lora, methods
from toast_jax.backbones import convnext, vit
from toast_jax.data.images import normalize
from toast_jax.errors import InputError, choose
from toast_jax.linear import Linear
from toast_jax.methods import Method
from toast_jax.prompts import Prompts
from toast_jax.top_down import ConvTopDown, TopDown


class Steered(nn.Module):
    """Backbone, signal and head as one module.

    Without a signal the network looks once. Prompts enter that one look. The top-down signal is formed from a first look and
    steers a second one with the same weights; the first look depends on no tuned parameter, so no gradient flows through it.

    Attributes:
      backbone: a module with `__call__` and `pooled` (see `backbones.vit.ViT` and `backbones.convnext.ConvNeXt`).
      num_classes: C.
      head_init: initializer of the head's kernel.
      top_down: a `top_down.TopDown` or `ConvTopDown`, or None for a network that looks once.
      prompts: a `prompts.Prompts`, or None.
    """

    backbone: nn.Module
    num_classes: int
    # The release's. Few classes make it large, and its first gradients then spoil what was pre-tuned.
    head_init: Callable = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    top_down: nn.Module | None = None
    prompts: nn.Module | None = None

    def setup(self):
        # The release's bias starts every class near probability 0.01.
        bias_init = nn.initializers.constant(-math.log(99.0))
        self.head = Linear(self.num_classes, kernel_init=self.head_init, bias_init=bias_init)

    def __call__(self, images: jax.Array | None, rng: jax.Array | None = None, known: dict | None = None) -> jax.Array:
        """Logits `[B, C]`, float32, computing only what they need.

        Args:
          images: `[B, S, S, 3]`, uint8 (normalised here) or floats that are normalised already.
          rng: `[B]` keys, one per example, for drop-path and prompt dropout; None at evaluation.
          known: what `known` returned for these images and keys, so that it is not computed again. The head needs no images
            beside `pooled`.
        """
        if known and "pooled" in known:
            return self.head(known["pooled"].astype(jnp.float32))
        images = normalize(images)
        inputs, _ = self._signal(images, rng, known)
        return self.head(self.backbone.pooled(images, **inputs, rng=_of_pass(rng, 2)).astype(jnp.float32))

    def known(self, images: jax.Array, rng: jax.Array | None = None) -> dict:
        """What the logits need of the frozen backbone alone, and stays as it is while `methods.knows` says so.

        Returns:
          `pooled [B, D]` of a network that looks once, `tokens` (and `fed_back`, where that is another array) of the first look
          of one with a top-down signal, nothing of one with prompts.
        """
        images = normalize(images)
        if self.prompts is not None:
            return {}
        if self.top_down is None:
            return {"pooled": self.backbone.pooled(images, rng=_of_pass(rng, 2))}
        _, first = self.backbone(images, rng=_of_pass(rng, 1))
        same = first["fed_back"] is first["tokens"]
        return {"tokens": first["tokens"]} if same else {name: first[name] for name in ("tokens", "fed_back")}

    def explain(self, images: jax.Array, rng: jax.Array | None = None) -> tuple[jax.Array, dict]:
        """The logits of `__call__`, and every named intermediate.

        Returns:
          logits `[B, C]` and a dict: `look` (the backbone's dict of the look that was classified) and, with a top-down signal,
          `first_look` (the same of the first), `selection` and `td` (see the top-down module).
        """
        images = normalize(images)
        inputs, out = self._signal(images, rng)
        pooled, look = self.backbone(images, **inputs, rng=_of_pass(rng, 2))
        return self.head(pooled.astype(jnp.float32)), {**out, "look": look}

    def classify_map(self, last: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """The logits `[B, C]` that follow from the last map of a ConvNeXt, `[B, h, w, C_3]` (`hidden[-1]` of its look)."""
        return self.head(self.backbone.pooled_map(last).astype(jnp.float32))

    def _signal(self, images, rng, known=None):
        """The extra inputs of the final look, and what led to them."""
        if self.prompts is not None:
            return {"prompts": self.prompts(_of_pass(rng, 0))}, {}
        if self.top_down is None:
            return {}, {}
        first = known or self.backbone(images, rng=_of_pass(rng, 1))[1]
        first = jax.lax.stop_gradient(first)
        td, selection = self.top_down(first["tokens"], first.get("fed_back", first["tokens"]))
        return {"td": td}, {"first_look": first, "selection": selection, "td": td}


def _of_pass(rng, index):
    """Independent keys `[B]` for the prompts (0), the first look (1) and the final look (2)."""
    return None if rng is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(rng)


_FAMILIES = {"vit": vit.build, "convnext": convnext.build}
# What `config.head.start` changes in the network; a classifier is read from a file later.
_HEAD_STARTS = {"random": {}, "zeros": {"head_init": nn.initializers.zeros_init()}, "classifier": {}}


def build(config, num_classes: int) -> tuple[Steered, Method]:
    """The network and the row that a config asks for.

    Args:
      config: fields `backbone`, `head`, `data.image_size`, `prompts`, `tuned_blocks`, and those of `methods.row`.
      num_classes: C.

    Raises:
      InputError: an unknown method, backbone size or pooling, an image size that the backbone cannot take, or a method that is
        not for it.
    """
    if config.lora.rank < 1:
        raise InputError(f"config.lora.rank is {config.lora.rank}; it has to be 1 or more.")
    method = methods.row(config)
    backbone = choose("config.backbone.family", config.backbone.family, _FAMILIES)(
        config.backbone,
        image_size=config.data.image_size,
        last_blocks=config.tuned_blocks if config.method == "partial" else 1,
    )
    top_down = _top_down(backbone) if method.signal == "top_down" else None
    prompts = _prompts(backbone, config.prompts) if method.signal == "prompts" else None
    start = choose("config.head.start", config.head.start, _HEAD_STARTS)
    return Steered(backbone, num_classes, **start, top_down=top_down, prompts=prompts), method


def _top_down(backbone):
    if isinstance(backbone, convnext.ConvNeXt):
        return ConvTopDown((3, *backbone.widths), convnext.STRIDES, backbone.dtype)
    return TopDown(backbone.depth, backbone.width, backbone.dtype)


def _prompts(backbone, fields):
    if isinstance(backbone, convnext.ConvNeXt):
        raise InputError(
            "Method vpt adds prompt tokens, which a ConvNeXt has no place for; use another --config.method, or a ViT."
        )
    layers = backbone.depth if fields.deep else 1
    return Prompts(layers, fields.num, backbone.width, backbone.patch, fields.dropout)


def init(model: Steered, method: Method, rng: jax.Array, image_size: int) -> dict:
    """Creates all parameters: `backbone`, `head` and, if the row has them, `top_down`, `prompts` and `lora`.

    Wrap it in `jax.eval_shape` for shapes alone.
    """
    network, deltas = jax.random.split(rng)
    params = model.init(network, jnp.zeros((1, image_size, image_size, 3)))["params"]
    if method.lora:
        params["lora"] = lora.init(deltas, params, method.lora, method.lora_rank)
    return params


def apply(model: Steered, method: Method, params: dict, images: jax.Array | None, rng=None, call=None, **given):
    """Applies a network to images with all parameters of `init`; `call` names another method than `Steered.__call__`."""
    network = {name: tree for name, tree in params.items() if name != "lora"}
    if method.lora:
        network = lora.attach(network, params["lora"], method.lora, method.lora_alpha / method.lora_rank)
    return model.apply({"params": network}, images, rng, method=call, **given)
