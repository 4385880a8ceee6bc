"""Load a network by a name, from a file, or from a run: `toast_jax.load`."""

import collections
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from toast_jax import hub, package_files, trees
from toast_jax.config import backbone_names, config_files, hub_backbones, peft_adapters
from toast_jax.data.images import image_files
from toast_jax.devices import xla_flags
from toast_jax.errors import InputError, listed
from toast_jax.fields import flat_fields
from toast_jax.model import families
from toast_jax.python import keywords, net
from toast_jax.train import saved_run
from toast_jax.train.setup import load_network
from toast_jax.weights.named import NAMED

_OF_A_RUN = ("weights", "module", "top_down")  # fields that `load` accepts with a tuned network


@keywords.named_in_errors()
def load(
    source: str | os.PathLike | ConfigDict,
    method: str = "",
    classes: int | Sequence[str] | None = None,
    backbone: str = "",
    **fields: Any,
) -> net.Net:
    """Load a pre-trained network to tune, or a tuned one.

    Args:
      source: `hf:OWNER/NAME[@REVISION][/FILE]`, a name of weights (docs/weights.md), a file of weights, or a folder as from
        transformers' `save_pretrained`; the folder of a run, or one that `Net.save` wrote; or a config of a run, see
        `read_config`.
      method: a key of `METHODS`; "" for toast, or for the method of the run or config.
      classes: names, which are sorted like class folders, or a number; None for the classes of the data.
      backbone: kind and size of the network, such as vit_b16, if the name of its file does not begin with them.
      **fields: of the config, which is that of configs/folder.py unless `source` is one: by the last part of a name
        (`lr=0.01`), by its section (`optimizer={"lr": 0.01}`) or in full (`**{"optimizer.lr": 0.01}`). With a tuned network,
        only the files weights, module and top_down, if they have moved.

    Raises:
      InputError: a file, name or field cannot be used.
    """
    xla_flags.disable_ynnpack()
    if not isinstance(source, ConfigDict):
        if not isinstance(source, (str, os.PathLike)):
            raise InputError(f"source is {source!r}; give a name of weights, a file, a folder, or a config.")
        source = os.fspath(source)
        if os.path.isdir(os.path.expanduser(source)) and not _is_pretrained(source):
            others = {"method": method, "classes": classes, "backbone": backbone}
            return _load_run(source, fields | {name: value for name, value in others.items() if value})
        source = _config_of(source, method or "toast", backbone, fields)
    elif backbone:
        raise InputError("The config names its backbone already; leave backbone out.")
    elif method:
        fields = {"method": method, **fields}
    names: tuple[str, ...] = ()
    if isinstance(classes, int):
        fields = {"data.num_classes": classes, **fields}
    elif classes is not None:
        if isinstance(classes, str) or not isinstance(classes, Iterable) or not (names := tuple(map(str, classes))):
            raise InputError(f"classes is {classes!r}; give a list of names, a number, or None for the classes of the data.")
        name, count = collections.Counter(names).most_common(1)[0]
        if count > 1:
            raise InputError(f"classes has {name!r} {count} times; name each class once.")
        names, _ = image_files.ranked(names, 0)
        fields = {"data.num_classes": len(names), **fields}
    config = net.checked(keywords.changed(source, fields))
    return net.Net(config, _untuned(config, names))


def _config_of(weights: str, method: str, backbone: str, fields: Mapping) -> ConfigDict:
    """Return the config of configs/folder.py for weights: a place, a name or a file."""
    is_named, is_folder = False, os.path.isdir(os.path.expanduser(weights))
    if hub.is_place(weights) or is_folder:
        backbone = backbone or weights
    elif weights == backbone_names.RANDOM or package_files.find(weights).is_file():
        backbone = backbone or _named_like(weights)
    elif is_named := weights in NAMED:
        backbone = backbone or weights
    else:
        near = difflib.get_close_matches(weights, list(NAMED), n=1, cutoff=0)
        raise InputError(
            f"{weights!r} is no file of weights, no folder of a run and no name of weights; the nearest name is {near[0]!r}, "
            "and docs/weights.md lists all."
        )
    config = config_files.read_config(f"folder:method={method},backbone={backbone}")
    if not is_folder:  # whose file the config has
        config.backbone.weights = weights
    row = families.of_config(config).methods.get(method)
    # The release has pre-tuned modules for its backbones, without which TOAST falls behind.
    if is_named and f"{weights}_top_down" in NAMED and row and row.signal == "top_down" and "module" not in fields:
        config.top_down = f"{weights}_top_down"
    return config


def _is_pretrained(folder: str) -> bool:
    """Return whether a folder holds a network, or an adapter, of transformers or timm instead of a run."""
    beside = hub_backbones.read_beside(folder) or {}
    return (
        not {"model_type", "architecture"}.isdisjoint(beside)
        or hub_backbones.read_beside(folder, peft_adapters.FILE) is not None
    )


def _named_like(file: str) -> str:
    """Return the backbone that a file is named after."""
    name = Path(file).name.partition(".")[0]
    try:
        backbone_names.of_images(name)
    except InputError as error:
        raise InputError(
            f"The name {name} does not say which backbone the file holds; name it, as in backbone='vit_b16' or 'convnext_b'."
        ) from error
    return name


def _load_run(folder: str, fields: Mapping) -> net.Net:
    files = {keywords.short(name): value for name, value in flat_fields(fields).items()}
    if others := [name for name in files if name not in _OF_A_RUN]:
        raise InputError(f"The network in {folder} is tuned: its {listed(others)} cannot change; {', '.join(_OF_A_RUN)} can.")
    run = saved_run.load_tuned(folder, **{name: os.fspath(file) for name, file in files.items()})
    return net.Net(run.config, run)


def _untuned(config: ConfigDict, classes: tuple[str, ...]) -> saved_run.SavedRun:
    """Build the untuned network of a config; its head has one class while their number is unknown."""
    count, built = len(classes) or config.data.num_classes, config.copy_and_resolve_references()
    if not count:
        built.head.start = "zeros"
    network = load_network(built, count or 1)
    params = trees.merge(network.tuned, network.frozen)
    return saved_run.SavedRun(config, classes, 0, network.model, network.method, params)
