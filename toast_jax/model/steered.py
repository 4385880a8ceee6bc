"""A steered network: look once, form the signal, look again, predict."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from toast_jax.errors import InputError, choose
from toast_jax.model import families, methods
from toast_jax.model.additions.probe import AttentionProbe
from toast_jax.model.additions.prompts import Prompts
from toast_jax.model.layers.arrays import Array, Inputs, Keys
from toast_jax.model.layers.linear import Linear
from toast_jax.model.methods import LAST_BLOCKS, Method

# As in the release. With few classes these weights are large, and the first gradients can damage the pre-tuned module.
_RANDOM = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# As in the release: the sigmoid of this bias is 0.01.
_UNLIKELY = nn.initializers.constant(-math.log(99.0))


def classifier(num_classes: int, kernel_init: Callable = _RANDOM) -> Linear:
    """Build a new head, for a task that the backbone was not trained on."""
    return Linear(num_classes, kernel_init=kernel_init, bias_init=_UNLIKELY)


class Steered(nn.Module):
    """Combines backbone, signal and head in one module.

    Without a top-down signal the network looks once, with prompts if the method has them. The top-down signal is computed from
    a first look and steers a second one with the same weights. The first look depends on no tuned parameter, so gradients stop
    there. With `steered_blocks` the second look starts in the middle, from the hidden state of the first.

    Attributes:
      backbone: a `backbones.protocol.Backbone`; it defines `inputs`.
      head: maps the output of `backbone.pooled` to logits; None for a backbone with `logits` of its own.
      top_down: a `top_down.TopDown` or `ConvTopDown`; None for a network that looks once.
      prompts: an `additions.prompts.Prompts`, or None.
      probe: an `additions.probe.AttentionProbe`, which reads the last site's tokens in place of `backbone.pooled`, or None.
      steered_blocks: how many of the last blocks (stages of a ConvNeXt) the second look applies; 0 for all.
    """

    backbone: Any
    head: nn.Module | None = None
    top_down: nn.Module | None = None
    prompts: nn.Module | None = None
    probe: AttentionProbe | None = None
    steered_blocks: int = 0

    def __call__(self, inputs: Inputs | None, rng: Keys | None = None, features: dict | None = None) -> Float[Array, "B *N C"]:
        """Compute the logits, in float32, without the intermediates of `explain`.

        Args:
          inputs: images, or text as a `LLaMA` takes it.
          rng: for drop-path and prompt dropout; None at evaluation.
          features: cached `frozen_features` of these inputs and keys; with `pooled` or `start` in it, `inputs` may be None.

        Returns:
          `[B, C]`, or for text the logits `[B, N, V]` of every next token.
        """
        return self.logits(self.pooled(inputs, rng, features))

    def pooled(self, inputs: Inputs | None, rng: Keys | None = None, features: dict | None = None) -> Float[Array, "B *N D"]:
        """Compute the input of `logits` from the final look: `[B, D]`, or `[B, N, D]` for text; see `__call__`."""
        if features and "pooled" in features:
            read = features["pooled"]
        else:
            extra, _ = self._signal(inputs, rng, features)
            read = self._look(inputs, rng, extra)
        return read if self.probe is None else self.probe(read, training=rng is not None)

    def logits(self, pooled: Float[Array, "*N D"]) -> Float[Array, "*N C"]:
        """Map outputs of `pooled` to logits of classes, or of next tokens."""
        return self.backbone.logits(pooled) if self.head is None else self.head(pooled)

    def frozen_features(self, inputs: Inputs, rng: Keys | None = None) -> dict:
        """Compute the intermediates that depend on the frozen backbone alone; see `train.feature_cache.features_of`.

        Returns:
          for a network that looks once, `pooled`: `[B, D]`, or `[B, N, D]` with a probe; with a top-down signal, `tokens` of
          the first look, `fed_back` if it is another array, and `start` if only the last blocks are steered; with prompts, an
          empty dict.
        """
        if self.prompts is not None:
            return {}
        if self.top_down is None:
            return {"pooled": self._look(inputs, rng, {})}
        first = self._first_look(inputs, rng)
        kept = {name: first[name] for name in ("tokens", "fed_back", "start") if name in first}
        if kept["fed_back"] is kept["tokens"]:
            del kept["fed_back"]
        return kept

    def explain(self, inputs: Inputs, rng: Keys | None = None) -> tuple[Float[Array, "B *N C"], dict]:
        """Compute the logits of `__call__` and every named intermediate.

        Returns:
          logits and a dict: `look`, the backbone's intermediates of the final look, and with a top-down signal also
          `first_look`, those of the first look, `selection` and `td` (see the top-down module). `look` and `td` cover only the
          steered blocks.
        """
        pooled, out = self.looks(inputs, rng)
        return self.logits(pooled), out

    def looks(self, inputs: Inputs, rng: Keys | None = None, maps: bool = True) -> tuple[Float[Array, "B *N D"], dict]:
        """Compute `pooled` and the intermediates of `explain`; attention weights only with `maps`."""
        extra, out = self._signal(inputs, rng, maps=maps)
        pooled, look = self.backbone(inputs, **extra, rng=_of_pass(rng, 2), maps=maps)
        if self.probe is not None:
            pooled = self.probe(self.tokens_read(look["hidden"][-1]), training=rng is not None)
        return pooled, {**out, "look": look}

    def tokens_read(self, last: Float[Array, "B *N D"]) -> Float[Array, "B _ D"]:
        """Select the tokens for the probe from the last site's output: patches, positions of a map, or all tokens."""
        if not (self.probe and self.probe.every_token):
            last = jax.vmap(self.backbone.on_grid, in_axes=-1, out_axes=-1)(last)
        return last.reshape(last.shape[0], -1, last.shape[-1])

    def classify_map(self, last: Float[Array, "B *N D"], rng: Keys | None = None) -> Float[Array, "B C"]:
        """Classify the last site's output, `hidden[-1]` of a look; see `ImageBackbone.pooled_map`."""
        return self.logits(self.backbone.pooled_map(last) if self.probe is None else self.probe(self.tokens_read(last)))

    def extend(
        self, tokens: Int[Array, "B M"], positions: Int[Array, "B M"], caches: dict, last: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], dict]:
        """Extend cached sequences of a language model by M tokens and predict the next one.

        The signal of a token depends on its own first look alone, so the signals of cached tokens stay valid.

        Args:
          tokens, positions: see `LanguageBackbone.extend`.
          caches: one per look, see `caches`.
          last: for each sequence, the index of its last token among the M.

        Returns:
          logits of the token after `last`, and the updated caches.
        """
        extra, caches = {}, dict(caches)
        if self.top_down is not None:
            hidden, caches["first_look"] = self.backbone.extend(tokens, positions, caches["first_look"])
            extra["td"], _ = self.top_down(hidden[-1], hidden[-1])
            if self.steered_blocks:
                extra["start"] = hidden[-self.steered_blocks - 1]
        hidden, caches["look"] = self.backbone.extend(tokens, positions, caches["look"], **extra)
        x = jnp.take_along_axis(hidden[-1], last[:, None, None], axis=1)[:, 0]
        return self.logits(self.backbone.norm(x)), caches

    def caches(self, rows: int, length: int) -> dict:
        """Create empty caches for `extend`: one for the final look and, if there are two looks, one for the first."""
        looks = {"look": self.steered_blocks} if self.top_down is None else {"first_look": 0, "look": self.steered_blocks}
        return {name: self.backbone.cache(rows, length, blocks) for name, blocks in looks.items()}

    def _look(self, inputs, rng, extra):
        """Compute the input of the head, or of its probe, in the final look."""
        if self.probe is None:
            return self.backbone.pooled(inputs, **extra, rng=_of_pass(rng, 2))
        _, look = self.backbone(inputs, **extra, rng=_of_pass(rng, 2), maps=False)
        return self.tokens_read(look["hidden"][-1])

    def _signal(self, inputs, rng, features=None, maps=False):
        """Compute the additional inputs of the final look, and the intermediates behind them."""
        if self.prompts is not None:
            return {"prompts": self.prompts(_of_pass(rng, 0))}, {}
        if self.top_down is None:
            return {}, {}
        first = jax.lax.stop_gradient(features or self._first_look(inputs, rng, maps))
        td, selection = self.top_down(first["tokens"], first.get("fed_back", first["tokens"]))
        start = {"start": first["start"]} if "start" in first else {}
        return {"td": td, **start}, {"first_look": first, "selection": selection, "td": td}

    def _first_look(self, inputs, rng, maps=False):
        """Return the intermediates of the first look, with the `start` of a second look that begins in the middle."""
        _, first = self.backbone(inputs, rng=_of_pass(rng, 1), maps=maps)
        return {**first, "start": first["hidden"][-self.steered_blocks - 1]} if self.steered_blocks else first


def _of_pass(rng, index):
    """Derive independent keys `[B]` for the prompts (0), the first look (1) and the final look (2)."""
    return None if rng is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(rng)


# Arguments of `classifier` by `config.head.start`; the values of "classifier" are loaded from a file later.
HEAD_STARTS = {"random": {}, "zeros": {"kernel_init": nn.initializers.zeros_init()}, "classifier": {}}


def build(config, num_classes: int) -> tuple[Steered, Method]:
    """Build the network of a config and the row of its method.

    Args:
      config: reads the fields `backbone`, `head`, `data.image_size`, `prompts`, `probe`, `tuned_blocks`, `steered_blocks` and
        those of `methods.row`; for a language model `backbone`, `steered_blocks` and those of `methods.row` alone.
      num_classes: C; unused for a language model, which predicts its own vocabulary.

    Raises:
      InputError: an unknown method, family, size or pooling, or more blocks to steer than there are; `config.check` reports
        everything else.
    """
    family = choose("config.backbone.family", config.backbone.family, families.FAMILIES)
    method = methods.row(config, family.methods)
    backbone = family.build(config, config.tuned_blocks if LAST_BLOCKS in method.tuned else 1)
    head = None
    if not family.own_head:
        head = classifier(num_classes, **choose("config.head.start", config.head.get("start", "random"), HEAD_STARTS))
    prompts = _prompts(backbone, config.prompts) if method.signal == "prompts" else None
    probe = _probe(family.width(backbone), config.probe) if method.probe else None
    if method.signal != "top_down":
        return Steered(backbone, head, prompts=prompts, probe=probe), method
    sites = family.sites(backbone)
    steered = config.get("steered_blocks", 0)  # runs of earlier versions have no such field
    if not 0 <= steered <= sites:  # of a network that no run tunes, which `config.check` does not see
        raise InputError(f"config.steered_blocks is {steered}; this network has {sites} blocks to steer, stages in a ConvNeXt.")
    top_down = family.top_down(backbone, steered or sites)
    # Steering all blocks takes a full second look, which needs no `start`.
    return Steered(backbone, head, top_down=top_down, probe=probe, steered_blocks=steered % sites), method


def _prompts(backbone, fields):
    layers = backbone.depth if fields.deep else 1
    return Prompts(layers, fields.num, backbone.width, backbone.patch, fields.dropout)


def _probe(width, fields):
    return AttentionProbe(width, fields.queries, fields.reduction, fields.tokens == "all")


def init(model: Steered, method: Method, rng: Key[Array, ""]) -> dict:
    """Create all parameters: `backbone` and, where they exist, `head`, `probe`, `top_down`, `prompts` and an addition.

    Wrap it in `jax.eval_shape` to get only the shapes.
    """
    network, addition = jax.random.split(rng)
    params = model.init(network, model.backbone.example)["params"]
    if method.added:
        params[method.added.group] = method.added.init(addition, params)
    return params


def apply(model: Steered, method: Method, params: dict, *inputs, call=None, **kwargs):
    """Apply a network with the parameters of `init`; `call` names a method other than `Steered.__call__`."""
    if method.added:
        params = method.added.attach(*_parts(method, params))
    return model.apply({"params": params}, *inputs, method=call, **kwargs)


def merged(method: Method, params: dict) -> dict:
    """Merge a method's addition into the weights of its network.

    Args:
      method: row of the network. Without an addition, as in bias or toast, the parameters are returned unchanged.
      params: as from `init`.

    Returns:
      parameters with the same effect, without the group of the addition.

    Raises:
      InputError: the addition is more than a change of weights, as in adapter_plus.
    """
    if not method.added:
        return params
    plain = method.added.merge(*_parts(method, params))
    if plain is None:
        raise InputError(
            f"What this method adds ({method.added.group}) is more than a change of weights, so it cannot be merged into them."
        )
    return plain


def _parts(method, params):
    """Split parameters into those of the network and those of the addition."""
    network = {name: tree for name, tree in params.items() if name != method.added.group}
    return network, params[method.added.group]
