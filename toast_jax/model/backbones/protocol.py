"""The contract of a backbone: what `Steered` and the tasks ask of it. Every backbone is a `flax.linen.Module`.

Letters in shapes: B batch, N tokens, D width, L sites that take a top-down input, M tokens that a cached look adds.
"""

from typing import Any, Protocol

import jax


class Backbone(Protocol):
    """A network that turns inputs into one or more vectors and can be steered.

    Attributes:
      dtype: compute dtype. Frozen parameters are stored in it.
      last_blocks: how many blocks stand alone after the scanned stack, as `last_0`, ...; method partial tunes them.
    """

    dtype: Any
    last_blocks: int

    @property
    def example(self) -> Any:
        """The smallest input that the network takes, to create its parameters from."""

    def __call__(self, inputs: Any, td: Any = None, rng: jax.Array | None = None) -> tuple[jax.Array, dict[str, Any]]:
        """Looks at inputs and returns every named intermediate.

        Args:
          inputs: images `[B, S, S, 3]`, or text as `{"tokens", "segments"}`, each `[B, N]`.
          td: None, or the top-down input of every site as the family's top-down module makes it.
          rng: `[B]` keys, one per example, for drop-path; None at evaluation.

        Returns:
          pooled `[B, D]` (`[B, N, D]` of text) and a dict:
            tokens: `[B, N, D]` or a map `[B, h, w, D]`; compared with the prior.
            fed_back: what is scaled and fed back; often the same array.
            hidden: the input of every site and the output of the last; read by the variational loss.
            attention: `[L, B, H, N, N]`, of networks that attend from a class token; makes maps of attention.
        """

    def pooled(self, inputs: Any, td: Any = None, rng: jax.Array | None = None) -> jax.Array:
        """Computes the pooled output of `__call__` alone, as cheaply as possible."""


class ImageBackbone(Backbone, Protocol):
    """A backbone that reads images. One that takes prompts has an argument `prompts`, and `depth`, `width` and `patch`."""

    def on_grid(self, values: jax.Array) -> jax.Array:
        """Lays one value per token, `[B, N]` (or `[B, h, w]` of a map), over the image: `[B, h, w]`."""

    def pooled_map(self, last: jax.Array) -> jax.Array:
        """Pools the output of the last site. Needed without `attention` alone, for the map like Grad-CAM."""


class LanguageBackbone(Backbone, Protocol):
    """A backbone that reads text and predicts the next token with a head of its own.

    Attributes:
      context: the longest sequence, in tokens.
      norm: the final norm, `[..., D]` -> `[..., D]`.
    """

    context: int
    norm: Any

    def logits(self, x: jax.Array) -> jax.Array:
        """Predicts the next token, float32: `[..., D]` -> `[..., V]`."""

    def cache(self, rows: int, length: int) -> dict[str, jax.Array]:
        """Creates an empty cache for `rows` sequences of at most `length` tokens."""

    def extend(
        self, tokens: jax.Array, positions: jax.Array, cache: dict, td: jax.Array | None = None
    ) -> tuple[jax.Array, dict]:
        """Looks at the next tokens `[B, M]` of sequences whose earlier ones are cached.

        Returns:
          `[B, M, D]` before the final norm, and the cache with these tokens.
        """
