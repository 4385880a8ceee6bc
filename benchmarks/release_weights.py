"""Parameters of this package, saved for the PyTorch release."""

import jax
import numpy as np

from toast_jax import trees
from toast_jax.weights import rename


def save(path: str, params: dict) -> None:
    """Save the parameters of a ViT under the names of the release's network, as an .npz file."""
    state = rename.to_torch({path: np.array(leaf) for path, leaf in trees.flat(jax.device_get(params)).items()})
    arrays = {name if name.startswith("head.") else f"enc.{name}": array for name, array in state.items()}
    np.savez(path, allow_pickle=False, **arrays)
