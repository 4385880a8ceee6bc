"""The contract of what a method adds to a network: parameters of its own, attached to those of the network.

A backbone does not depend on it. Additions change its parameters before each call: `lora` and `ssf` replace kernels by objects
that multiply like other matrices, `adapter` hangs a function behind a block (see `layers.drop_path.BlockOutput`).
"""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Key
from ml_collections import ConfigDict

from toast_jax.model.layers.arrays import Array


@runtime_checkable
class Addition(Protocol):
    """Parameters that a method adds, as nested dicts under one name.

    Attributes:
      group: this name, at the top of the tree of parameters.
    """

    group: ClassVar[str]

    def configured(self, config: ConfigDict) -> "Addition":
        """Return the addition with the sizes of a run's config."""

    def init(self, rng: Key[Array, ""], params: dict) -> dict:
        """Create its parameters for a network with `params`, a nested dict of arrays or shapes.

        Raises:
          InputError: the network has no parameter that a regex of the addition names.
        """

    def attach(self, params: dict, own: dict) -> dict:
        """Return the parameters of the network with `own` in effect; differentiable with respect to `own`."""

    def merge(self, params: dict, own: dict) -> dict | None:
        """Return plain parameters that have the effect of `own`, or None if none do."""
