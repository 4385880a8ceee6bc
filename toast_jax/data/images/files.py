"""Images in files of their own: JSON split files and class folders."""

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from toast_jax.errors import InputError, listed

# The one class of images without labels.
UNLABELLED = "unlabelled"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
TRAIN = "train"


@dataclasses.dataclass(frozen=True)
class Files:
    """Images in files of their own."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would be waited for
                return {"image": file.read(), "label": self.labels[index], "name": path}
        except OSError as error:
            raise InputError(f"Image {path} cannot be read ({error.strerror}): mend or remove it.") from error


def unlabelled(path: str) -> Files:
    """One image, or those of a folder at every depth, in the order of their paths; all have label 0 of the class `UNLABELLED`.

    Raises:
        InputError: there is no image.
    """
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise InputError(f"There is nothing at {path}: give a folder with images, or an image.")
    paths = tuple(sorted(_images_below(path))) if os.path.isdir(path) else (path,)
    _require_names(paths)
    if not paths:
        raise InputError(f"Folder {path} has no images ({', '.join(IMAGE_SUFFIXES)}): put some there, at any depth.")
    return Files(paths, (0,) * len(paths), (UNLABELLED,))


def read_json(data: ConfigDict, split: str) -> Files:
    """Reads a split of VPT's form: `SPLIT.json`, from image path to class id; the classes are those of the training split."""
    root = existing_root(data)
    folder = os.path.join(root, data.image_dir)
    if not os.path.isdir(folder):
        raise InputError(f"Image folder {folder} does not exist: unpack the images there, or set --config.data.image_dir.")
    if not data.labels:
        paths = tuple(os.path.join(folder, name) for name in _load_json(_json_path(data, split), labels=False))
        _require_files(paths)
        return Files(paths, (0,) * len(paths), (UNLABELLED,))
    # The ids are sorted as they stand, strings as strings: the heads of released checkpoints follow that order.
    class_ids = sorted(set(_load_json(_json_path(data, TRAIN)).values()))
    listing = _load_json(_json_path(data, split))
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}
    unknown = [class_id for class_id in listing.values() if class_id not in label_of]
    if unknown:
        raise InputError(
            f"{_json_path(data, split)} has class {unknown[0]!r}, which {_json_path(data, TRAIN)} has not: "
            "make both use the same class ids."
        )
    paths = tuple(os.path.join(folder, name) for name in listing)
    _require_files(paths)
    return Files(paths, tuple(label_of[class_id] for class_id in listing.values()), tuple(map(str, class_ids)))


def _json_path(data: ConfigDict, split: str) -> str:
    return os.path.join(os.path.expanduser(data.root), f"{data.splits[split]}.json")


def _load_json(path: str, labels: bool = True) -> dict[str, int] | dict[str, str] | list[str]:
    """Reads a split file: a JSON object from image path to class id or, without labels, also a list of image paths."""
    try:
        with open(path, encoding="utf-8") as file:
            listing = json.load(file, object_pairs_hook=functools.partial(_once, path))
    except FileNotFoundError as error:
        raise InputError(
            f"Split file {path} does not exist: put it there, or set --config.data.root and --config.data.splits."
        ) from error
    except OSError as error:
        raise InputError(f"Split file {path} cannot be read ({error.strerror}): mend it.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"Split file {path} is not valid JSON ({error}): download it again.") from error
    if not labels and isinstance(listing, list) and listing and all(isinstance(name, str) for name in listing):
        _once(path, [(name, None) for name in listing])
        return listing
    if not isinstance(listing, dict) or not listing:
        raise InputError(f"Split file {path} must hold a JSON object from image path to class id: write at least one.")
    if {type(class_id) for class_id in listing.values()} not in ({int}, {str}):
        raise InputError(f"The class ids in split file {path} must be all integers or all strings: rewrite the others.")
    return listing


def _once(path: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict, which would keep the last of images that are listed twice; `a//b` and `a/b` are one."""
    first = {}
    for name, class_id in pairs:
        place = os.path.normpath(name)
        if place in first:
            both = "" if first[place] == class_id else f", with the classes {first[place]!r} and {class_id!r}"
            raise InputError(f"Split file {path} has the image {name!r} twice{both}: leave it in once.")
        first[place] = class_id
    return dict(pairs)


def _require_files(paths: Sequence[str]) -> None:
    names = collections.defaultdict(list)
    for path in paths:
        folder, name = os.path.split(path)
        names[folder].append(name)
    # One listing a folder: asking for each file takes minutes on network disks.
    present = {folder: set(os.listdir(folder)) if os.path.isdir(folder) else () for folder in names}
    missing = [os.path.join(folder, name) for folder in names for name in names[folder] if name not in present[folder]]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} images do not exist, the first is {missing[0]}: "
            "unpack all of them, or set --config.data.root and --config.data.image_dir."
        )


def read_folder(data: ConfigDict, split: str) -> Files:
    """Reads a split of class folders, `SPLIT/CLASS/IMAGE`; the classes are those of the training split."""
    if not data.labels:
        return unlabelled(_split_folder(data, split, classes=False))
    classes = tuple(_subfolders(_split_folder(data, TRAIN)))
    folder = _split_folder(data, split)
    unknown = sorted(set(_subfolders(folder)) - set(classes))
    if unknown:
        raise InputError(
            f"Class folder {os.path.join(folder, unknown[0])} has no counterpart in {_split_folder(data, TRAIN)}: "
            "remove it, or add training images of that class."
        )
    label_of = {name: label for label, name in enumerate(classes)}
    examples = [(path, label_of[name]) for name in _subfolders(folder) for path in _images_in(os.path.join(folder, name))]
    paths, labels = zip(*examples, strict=True)
    return Files(paths, labels, classes)


def _split_folder(data: ConfigDict, split: str, classes: bool = True) -> str:
    root = existing_root(data)
    folder = os.path.join(root, data.splits[split])
    if not os.path.isdir(folder):
        raise InputError(
            f"Folder {folder} does not exist ({root} has {listed(_subfolders(root), most=3) or 'no folders'}): "
            f"create it, or set --config.data.splits.{split} to another folder, or to nothing if there is no such split."
        )
    if classes and not _subfolders(folder):
        raise InputError(f"Folder {folder} has no class folders: put the images in one folder for each class.")
    return folder


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if os.path.isdir(entry) and not entry.name.startswith("."))


def _images_in(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        paths = sorted(entry.path for entry in entries if is_image(entry.name))
    _require_names(paths)
    if not paths:
        raise InputError(f"Class folder {folder} has no images ({', '.join(IMAGE_SUFFIXES)}): add some or remove the folder.")
    return paths


def _images_below(path: str) -> Iterator[str]:
    """Images at every depth, through links too; hidden folders are left out, and none is entered twice."""
    entered = {os.path.realpath(path)}
    for folder, below, names in os.walk(path, followlinks=True):
        new = {name: os.path.realpath(os.path.join(folder, name)) for name in below if not name.startswith(".")}
        below[:] = [name for name, real in new.items() if real not in entered]
        entered.update(new.values())
        yield from (os.path.join(folder, name) for name in names if is_image(name))


def _require_names(paths: Sequence[str]) -> None:
    """Raises InputError for a name that is no text; it could not be written down."""
    for path in paths:
        if not path.isprintable() and any("\ud800" <= one <= "\udfff" for one in path):
            raise InputError(f"The name of {path.encode('utf-8', 'backslashreplace').decode()} is not UTF-8: rename it.")


def is_image(path: str) -> bool:
    """Whether a file is one by its name; hidden ones are not."""
    return path.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(path).startswith(".")


def existing_root(data: ConfigDict) -> str:
    """`data.root` with `~` expanded, or InputError if it is no folder."""
    root = os.path.expanduser(data.root)
    if not os.path.isdir(root):
        raise InputError(f"Data folder {root or repr(root)} does not exist: set --config.data.root.")
    return root
