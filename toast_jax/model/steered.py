"""A steered network: look once, form the signal, look again, predict."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from toast_jax.errors import choose
from toast_jax.model import lora, methods
from toast_jax.model.backbones import convnext, llama, vit
from toast_jax.model.layers.linear import Linear
from toast_jax.model.methods import Method
from toast_jax.model.prompts import Prompts
from toast_jax.model.top_down import ConvTopDown, TopDown

# The release's. Few classes make it large, and its first gradients then spoil what was pre-tuned.
_RANDOM = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Also the release's: it starts every class near probability 0.01.
_UNLIKELY = nn.initializers.constant(-math.log(99.0))


def classifier(num_classes: int, kernel_init: Callable = _RANDOM) -> Linear:
    """The head of a network that was trained on another task than the one it is steered to."""
    return Linear(num_classes, kernel_init=kernel_init, bias_init=_UNLIKELY)


class Steered(nn.Module):
    """Backbone, signal and head as one module.

    Without a signal the network looks once. Prompts enter that one look. The top-down signal is formed from a first look and
    steers a second one with the same weights; the first look depends on no tuned parameter, so no gradient flows through it.

    Attributes:
      backbone: a module with `__call__`, `pooled` and `example` (see `backbones.vit.ViT`, `backbones.convnext.ConvNeXt` and
        `backbones.llama.LLaMA`), which says what `inputs` are.
      head: maps what `pooled` gives to logits, or None for a backbone with `logits` of its own.
      top_down: a `top_down.TopDown` or `ConvTopDown`, or None for a network that looks once.
      prompts: a `prompts.Prompts`, or None.
    """

    backbone: nn.Module
    head: nn.Module | None = None
    top_down: nn.Module | None = None
    prompts: nn.Module | None = None

    def __call__(self, inputs, rng: jax.Array | None = None, features: dict | None = None) -> jax.Array:
        """Logits, float32, computing only what they need.

        Args:
          inputs: images `[B, S, S, 3]`, or text as a `LLaMA` takes it.
          rng: `[B]` keys, one per example, for drop-path and prompt dropout; None at evaluation.
          features: what `frozen_features` returned for these inputs and keys, so that it is not computed again. With `pooled`
            among them `inputs` may be None.

        Returns:
          `[B, C]`, or `[B, N, V]` for every next token of a text.
        """
        if features and "pooled" in features:
            return self._logits(features["pooled"])
        extra, _ = self._signal(inputs, rng, features)
        return self._logits(self.backbone.pooled(inputs, **extra, rng=_of_pass(rng, 2)))

    def frozen_features(self, inputs, rng: jax.Array | None = None) -> dict:
        """Computes the part of the network that depends on the frozen backbone alone; see `train.feature_cache.features_of`.

        Returns:
          `pooled [B, D]` of a network that looks once, `tokens` (and `fed_back`, where that is another array) of the first look
          of one with a top-down signal, nothing of one with prompts.
        """
        if self.prompts is not None:
            return {}
        if self.top_down is None:
            return {"pooled": self.backbone.pooled(inputs, rng=_of_pass(rng, 2))}
        _, first = self.backbone(inputs, rng=_of_pass(rng, 1))
        same = first["fed_back"] is first["tokens"]
        return {"tokens": first["tokens"]} if same else {name: first[name] for name in ("tokens", "fed_back")}

    def explain(self, inputs, rng: jax.Array | None = None) -> tuple[jax.Array, dict]:
        """The logits of `__call__`, and every named intermediate.

        Returns:
          logits and a dict: `look` (the backbone's dict of the look that was read) and, with a top-down signal, `first_look`
          (the same of the first), `selection` and `td` (see the top-down module).
        """
        extra, out = self._signal(inputs, rng)
        pooled, look = self.backbone(inputs, **extra, rng=_of_pass(rng, 2))
        return self._logits(pooled), {**out, "look": look}

    def classify_map(self, last: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """The logits `[B, C]` that follow from the last map of a ConvNeXt, `[B, h, w, C_3]` (`hidden[-1]` of its look)."""
        return self._logits(self.backbone.pooled_map(last))

    def extend(self, tokens: jax.Array, positions: jax.Array, caches: dict, last: jax.Array) -> tuple[jax.Array, dict]:
        """Of a language model: the logits after the next tokens of sequences whose earlier ones are in caches.

        The signal of a token is formed from its own first look alone, so what was fed back to earlier ones stays as it was.

        Args:
          tokens, positions: `[B, M]`, see `LLaMA.extend`.
          caches: a cache for each look, see `caches`.
          last: `[B]`, which of the M tokens of a sequence to predict after.

        Returns:
          logits `[B, V]`, and the caches with these tokens.
        """
        td, caches = None, dict(caches)
        if self.top_down is not None:
            first, caches["first_look"] = self.backbone.extend(tokens, positions, caches["first_look"])
            td, _ = self.top_down(first, first)
        x, caches["look"] = self.backbone.extend(tokens, positions, caches["look"], td)
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        return self._logits(self.backbone.norm(x)), caches

    def caches(self, rows: int, length: int) -> dict:
        """Empty caches for `extend`: of the look that is read, and of the first one if there are two."""
        looks = ("look",) if self.top_down is None else ("first_look", "look")
        return {name: self.backbone.cache(rows, length) for name in looks}

    def _logits(self, pooled):
        return self.backbone.logits(pooled) if self.head is None else self.head(pooled)

    def _signal(self, inputs, rng, features=None):
        """The extra inputs of the final look, and what led to them."""
        if self.prompts is not None:
            return {"prompts": self.prompts(_of_pass(rng, 0))}, {}
        if self.top_down is None:
            return {}, {}
        first = features or self.backbone(inputs, rng=_of_pass(rng, 1))[1]
        first = jax.lax.stop_gradient(first)
        td, selection = self.top_down(first["tokens"], first.get("fed_back", first["tokens"]))
        return {"td": td}, {"first_look": first, "selection": selection, "td": td}


def _of_pass(rng, index):
    """Independent keys `[B]` for the prompts (0), the first look (1) and the final look (2)."""
    return None if rng is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(rng)


_FAMILIES = {"vit": vit.build, "convnext": convnext.build, "llama": llama.build}
# What `config.head.start` changes in the network; a classifier is read from a file later.
HEAD_STARTS = {"random": {}, "zeros": {"kernel_init": nn.initializers.zeros_init()}, "classifier": {}}


def build(config, num_classes: int) -> tuple[Steered, Method]:
    """The network and the row that a config asks for.

    Args:
      config: fields `backbone`, `head`, `data.image_size`, `prompts`, `tuned_blocks`, and those of `methods.row`; of a language
        model, `backbone` and those of `methods.row` alone.
      num_classes: C; a language model predicts its own vocabulary.

    Raises:
      InputError: an unknown method, backbone size or pooling; `check.check` tells of the rest.
    """
    method = methods.row(config)
    build_backbone = choose("config.backbone.family", config.backbone.family, _FAMILIES)
    if build_backbone is llama.build:
        backbone, head = llama.build(config.backbone), None
    else:
        backbone = build_backbone(
            config.backbone,
            image_size=config.data.image_size,
            last_blocks=config.tuned_blocks if config.method == "partial" else 1,
        )
        head = classifier(num_classes, **choose("config.head.start", config.head.start, HEAD_STARTS))
    top_down = _top_down(backbone) if method.signal == "top_down" else None
    prompts = _prompts(backbone, config.prompts) if method.signal == "prompts" else None
    return Steered(backbone, head, top_down=top_down, prompts=prompts), method


def _top_down(backbone):
    if isinstance(backbone, convnext.ConvNeXt):
        return ConvTopDown((3, *backbone.widths), convnext.STRIDES, backbone.dtype)
    return TopDown(backbone.depth, backbone.width, backbone.dtype)


def _prompts(backbone, fields):
    layers = backbone.depth if fields.deep else 1
    return Prompts(layers, fields.num, backbone.width, backbone.patch, fields.dropout)


def init(model: Steered, method: Method, rng: jax.Array) -> dict:
    """Creates all parameters: `backbone` and, if the network or the row has them, `head`, `top_down`, `prompts` and `lora`.

    Wrap it in `jax.eval_shape` for shapes alone.
    """
    network, deltas = jax.random.split(rng)
    params = model.init(network, model.backbone.example)["params"]
    if method.lora:
        params["lora"] = lora.init(deltas, params, method.lora, method.lora_rank)
    return params


def apply(model: Steered, method: Method, params: dict, *inputs, call=None, **given):
    """Applies a network to inputs with all parameters of `init`; `call` names another method than `Steered.__call__`."""
    network = {name: tree for name, tree in params.items() if name != "lora"}
    if method.lora:
        network = lora.attach(network, params["lora"], method.lora, method.lora_alpha / method.lora_rank)
    return model.apply({"params": network}, *inputs, method=call, **given)
