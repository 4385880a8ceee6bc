"""A run read back from its folder: what it was, and the network it ended with."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from toast_jax import checkpoint, trees
from toast_jax.methods import Method
from toast_jax.model import Steered
from toast_jax.prepare import load_network


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run at its latest checkpoint.

    Attributes:
      config: the config it was made with.
      classes: names of the classes, in the order of the logits.
      step: of the checkpoint.
      model, method, params: for `model.apply`.
    """

    config: ConfigDict
    classes: tuple[str, ...]
    step: int
    model: Steered
    method: Method
    params: dict


def load(folder: str | Path, weights: str = "") -> SavedRun:
    """Reads a run; its backbone is read again from where its config says, or from the file `weights`.

    Raises:
      InputError: there is no checkpoint in the folder, or the backbone's file is gone or another one.
    """
    with checkpoint.manager(folder) as checkpoints:
        meta = checkpoint.read_meta(checkpoints)
        config = ConfigDict(meta["config"])
        config.backbone.weights = weights or config.backbone.weights
        if "fsdp" in config:
            config.fsdp = 1  # it is read where it runs on one device
        network = load_network(config, len(meta["classes"]))
        step, tuned = checkpoint.restore_tuned(checkpoints, network.tuned)
    params = trees.merge(tuned, network.frozen)
    return SavedRun(config, tuple(meta["classes"]), step, network.model, network.method, params)
