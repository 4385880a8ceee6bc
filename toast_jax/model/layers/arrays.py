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
# The maps of a network of stages.
Maps: TypeAlias = tuple[Float[Array, "B _ _ _"], ...]
# A dict of arrays, whose rows are examples; of features too, which are a dict in it.
Batch: TypeAlias = PyTree[Shaped[Array, "B ..."]]
# One value per example, by name.
Scores: TypeAlias = dict[str, Float[Array, " B"]]
