"""A run read back from its folder: what it was, and the network it ended with."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model import families
from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered
from toast_jax.train import checkpoint
from toast_jax.train.setup import load_network
from toast_jax.workdir import fingerprint


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run at its latest checkpoint.

    Attributes:
      config: the config it was made with.
      classes: names of the classes, in the order of the logits.
      step: of the checkpoint.
      model, method, params: for `steered.apply`.
    """

    config: ConfigDict
    classes: tuple[str, ...]
    step: int
    model: Steered
    method: Method
    params: dict


def load(folder: str | Path, weights: str = "", dtype: str = "") -> SavedRun:
    """Reads a run; its backbone is read again from where its config says, or from the file `weights`.

    Args:
      dtype: what the network computes with, and what is frozen is stored as; as in the run, if "".

    Raises:
      InputError: there is no checkpoint in the folder, or the backbone's file is gone or another one.
    """
    with checkpoint.manager(folder) as checkpoints:
        meta = checkpoint.read_meta(checkpoints)
        config = ConfigDict(meta["config"])
        config.backbone.weights = weights or config.backbone.weights
        if "fsdp" in config:
            config.fsdp = 1  # it is read where it runs on one device
        built = config.copy_and_resolve_references()
        built.backbone.dtype = dtype or config.backbone.dtype
        network = load_network(built, len(meta["classes"]))
        fingerprint.check_frozen(fingerprint.of_frozen(network.frozen), meta["frozen"], folder, config.backbone.weights)
        step, tuned = checkpoint.restore_tuned(checkpoints, network.tuned)
    params = trees.merge(tuned, network.frozen)
    return SavedRun(config, tuple(meta["classes"]), step, network.model, network.method, params)


def load_tuned(folder: str | Path, weights: str = "") -> SavedRun:
    """As `load`, and raises InputError for a run that has pre-tuned a top-down module, or one that has seen no images."""
    saved = load(folder, weights)
    if families.of_config(saved.config).reads != "images":
        raise InputError(f"The run in {folder} has tuned a language model, which sees no images; give one that does.")
    if saved.config.stage != "tune":
        raise InputError(f"The run in {folder} has pre-tuned a top-down module; give one that tuned with it.")
    return saved


def load_compared(folders: Sequence[str], weights: str = "") -> dict[str, SavedRun]:
    """Reads runs that see the same pictures and name the same classes; each goes by the part of its path that tells it apart.

    Raises:
      InputError: no run, one that is given twice or cannot be read, or one of other classes or another image size.
    """
    if not folders:
        raise InputError("There is no run to look at; name some, joined by +, as in :runs=runs/toast+runs/lora.")
    if len({Path(one).expanduser().resolve() for one in folders}) < len(folders):
        raise InputError(f"One of the runs {', '.join(folders)} is given twice; name each once.")
    runs = [load_tuned(one, weights) for one in folders]
    for folder, one in zip(folders[1:], runs[1:], strict=True):
        for field in ("image_size", "resize"):
            if one.config.data[field] != runs[0].config.data[field]:
                raise InputError(
                    f"The runs in {folders[0]} and {folder} differ in config.data.{field} ({runs[0].config.data[field]} and "
                    f"{one.config.data[field]}), so they see other pictures; compare runs that see the same."
                )
        if one.classes != runs[0].classes:
            raise InputError(f"The runs in {folders[0]} and {folder} name other classes; compare runs that name the same.")
    return dict(zip(short_names(folders), runs, strict=True))


def short_names(folders: Sequence[str]) -> list[str]:
    """What tells folders apart: their paths without the parts that all begin or end with; of one folder its own name."""
    parts = [Path(one).expanduser().absolute().parts for one in folders]  # a link may have the better name
    if len(parts) == 1:
        return [parts[0][-1]]
    shortest = min(map(len, parts))
    start = next((i for i in range(shortest) if len({one[i] for one in parts}) > 1), shortest - 1)
    end = next((i for i in range(shortest - start) if len({one[-1 - i] for one in parts}) > 1), shortest - start - 1)
    return ["/".join(one[start : len(one) - end]) for one in parts]
