"""Convert the images of Python programs: folders, tables, lists, PIL images and arrays."""

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from toast_jax.config.run_fields import IMAGES
from toast_jax.data.images import selected
from toast_jax.data.images.labels import table
from toast_jax.errors import InputError
from toast_jax.fields import flat_fields
from toast_jax.python import keywords
from toast_jax.workdir import run_folder

_HELD_OUT = 0.2  # share of the images for validation, if the data has no split for it
_DEFAULTS = {name: IMAGES[name].default for name in IMAGES if re.match(r"data\.(image_dir|held_out|splits\.)", name)}
LISTING = "tuned_on.csv"  # in the folder of a run: images that were passed as a list


def to_tune_on(data: Any, folder: Path, config: ConfigDict, fields: Mapping[str, Any], *, has_format: bool) -> dict[str, Any]:
    """Return the fields of a config that describe labeled images, by dotted name.

    Args:
      data: see `Net.tune`.
      folder: of the run; a list of images is written to it.
      config: of the network. Its fields for splits are kept if it names no data, and otherwise are for that data alone.
      fields: that the caller sets, as keyword arguments.
      has_format: whether the caller sets `data.format` itself, so that a path sets only `data.root`.

    Raises:
      InputError: there is no such folder or table, or an item of a list is not a pair.
    """
    if data is None:
        return {}
    stated = flat_fields(keywords.changed(config, (_DEFAULTS if config.data.root else {}) | dict(fields)).to_dict())
    own = {name: stated[name] for name, default in _DEFAULTS.items() if stated.get(name, default) != default}
    if isinstance(data, Mapping):
        return _DEFAULTS | own | {f"data.{name}": value for name, value in flat_fields(data).items()}
    if not isinstance(data, (str, os.PathLike)):
        return _DEFAULTS | {"data.held_out": _HELD_OUT} | own | _listed(data, folder)
    root = os.path.expanduser(os.fspath(data))
    if has_format:
        return {"data.root": root}
    if table.is_table(root):
        named = {cells.get(table.SPLIT, "") for _, cells in table.load(root).rows}
        return _DEFAULTS | {"data.format": "table", "data.root": root} | _splits(named.__contains__, own) | own
    if not os.path.isdir(root):
        raise InputError(
            f"There is no folder or table (.csv, .tsv, .parquet) at {root!r}; give a folder with one folder of images for each "
            "class, a table, or a list of (path, label)."
        )

    def is_there(name: str) -> bool:
        return os.path.isdir(os.path.join(root, name))

    return _DEFAULTS | {"data.format": "folder", "data.root": root} | _splits(is_there, own) | own


def to_look_at(images: Any) -> Iterator[str | dict[str, Any]]:
    """Yield the images that `Net.predict` takes: paths, or examples of a `Source` for PIL images and arrays.

    Raises:
      InputError: there is no image, or an item is not an image.
    """
    if isinstance(images, (str, os.PathLike)):
        yield from _some(selected.each_path(os.fspath(images)), images)
        return
    is_one = isinstance(images, Image.Image) or getattr(images, "ndim", 1) in (0, 2, 3)  # others hold paths, or several images
    for number, image in enumerate([images] if is_one else _some(images, "the list")):
        if isinstance(image, (str, os.PathLike)):
            yield from selected.each_path(os.fspath(image))
        else:
            yield {"image": _content(image, number), "name": str(number), "orient": True}


def _splits(is_there: Callable[[str], bool], own: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields for the splits of the data, by their `own` names; without val and test, some images are held out."""
    names = {split: own.get(f"data.splits.{split}", split) for split in selected.SPLITS}
    present = {split: name if name and is_there(name) else "" for split, name in names.items()}
    if not present["train"]:
        return {"data.held_out": _HELD_OUT}
    fields: dict[str, Any] = {f"data.splits.{split}": name for split, name in present.items()}
    return fields if present["val"] or present["test"] else fields | {"data.held_out": _HELD_OUT}


def _listed(pairs: Iterable, folder: Path) -> dict[str, Any]:
    """Write pairs of a path and a label as a table, and return its fields."""
    rows = []
    if not isinstance(pairs, Iterable):
        raise InputError(f"The data is {pairs!r}; give a folder, a table, or a list of (path, label).")
    for number, pair in enumerate(_some(pairs, "the data")):
        match pair:
            case [str() | os.PathLike() as path, label] if table.is_missing(label):
                raise InputError(
                    f"Item {number} of the data, {os.fspath(path)}, has no label ({label}); add it, or leave it out."
                )
            case [str() | os.PathLike() as path, label]:
                rows.append((os.path.abspath(os.path.expanduser(path)), str(label)))
            case _:
                raise InputError(f"Item {number} of the data is {pair!r}; give pairs of a path and a label.")
    # The held-out draw depends on these relative paths, and so not on the places of images and run.
    top = os.path.commonpath([os.path.dirname(path) for path, _ in rows])
    content = io.StringIO()
    lines = [(table.PATH, table.LABEL), *((os.path.relpath(path, top), label) for path, label in rows)]
    csv.writer(content, lineterminator="\n").writerows(lines)
    file = run_folder.writable(folder) / LISTING
    run_folder.replace_file(file, content.getvalue())
    return {"data.format": "table", "data.root": str(file), "data.image_dir": top}


def _some(images: Any, place: Any) -> Iterator[Any]:
    """Yield images; raise InputError if there are none."""
    if not isinstance(images, Iterable):
        raise InputError(f"{images!r} is no image; give a path, a PIL image, an array uint8 [H, W, 3], or a list of them.")
    empty = True
    for image in images:
        yield image
        empty = False
    if empty:
        raise InputError(f"There are no images in {place}; give at least one.")


def _content(image: Any, number: int) -> Image.Image | np.ndarray:
    """Return a PIL image, or pixels uint8 `[H, W, 3]`."""
    if isinstance(image, Image.Image):
        return image
    try:
        array = np.asarray(image)
        kind = f"an array {array.dtype} {list(array.shape)}" if array.ndim else repr(image)
    except ValueError:  # a sequence of other things, such as an image and its label
        array, kind = np.array(None), f"a {type(image).__name__}"
    has_colors = array.ndim == 3 and array.shape[-1] in (3, 4)
    if array.dtype != np.uint8 or not array.size or not (has_colors or array.ndim == 2):
        raise InputError(f"Image {number} is {kind}; give a path, a PIL image, or an array uint8 [H, W, 3] or [H, W].")
    return array if array.ndim == 3 and array.shape[-1] == 3 else Image.fromarray(array)
