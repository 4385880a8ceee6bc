"""A steerable LLaMA (Touvron et al., arXiv 2302.13971), and networks of nearly its architecture (see `kinds`).

It takes one optional input, a top-down array per block, and does not depend on the method that makes it. Numbers follow Hugging
Face's `LlamaForCausalLM`, whose rotary embedding rotates the first half of a head against the second.

Letters in shapes: B batch, N tokens, D width, H query heads, G key-value heads, K channels of a head, L blocks, V vocabulary,
S positions of a cache, M tokens that a cached look adds.
"""

import dataclasses
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Float32, Int, Shaped

from toast_jax.errors import choose
from toast_jax.model.backbones.llama.kinds import FIELDS, KINDS, LLAMA, SIZES, Kind, RopeScaling, Size, head_width
from toast_jax.model.layers import batch, dtypes, stack
from toast_jax.model.layers.arrays import Array, Cache, Keys, Signal, Text, Tokens
from toast_jax.model.layers.attention import attend
from toast_jax.model.layers.linear import Linear
from toast_jax.model.layers.packed_kernels import product
from toast_jax.model.layers.remat import remat

# Keys `k` and values `v` of one block, as `dtypes.to_bits` of them.
BlockCache: TypeAlias = dict[str, Shaped[jax.Array, "B S G K"]]
Mask: TypeAlias = Bool[Array, "B N S"]


LORA_KERNELS = r"backbone/blocks/attn/[qkvo]/kernel"  # of method lora
# How parameters are split over the devices of the axis "fsdp" (see `fsdp`), by regexes of their paths. Stacked parameters are
# split along a width, not along layers, so that one layer at a time is gathered. Norms and biases are whole on every device.
PARTITION = (
    ("backbone/embed", PartitionSpec(None, "fsdp")),
    ("backbone/head", PartitionSpec("fsdp", None)),
    (r"backbone/blocks/(attn/[qkv]|mlp/(gate|up))/kernel", PartitionSpec(None, "fsdp", None)),
    (r"backbone/blocks/(attn/o|mlp/down)/kernel", PartitionSpec(None, None, "fsdp")),
    (r"top_down/(back|out)", PartitionSpec(None, "fsdp", None)),
    (".*", PartitionSpec()),
)


def build(config) -> "LLaMA":
    """Build the LLaMA of a config's `backbone` section, from its size, `dtype`, `remat` and `unroll`.

    Raises:
      InputError: an unknown size or dtype.
    """
    return LLaMA(**vars(size_of(config)), dtype=dtypes.named(config.dtype), remat=config.remat, unroll=config.unroll)


def size_of(config) -> Size:
    """Return the size that a config's `backbone` section names, with the numbers that it sets itself.

    Raises:
      InputError: an unknown size.
    """
    size = choose("config.backbone.size", config.size, SIZES)
    values = {name: config[name] for name in FIELDS if config.get(name)}  # runs of earlier versions lack some
    if "kind" in values:
        values["kind"] = next(kind for kind in KINDS if kind.model_type == values["kind"])
    if "rope_scaling" in values:
        values["rope_scaling"] = RopeScaling(*values["rope_scaling"])
    size = dataclasses.replace(size, **values)
    return dataclasses.replace(size, num_kv_heads=size.num_kv_heads or size.num_heads)


def frequencies(pairs: int, theta: float, scaling: RopeScaling | None = None) -> Float[np.ndarray, " {pairs}"]:
    """Compute the angle between positions of each pair of a head, in radians: `theta^(-i / pairs)`, scaled."""
    plain = theta ** (-np.arange(pairs) / pairs)
    if scaling is None:
        return plain
    turns = scaling.context * plain / (2 * np.pi)
    unscaled = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return plain * (unscaled + (1 - unscaled) / scaling.factor)


def rotate(
    x: Float[Array, "B N heads K"], positions: Int[Array, "B N"], theta: float, scaling: RopeScaling | None = None
) -> Float[Array, "B N heads K"]:
    """Apply rotary position embedding (Su et al., arXiv 2104.09864).

    Pair i of K / 2 is rotated by `position * frequencies(K / 2, theta, scaling)[i]`. It consists of channels i and i + K / 2,
    as in Hugging Face's files; in those of Meta and llama2.c, of channels 2i and 2i + 1.

    Args:
      x: queries or keys.
      positions: of the tokens.
      theta, scaling: see `Size`.
    """
    turn = frequencies(x.shape[-1] // 2, theta, scaling).astype(np.float32)
    angles = positions[..., None, None].astype(jnp.float32) * turn
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def places(segments: Int[Array, "B N"], window: int = 0) -> tuple[Int[Array, "B N"], Bool[Array, "B N N"]]:
    """Compute positions of tokens within their documents, and the attention mask.

    Args:
      segments: number of each token's document; documents are contiguous. Padding has the negative of the
        number before it: it attends to that document, and no other token attends to it.
      window: see `Size`.

    Returns:
      positions, from 0 in every document, and a mask, True where the first token attends to the second.
    """
    document, index = jnp.abs(segments), jnp.arange(segments.shape[1])
    begins = jnp.concatenate([jnp.ones_like(document[:, :1], bool), document[:, 1:] != document[:, :-1]], axis=1)
    positions = index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    mask = (document[:, :, None] == segments[:, None, :]) & _in_sight(index[:, None], index, window)
    return positions, mask


def _in_sight(position, other, window):
    """Whether a token attends to another one at or before it, and at most `window` - 1 positions before."""
    behind = position - other
    return (behind >= 0) & (behind < window) if window else behind >= 0


class Attention(nn.Module):
    """Computes grouped-query self-attention with a top-down input to the values.

    Attributes:
      size, dtype: of the network.
      writes: whether to write to the cache, which is then an array of this layer alone, instead of to a copy.
    """

    size: Size
    dtype: DTypeLike = jnp.float32
    writes: bool = False

    @nn.compact
    def __call__(
        self, x: Tokens, td: Tokens | None, positions: Int[Array, "B N"], mask: Mask, cache: BlockCache | None = None
    ) -> tuple[Tokens, dict[str, Shaped[Array, "B _ G K"]]]:
        """Attend from every token to those that its row of the mask allows.

        Args:
          x: normed.
          td: added to the input of the values alone, `W_v (x + td)`, with their bias once.
          mask: S is N without a cache.
          cache: earlier keys and values; those of x replace what it has at their positions.

        Returns:
          the output, and the keys `k` and values `v` of x or, with `writes`, the cache with them.
        """
        size, head = self.size, head_width(self.size)

        def project(name, heads, x):
            x = Linear(heads * head, use_bias=size.kind.qkv_bias, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], heads, head)

        def turned(name, heads):
            projected = project(name, heads, x)
            if size.kind.qk_norm:
                projected = nn.RMSNorm(size.norm_eps, self.dtype, name=f"{name}_norm")(projected)
            return rotate(projected, positions, size.rope_theta, size.rope_scaling)

        q, k = turned("q", size.num_heads), turned("k", size.num_kv_heads)
        v = project("v", size.num_kv_heads, x if td is None else x + td)
        new = {"k": k, "v": v}
        if cache is not None and self.writes:
            new = {name: _written(cache[name], dtypes.to_bits(new[name]), positions) for name in cache}
            k, v = (dtypes.from_bits(new[name], self.dtype) for name in "kv")
        elif cache is not None:
            k, v = (_inserted(dtypes.from_bits(cache[name], self.dtype), new[name], positions) for name in "kv")
        mixed = attend(q, k, v, mask)
        return Linear(x.shape[-1], use_bias=False, dtype=self.dtype, name="o")(mixed.reshape(*x.shape[:2], -1)), new


class Mlp(nn.Module):
    """Computes SwiGLU (Shazeer, arXiv 2002.05202), `(silu(x W_gate) * x W_up) W_down`."""

    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        linear = lambda name, width: Linear(width, use_bias=False, dtype=self.dtype, name=name)  # noqa: E731
        hidden = nn.silu(linear("gate", self.hidden)(x)) * linear("up", self.hidden)(x)
        return linear("down", x.shape[-1])(hidden)


class Block(nn.Module):
    """Applies attention and an MLP, each to normed inputs and added to its input (pre-norm); fields as of `Attention`."""

    size: Size
    dtype: DTypeLike = jnp.float32
    writes: bool = False

    @nn.compact
    def __call__(
        self, x: Tokens, td: Tokens | None, cache: BlockCache | None, positions: Int[Array, "B N"], mask: Mask
    ) -> tuple[Tokens, dict]:
        """Return the output and `{"input": x, "new": {"k", "v"}}`; see `Attention`."""
        norm = lambda name: nn.RMSNorm(self.size.norm_eps, self.dtype, name=name)  # noqa: E731
        attention = Attention(self.size, self.dtype, self.writes, name="attn")
        attended, new = attention(norm("norm1")(x), td, positions, mask, cache)
        y = x + attended
        y = y + Mlp(self.size.hidden, self.dtype, name="mlp")(norm("norm2")(y))
        return y, {"input": x, "new": new if cache is not None else None}


class LLaMA(nn.Module):
    """Encodes text and predicts every next token with a head of its own.

    The blocks are one scanned stack (`blocks`, every parameter with a leading layer axis), so compile time does not grow with
    depth.

    Attributes:
      width, ..., kind: see `Size`.
      dtype: compute dtype. Softmax, norms, rotations and logits are always float32.
      remat: whether to save nothing inside a block for the backward pass (see `remat.remat`).
      unroll: whether every block is compiled for itself instead of one for all.
    """

    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    hidden: int
    vocabulary: int
    context: int = 2048
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tied: bool = False
    head_width: int = 0
    window: int = 0
    kind: Kind = LLAMA
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    unroll: bool = False

    last_blocks = 0  # all blocks are in the stack

    def setup(self):
        init = nn.initializers.normal(0.02)
        self.embed = self.param("embed", init, (self.vocabulary, self.width))
        self.blocks = nn.scan(
            self._block(),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=self.depth,
            unroll=self.unroll,
        )(self._size, self.dtype)
        self.norm = nn.RMSNorm(self.norm_eps, self.dtype)
        if not self.tied:
            self.head = self.param("head", init, (self.width, self.vocabulary))

    @property
    def padding(self) -> int:
        """How many tokens of the vocabulary the tokenizer of the weights may lack."""
        return self.kind.padding

    @property
    def example(self) -> Text:
        """An input of the smallest valid shape, to create parameters with."""
        return {name: jnp.ones((1, 1), jnp.int32) for name in ("tokens", "segments")}

    def __call__(
        self,
        text: Text,
        td: Signal | None = None,
        rng: Keys | None = None,
        start: Tokens | None = None,
        maps: bool = True,
    ) -> tuple[Tokens, dict[str, Float[Array, "..."]]]:
        """Look at tokens and return every named intermediate.

        Args:
          text: `tokens` and `segments` (see `places`), N at most `context`.
          td: the top-down input of every block that is applied.
          rng, maps: unused, as nothing here is random and no attention weights are returned.
          start: None, or the input of the first block to apply, one of the last `len(td)`; the tokens are then not read.

        Returns:
          the output after the final norm, which `logits` reads, and a dict, of the applied blocks:
            tokens: `[B, N, D]` before the final norm; compared with the prior.
            fed_back: the same array.
            hidden: `[L + 1, B, N, D]`, the input of every block and the output of the last.
        """
        x, seen = self._blocks(text["tokens"], td, start, *places(text["segments"], self.window))
        return self.norm(x), {"tokens": x, "fed_back": x, "hidden": _hidden(seen, x)}

    def pooled(self, text: Text, td: Signal | None = None, rng: Keys | None = None, start: Tokens | None = None) -> Tokens:
        """Compute the first output of `__call__` alone."""
        x, _ = self._blocks(text["tokens"], td, start, *places(text["segments"], self.window))
        return self.norm(x)

    def cache(self, rows: int, length: int, blocks: int = 0) -> Cache:
        """Create an empty cache of the last `blocks` blocks (0: of all) for `rows` sequences of at most `length` tokens."""
        shape = (blocks or self.depth, rows, length, self.num_kv_heads, head_width(self))
        return {name: dtypes.to_bits(jnp.zeros(shape, self.dtype)) for name in "kv"}

    def extend(
        self,
        tokens: Int[Array, "B M"],
        positions: Int[Array, "B M"],
        cache: Cache,
        td: Float[Array, "L B M D"] | None = None,
        start: Float[Array, "B M D"] | None = None,
    ) -> tuple[Float[Array, "_ B M D"], Cache]:
        """Look at the next tokens of sequences whose earlier ones are cached.

        Args:
          positions: less than S. A token attends to the cache up to its own position, and of a `window` to the last ones alone.
          cache: of this look, see `cache`; or as this method returns it.
          td, start: see `__call__`.

        Returns:
          `hidden` as in `__call__`, `[L + 1, B, M, D]`, and the cache with these tokens: `stack.Unstacked` if the layers are.
        """
        length = jax.tree.leaves(cache)[0].shape[-3]
        mask = _in_sight(positions[..., None], jnp.arange(length), self.window)
        x, seen = self._blocks(tokens, td, start, positions, mask, cache)
        if stack.has_unstacked(seen):  # each layer has written to its own
            return _hidden(seen, x), seen["new"]
        # Written after the last block and all at once, which a program that owns the cache does in place.
        row = jnp.arange(len(tokens))[:, None]
        new = {name: dtypes.to_bits(seen["new"][name]) for name in cache}
        return _hidden(seen, x), {name: cache[name].at[:, row, positions].set(new[name]) for name in cache}

    def logits(self, x: Float[Array, "*N D"]) -> Float32[Array, "*N V"]:
        """Predict the next token."""
        kernel = self.embed.T if self.tied else self.head
        return product(x, kernel.astype(self.dtype))

    def _block(self):
        return remat(Block, everything=self.remat, scanned=True, unrolled=self.unroll)

    @property
    def _size(self):
        return Size(*(getattr(self, field.name) for field in dataclasses.fields(Size)))

    def _blocks(self, tokens, td, start, positions, mask, cache=None):
        """Run the blocks and return the last output and the stacked intermediates."""
        if positions.shape[1] > self.context:
            raise ValueError(f"sequences have {positions.shape[1]} tokens; this LLaMA takes {self.context} at most")
        skipped = 0 if start is None else self.depth - len(td)
        x = batch.split_by_example(self.embed[tokens].astype(self.dtype) if start is None else start)
        writes = cache is not None and stack.has_unstacked(dict(self.blocks.variables))
        layer = self._block()(self._size, self.dtype, writes, parent=None)
        return stack.look(self.blocks, layer, skipped, x, (td, cache), (positions, mask), self.unroll)


def _inserted(cached, new, positions):
    """Return cached keys or values of a block with those of the next tokens."""
    if new.shape[1] == 1:  # fuses with what reads it
        return jnp.where((jnp.arange(cached.shape[1]) == positions)[..., None, None], new, cached)
    return _written(cached, new, positions)


def _written(cached, new, positions):
    return cached.at[jnp.arange(len(new))[:, None], positions].set(new)


def _hidden(seen, x):
    return jnp.concatenate([stack.whole(seen["input"]), x[None]])
