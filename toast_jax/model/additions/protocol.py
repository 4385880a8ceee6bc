"""The contract of an addition: parameters that a method adds, attached to those of the backbone before each call.

Backbones do not depend on additions: `lora` and `ssf` replace kernels by objects that multiply like matrices, and `adapter`
attaches a function to the output of each block (see `layers.drop_path.BlockOutput`). `prompts` and `probe` change the input or
output of the backbone instead; they are modules of `steered.Steered` and do not follow this contract.
"""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Key
from ml_collections import ConfigDict

from toast_jax.model.layers.arrays import Array


@runtime_checkable
class Addition(Protocol):
    """Creates, attaches and merges the parameters that a method adds.

    Attributes:
      group: their name at the top of the parameter tree.
    """

    group: ClassVar[str]

    def configured(self, config: ConfigDict) -> "Addition":
        """Return a copy with the sizes from a run's config."""

    def init(self, rng: Key[Array, ""], params: dict) -> dict:
        """Create the added parameters of a network.

        Args:
          rng: for the initial values.
          params: parameters of the network, a nested dict of arrays or shapes.

        Raises:
          InputError: a regex of the addition matches no parameter.
        """

    def attach(self, params: dict, own: dict) -> dict:
        """Return the network's parameters with the addition `own` in effect; differentiable with respect to `own`."""

    def merge(self, params: dict, own: dict) -> dict | None:
        """Return plain parameters with the same effect, or None if the addition is more than a change of weights."""
