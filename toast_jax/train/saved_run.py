"""Read a run from its folder: its config, and its network at the latest checkpoint."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from toast_jax import package_files, trees
from toast_jax.config import schema
from toast_jax.config.backbone_names import RANDOM
from toast_jax.data.images import sources
from toast_jax.devices import precision
from toast_jax.errors import InputError
from toast_jax.fields import flat_fields, nested
from toast_jax.model import families
from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered
from toast_jax.train import checkpoint
from toast_jax.train.setup import reload_network
from toast_jax.weights import places
from toast_jax.workdir import fingerprint


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run at its latest checkpoint.

    Attributes:
      config: of the run.
      classes: class names, in the order of the logits.
      step: of the checkpoint.
      model, method, params: for `steered.apply`.
      folder: of the run.
    """

    config: ConfigDict
    classes: tuple[str, ...]
    step: int
    model: Steered
    method: Method
    params: dict
    folder: str | Path = ""

    def compiled(self, function: Callable) -> Callable:
        """Compile `function(model, method, *args)` for this network, as `(*args)`, at the precision of the run.

        Runs of the same network share the compiled program.
        """
        jitted = jax.jit(function, static_argnums=(0, 1))

        def at_precision(*args):
            with precision.of_products(self.config):
                return jitted(self.model, self.method, *args)

        return at_precision


def with_defaults(saved: dict) -> ConfigDict:
    """Return the config that a run has saved, with the fields that an earlier version did not have."""
    defaults = {name: field.default for name, field in schema.of_run(ConfigDict(saved)).items()}
    return ConfigDict(nested(defaults | flat_fields(saved)))


def load(folder: str | Path, weights: str = "", top_down: str = "", module: str = "", dtype: str = "") -> SavedRun:
    """Read a run; its frozen parameters come from the files that its config names, or from those given here.

    Args:
      folder: of the run.
      weights: file of the backbone; "" for the run's.
      top_down, module: the files of these fields that it began from, if it did; "" for the run's.
      dtype: of computation and of frozen parameters; "" for the run's.

    Raises:
      InputError: the folder has no checkpoint, or a file is missing or another one.
    """
    with checkpoint.manager(folder) as checkpoints:
        meta = checkpoint.read_meta(checkpoints)
        config = with_defaults(meta["config"])
        config.backbone.weights = weights or config.backbone.weights
        config.top_down = config.top_down and (top_down or config.top_down)
        config.module = config.module and (module or config.module)
        files = {"backbone.weights": config.backbone.weights, "module": config.module}
        if families.of_config(config).methods[config.method].signal == "top_down":  # others do not read it
            files["top_down"] = config.top_down
        for field, file in files.items():
            if file not in ("", RANDOM) and not places.is_remote(file) and not package_files.find(file).exists():
                raise InputError(
                    f"There is no weights file at {file}, which the run in {folder} needs; correct --config.{field}."
                )
        if "fsdp" in config:
            config.fsdp = 1  # tasks that read a run use one device
        built = config.copy_and_resolve_references()
        built.backbone.dtype = dtype or config.backbone.dtype
        network = reload_network(built, len(meta["classes"]))
        fingerprint.check_frozen(fingerprint.of_frozen(network.frozen), meta["frozen"], folder, config.backbone.weights)
        step, tuned = checkpoint.restore_tuned(checkpoints, network.tuned)
    model, method, frozen = network.model, network.method, network.frozen
    del network  # its tuned parameters make room on the device
    # Restored arrays are NumPy's, which every call of a program would copy to the device again.
    params = trees.merge(jax.device_put(tuned), frozen)
    return SavedRun(config, tuple(meta["classes"]), step, model, method, params, folder)


def load_tuned(folder: str | Path, weights: str = "", top_down: str = "", module: str = "", masks: bool = False) -> SavedRun:
    """Read a run like `load`; raise InputError unless it has tuned a network for images, with `masks` also for segmentation."""
    saved = load(folder, weights, top_down, module)
    if families.reads(saved.config) == "masks" and not masks:
        raise InputError(f"The run in {folder} segments images, which this command cannot show; give one that classifies.")
    if families.of_config(saved.config).reads != "images":
        raise InputError(
            f"The run in {folder} has tuned a language model, which sees no images; give one that does. Where one of TOAST "
            "looks in a text is shown by configs/relevance.py."
        )
    if saved.config.stage != "tune":
        module = "top-down module" if saved.model.top_down else "module"
        raise InputError(f"The run in {folder} has pre-tuned a {module}; give one that tuned with it.")
    return saved


def load_compared(
    folders: Sequence[str], weights: str = "", top_down: str = "", module: str = "", masks: bool = False
) -> dict[str, SavedRun]:
    """Read runs with the same images and classes, by the part of their paths that differs; `masks` as in `load_tuned`.

    Raises:
      InputError: there is no run, one is named twice or cannot be read, or they differ in classes, in size or shape of
        their views, or in whether they classify or segment.
    """
    if not folders:
        raise InputError("There is no run to look at; name some, joined by +, as in :runs=runs/toast+runs/lora.")
    if len({Path(folder).expanduser().resolve() for folder in folders}) < len(folders):
        raise InputError(f"One of the runs {', '.join(folders)} is given twice; name each once.")
    runs = [load_tuned(folder, weights, top_down, module, masks) for folder in folders]
    for folder, run in zip(folders[1:], runs[1:], strict=True):
        if families.reads(run.config) != families.reads(runs[0].config):
            raise InputError(f"Of the runs in {folders[0]} and {folder}, one segments; compare runs that all do, or none.")
        # Segmenters are compared on images of any size.
        for field in ("image_size", "resize") if families.reads(run.config) == "images" else ():
            if run.config.data[field] != runs[0].config.data[field]:
                raise InputError(
                    f"The runs in {folders[0]} and {folder} differ in config.data.{field} ({runs[0].config.data[field]} and "
                    f"{run.config.data[field]}), so they see other pictures; compare runs that see the same."
                )
        if sources.is_stretched(run.config.data) != sources.is_stretched(runs[0].config.data):
            raise InputError(
                f"Of the runs in {folders[0]} and {folder}, one stretches images to a square, as VTAB-1k does, where the other "
                "crops them, so they see other pictures; compare runs that see the same."
            )
        if run.classes != runs[0].classes:
            raise InputError(f"The runs in {folders[0]} and {folder} name other classes; compare runs that name the same.")
    return dict(zip(short_names(folders), runs, strict=True))


def short_names(folders: Sequence[str]) -> list[str]:
    """Shorten paths to the parts that differ, without common beginnings and ends; a single path to its last part."""
    parts = [Path(folder).expanduser().absolute().parts for folder in folders]  # links keep their names
    if len(parts) == 1:
        return [parts[0][-1]]
    shortest = min(map(len, parts))
    start = next((i for i in range(shortest) if len({path[i] for path in parts}) > 1), shortest - 1)
    end = next((i for i in range(shortest - start) if len({path[-1 - i] for path in parts}) > 1), shortest - start - 1)
    return ["/".join(path[start : len(path) - end]) for path in parts]
