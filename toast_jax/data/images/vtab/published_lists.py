"""VPT's published list of the images of VTAB-1k: 800 training and 200 validation names for 14 of the 19 tasks.

The list is a JSON file (task -> 'train' and 'val' -> names) in the data release of github.com/KMnP/vpt,
`vtab_trainval_splits.json`. If the slices of `vtab.tasks` hold the same names, they match the list.
"""

import collections
import json
import logging
import os
from collections.abc import Callable

from toast_jax.data.images.vtab.tasks import BUILDERS, Task
from toast_jax.errors import InputError, listed

log = logging.getLogger(__name__)

# Keys of the list for the parts of a split.
_PARTS = {"train800": ("train",), "val200": ("val",), "train800val200": ("train", "val")}


def exact(
    open_slice: Callable, file: str, split: str, *, task: Task, slices: dict[str, str]
) -> tuple[str, tuple[int, ...] | None]:
    """Find the images of the list: a TFDS split and positions in it, None for the whole split.

    Args:
        open_slice: function from a TFDS split to its source, which has the method `name`.
        file: the list.
        split: 'train800', 'val200' or 'train800val200'.
        task: the task.
        slices: TFDS splits by name, see `vtab.tasks.slices`.

    Raises:
        InputError: the list cannot be read, lacks this task, or has a name that no image or several images have.
    """
    names = [name for part in _PARTS[split] for name in _names_of(file, task)[part]]
    source, wanted = open_slice(split=slices[split]), collections.Counter(names)
    if collections.Counter(map(source.name, range(len(source)))) == wanted:
        return source.split, None
    if repeated := [name for name, count in wanted.items() if count > 1]:
        raise InputError(
            f"{file} lists {repeated[0]} {wanted[repeated[0]]} times, so its names do not tell images apart, and "
            f"{source.split} of {source.directory} has others: leave --config.data.split_file empty for this task."
        )
    log.info("%s of %s differs from the list %s; searching for its names.", source.split, source.directory, file)
    whole = {"train": "train", "val": BUILDERS[task.builder].val[0]}
    source = open_slice(split="+".join(dict.fromkeys(whole[part] for part in _PARTS[split])))
    places = collections.defaultdict(list)
    for index in range(len(source)):
        if (name := source.name(index)) in wanted:
            places[name].append(index)
    if missing := [name for name in names if name not in places]:
        raise InputError(
            f"{len(missing)} of the {len(names)} images that {file} lists are not in {source.split} of {source.directory} "
            f"({listed(missing, most=3)}): prepare it again, or leave --config.data.split_file empty."
        )
    if shared := [name for name, indices in places.items() if len(indices) > 1]:
        raise InputError(
            f"{len(places[shared[0]])} images of {source.directory} are called {shared[0]}, so {file} cannot tell them apart: "
            "leave --config.data.split_file empty for this task."
        )
    return source.split, tuple(index for (index,) in places.values())


def _names_of(file: str, task: Task) -> dict[str, list[str]]:
    path = os.path.expanduser(file)
    without = "leave --config.data.split_file empty for it"
    if not task.published:
        raise InputError(f"VPT's list has not this task ({task.builder}, {task.key}), whose images have no names; {without}.")
    try:
        with open(path, encoding="utf-8-sig") as opened:
            names = json.load(opened)[task.published]
        return {part: [str(name) for name in names[part]] for part in ("train", "val")}
    except OSError as error:
        raise InputError(f"The list {path} cannot be read ({error.strerror}): correct --config.data.split_file.") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no list of VTAB's images ({error}): download it again.") from error
    except KeyError as error:
        raise InputError(f"{path} has no {error}: download it again, or {without}.") from error
