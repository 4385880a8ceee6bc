"""Array types of annotations: `Float[Array, "B N D"]` is a floating-point array of that shape.

Tests check dtypes and shapes at every call, by jaxtyping's import hook; elsewhere annotations cost nothing. A letter stands for
the same size in all arguments and the result of a call; `...` stands for any axes, and `_` for any size.
"""

from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Int, Key, PyTree, Shaped, UInt8

Array: TypeAlias = jax.Array | np.ndarray
# One key per example, so that draws do not depend on the number of devices.
Keys: TypeAlias = Key[jax.Array, " B"]
# Pixels, or normalized values. Backbones refuse sizes that they do not take.
Images: TypeAlias = UInt8[Array, "B H W _"] | Float[Array, "B H W _"]
# `tokens` and `segments`, see `llama.places`.
Text: TypeAlias = dict[str, Int[Array, "B N"]]
Inputs: TypeAlias = Images | Text
Tokens: TypeAlias = Float[Array, "B N D"]
# Top-down inputs of all blocks.
Signal: TypeAlias = Float[Array, "L B N D"]
# A map for each stage of a network, such as its top-down inputs.
Maps: TypeAlias = tuple[Float[Array, "B _ _ _"], ...]
# Cached keys `k` and values `v` of all blocks of a language model, as `dtypes.to_bits` of them: `[L, B, S, G, K]`, or
# `[B, S, G, K]` of each block in a `stack.Unstacked`.
Cache: TypeAlias = dict[str, PyTree[Shaped[jax.Array, "... B S G K"]]]
# Index of a block and its drop-path rate.
Depth: TypeAlias = tuple[Int[Array, ""] | int, Float[Array, ""] | float]
# A dict of arrays with one row per example; a value may be such a dict too (`features`).
Batch: TypeAlias = PyTree[Shaped[Array, "B ..."]]
# One value per example, by name.
Scores: TypeAlias = dict[str, Float[Array, " B"]]
