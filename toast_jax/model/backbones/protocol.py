"""The contract of a backbone: what `Steered` and the tasks ask of it. Every backbone is a `flax.linen.Module`.

Letters in shapes: B batch, N tokens, D width, L sites that take a top-down input, M tokens that a cached look adds.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int

from toast_jax.model.layers.arrays import Array, Cache, Inputs, Keys, Maps, Signal


class Backbone(Protocol):
    """A network that turns inputs into one or more vectors and can be steered.

    Blocks end in a `layers.drop_path.BlockOutput` if method adapter_plus is to have a place in them.

    Attributes:
      dtype: compute dtype. Frozen parameters are stored in it.
      last_blocks: how many blocks stand alone after the scanned stack, as `last_0`, ...; method partial tunes them.
    """

    dtype: DTypeLike
    last_blocks: int

    @property
    def example(self) -> Inputs:
        """The smallest input that the network takes, to create its parameters from."""

    def __call__(
        self,
        inputs: Inputs | None,
        td: Signal | Maps | None = None,
        rng: Keys | None = None,
        start: Float[Array, "B *N D"] | None = None,
        maps: bool = True,
    ) -> tuple[Float[Array, "B *N D"], dict[str, Any]]:
        """Look at inputs and return every named intermediate.

        Args:
          inputs: images, or `tokens` and `segments` of text.
          td: None, or the top-down input of every site that is applied, as the family's top-down module makes it.
          rng: for drop-path; None at evaluation.
          start: None to apply all sites, or one of `hidden` of another look: the input of the first site to apply, one of the
            last `len(td)`. The inputs are then not read.
          maps: whether to return `attention`, which fused kernels do not compute.

        Returns:
          pooled, `[B, N, D]` of text alone, and a dict, of the applied sites:
            tokens: `[B, N, D]` or a map `[B, h, w, D]`; compared with the prior.
            fed_back: what is scaled and fed back; often the same array.
            hidden: the input of every site and the output of the last; read by the variational loss.
            attention: `[L, B, H, N, N]`, of networks that attend between tokens; makes maps of attention.
            reads: `[B, H, N]`, of those without a class token: the attention that stands in for the class token's.
        """

    def pooled(
        self,
        inputs: Inputs | None,
        td: Signal | Maps | None = None,
        rng: Keys | None = None,
        start: Float[Array, "B *N D"] | None = None,
    ) -> Float[Array, "B *N D"]:
        """Compute the pooled output of `__call__` alone, as cheaply as possible."""


class ImageBackbone(Backbone, Protocol):
    """A backbone that reads images.

    One that takes prompts has an argument `prompts`, and `depth`, `width`, `patch` and `first_prompt`, their first index.
    """

    def on_grid(self, values: Float[Array, "B ..."]) -> Float[Array, "B h w"]:
        """Lay one value per token, or per place of a map, over the image."""

    def maps(self, hidden: Sequence[Float[Array, "B ..."]], sites: Sequence[int]) -> Maps:
        """Return the outputs of sites as maps `[B, h, w, C]`, for dense prediction.

        Special tokens are dropped, and only the output of the last site passes the final norm.

        Args:
          hidden: of a look at all sites.
          sites: their numbers, in order.
        """

    def pooled_map(self, last: Float[Array, "B *N D"]) -> Float[Array, "B D"]:
        """Pool the output of the last site. Needed without `attention` alone, for the map like Grad-CAM."""

    def pooled_from_last(self, tokens: Float[Array, "B N D"], td: Float[Array, "B N D"] | None = None) -> Float[Array, "B D"]:
        """Compute `pooled` from the input of the last site. Needed with `attention` alone, for the map of the gradient."""


class LanguageBackbone(Backbone, Protocol):
    """A backbone that reads text and predicts the next token with a head of its own.

    Attributes:
      context: the longest sequence, in tokens.
      vocabulary: V, the number of logits.
      padding: how many of them the tokenizer of the weights may lack.
      norm: the final norm, over the last axis.
    """

    context: int
    vocabulary: int
    padding: int
    norm: Any

    def logits(self, x: Float[Array, "*N D"]) -> Float32[Array, "*N V"]:
        """Predict the next token."""

    def cache(self, rows: int, length: int, blocks: int = 0) -> Cache:
        """Create an empty cache of the last `blocks` blocks (0: of all) for `rows` sequences of at most `length` tokens."""

    def extend(
        self,
        tokens: Int[Array, "B M"],
        positions: Int[Array, "B M"],
        cache: Cache,
        td: Float[Array, "L B M D"] | None = None,
        start: Float[Array, "B M D"] | None = None,
    ) -> tuple[Float[Array, "_ B M D"], Cache]:
        """Look at the next tokens of sequences whose earlier ones are cached.

        Returns:
          `hidden` as in `__call__`, whose last entry is the output before the final norm, and the cache with these tokens.
        """
