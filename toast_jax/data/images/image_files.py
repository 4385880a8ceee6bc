"""Images in files of their own: JSON split files and class folders."""

import collections
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from ml_collections import ConfigDict
from PIL import Image

from toast_jax.data.images import archive
from toast_jax.errors import InputError, listed

log = logging.getLogger(__name__)

# The only class of images without labels.
UNLABELLED = "unlabelled"
TRAIN = "train"
_COMMON_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
# Formats that Pillow recognizes but does not decode, or only with another program (EPS) or system (WMF).
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


@dataclasses.dataclass(frozen=True)
class Files:
    """A source of image files.

    Attributes:
        paths: of the files.
        labels: for each its index into `classes`.
        classes: their names.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    # Whether images are turned upright by their EXIF orientation. Belongs to the config, not to the data's fingerprint.
    orient: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        example = {"image": _content(path), "label": self.labels[index], "name": path}
        return {**example, "orient": True} if self.orient else example


def _content(path: str) -> bytes:
    if inside := archive.split(path):
        return archive.read(*inside)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # opening a pipe would block
            return file.read()
    except OSError as error:
        raise InputError(f"Image {path} cannot be read ({error.strerror}): mend or remove it.") from error


class UprightFiles(Files):
    """A source of image files that are turned upright by their EXIF orientation, as viewers show them."""

    orient = True


@functools.cache
def suffixes() -> tuple[str, ...]:
    """List the name endings of all formats that Pillow decodes, in lower case; common ones come first."""
    registered = Image.registered_extensions().items()
    decoded = {suffix for suffix, format in registered if format in Image.OPEN and format not in _NOT_DECODED}
    return (*_COMMON_SUFFIXES, *sorted(decoded - set(_COMMON_SUFFIXES)))


def is_image(path: str) -> bool:
    """Return whether a file is named like an image; hidden files are not."""
    return path.lower().endswith(suffixes()) and not os.path.basename(path).startswith(".")


def unlabelled(path: str, *, orient: bool = True) -> Files:
    """Open one image, or all images of a folder at every depth, sorted by path.

    Args:
        path: of the image or the folder.
        orient: turn images upright by their EXIF orientation.

    Returns:
        a source in which every image has label 0 of the class `UNLABELLED`.

    Raises:
        InputError: there is no image.
    """
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise InputError(f"There is nothing at {path}: give a folder with images, or an image.")
    paths, others = _search(path) if os.path.isdir(path) else ([path], [])
    _require_names(paths)
    if not paths:
        raise InputError(f"Folder {path} has no images ({listed(suffixes(), most=6)}): put some there, at any depth.")
    _log_left_out(path, others)
    return _files(paths, (0,) * len(paths), (UNLABELLED,), orient)


def _files(paths, labels, classes, orient) -> Files:
    return (UprightFiles if orient else Files)(tuple(paths), tuple(labels), classes)


def _orients(data: ConfigDict) -> bool:
    """Whether EXIF orientation is honored; runs of earlier versions, which did not, have no such field."""
    return data.get("exif_orientation", False)


def read_json(data: ConfigDict, split: str) -> Files:
    """Read a split in VPT's format, `SPLIT.json`: image path to class id; the training split defines the classes."""
    root = existing_root(data)
    folder = os.path.join(root, data.image_dir)
    if not os.path.isdir(folder) and not archive.split(os.path.join(folder, "")):
        raise InputError(f"Image folder {folder} does not exist: unpack the images there, or set --config.data.image_dir.")
    if not data.labels:
        listing = _load_json(_json_path(data, split), labels=False)
        _require_files(folder, listing)
        return _in_folder(folder, listing, (0,) * len(listing), (UNLABELLED,), _orients(data))
    # Integers sort as numbers and strings as text: the heads of released checkpoints follow that order.
    class_ids = sorted(set(_load_json(_json_path(data, TRAIN)).values()))
    listing = _load_json(_json_path(data, split))
    classes, label_of = _number(class_ids, class_ids if isinstance(class_ids[0], int) else None, data.num_classes)
    unknown = [class_id for class_id in listing.values() if class_id not in label_of]
    if unknown:
        raise InputError(
            f"{_json_path(data, split)} has class {unknown[0]!r}, which {_json_path(data, TRAIN)} has not: "
            "make both use the same class ids."
        )
    _require_files(folder, listing)
    return _in_folder(folder, listing, (label_of[class_id] for class_id in listing.values()), classes, _orients(data))


def _number(ids: Sequence, numbers: Sequence[int] | None, num_classes: int) -> tuple[tuple[str, ...], dict]:
    """Assign labels to class ids, and return the names of all classes and the label of each id.

    A label is the rank among the ids. Where the ids are `numbers`, a subset of 0 to `num_classes` - 1, it is the number
    itself, so that 200 of ImageNet's 1,000 classes keep their places in a classifier.
    """
    if numbers and len(set(numbers)) == len(ids) < num_classes and 0 <= min(numbers) and max(numbers) < num_classes:
        names = dict(zip(numbers, map(str, ids), strict=True))
        classes = tuple(names.get(label, str(label)) for label in range(num_classes))
        return classes, dict(zip(ids, numbers, strict=True))
    return tuple(map(str, ids)), {class_id: label for label, class_id in enumerate(ids)}


def _json_path(data: ConfigDict, split: str) -> str:
    return os.path.join(os.path.expanduser(data.root), f"{data.splits[split]}.json")


def _load_json(path: str, labels: bool = True) -> dict[str, Any]:
    """Read a split file: a JSON object from image path to class id or, without labels, also a list of paths (ids None)."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            listing = json.load(file, object_pairs_hook=functools.partial(_unique, path))
    except FileNotFoundError as error:
        raise InputError(
            f"Split file {path} does not exist: put it there, or set --config.data.root and --config.data.splits."
        ) from error
    except OSError as error:
        raise InputError(f"Split file {path} cannot be read ({error.strerror}): mend it.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"Split file {path} is not valid JSON ({error}): download it again.") from error
    if not labels and isinstance(listing, list) and listing and all(isinstance(name, str) for name in listing):
        return _unique(path, [(name, None) for name in listing])
    if not isinstance(listing, dict) or not listing:
        raise InputError(f"Split file {path} must hold a JSON object from image path to class id: write at least one.")
    if {type(class_id) for class_id in listing.values()} not in ({int}, {str}):
        raise InputError(f"The class ids in split file {path} must be all integers or all strings: rewrite the others.")
    return listing


def _unique(path: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict from a JSON object; refuse duplicate images, of which it would keep the last (`a//b` equals `a/b`)."""
    class_ids: dict[str, Any] = {}
    for name, class_id in pairs:
        place = os.path.normpath(name)
        if place in class_ids:
            both = "" if class_ids[place] == class_id else f", with the classes {class_ids[place]!r} and {class_id!r}"
            raise InputError(f"Split file {path} has the image {name!r} twice{both}: leave it in once.")
        class_ids[place] = class_id
    return dict(pairs)


def _in_folder(folder, names, labels, classes, orient) -> Files:
    return _files((os.path.join(folder, name) for name in names), labels, classes, orient)


def _require_files(images: str, listing: Iterable[str]) -> None:
    """Raise InputError unless all files of a listing are in a folder, an archive, or a folder of an archive."""
    paths = [os.path.join(images, name) for name in listing]
    if inside := archive.split(os.path.join(images, "")):
        file, folder = inside
        present = archive.names(file)
        absent = [path for path, name in zip(paths, listing, strict=True) if folder + name not in present]
        return _refuse_missing(absent, len(paths))
    names = collections.defaultdict(list)
    for path in paths:
        folder, name = os.path.split(path)
        names[folder].append(name)
    # One listing per folder: a query per file takes minutes on network disks.
    present = {folder: set(os.listdir(folder)) if os.path.isdir(folder) else () for folder in names}
    _refuse_missing(
        [os.path.join(folder, name) for folder in names for name in names[folder] if name not in present[folder]], len(paths)
    )


def _refuse_missing(missing, count):
    if missing:
        raise InputError(
            f"{len(missing)} of {count} images do not exist, the first is {missing[0]}: "
            "unpack all of them, or set --config.data.root and --config.data.image_dir."
        )


def read_folder(data: ConfigDict, split: str) -> Files:
    """Read a split of class folders, `SPLIT/CLASS/.../IMAGE`; the training split defines the classes.

    Classes are sorted by name, or by number if all names are numbers.
    """
    if not data.labels:
        return unlabelled(_split_folder(data, split, classes=False), orient=_orients(data))
    names = _subfolders(_split_folder(data, TRAIN))
    numbers = list(map(int, names)) if _are_numbers(names) else None
    classes, label_of = _number(names, numbers, data.num_classes)
    folder = _split_folder(data, split)
    unknown = sorted(set(_subfolders(folder)) - label_of.keys())
    if unknown:
        raise InputError(
            f"Class folder {os.path.join(folder, unknown[0])} has no counterpart in {_split_folder(data, TRAIN)}: "
            "remove it, or add training images of that class."
        )
    paths, labels, left_out = [], [], _loose_files(folder)
    for name in _subfolders(folder):
        images, others = _search(os.path.join(folder, name))
        _require_names(images)
        if not images:
            raise InputError(
                f"Class folder {os.path.join(folder, name)} has no images ({listed(suffixes(), most=6)}): add some or remove "
                "the folder."
            )
        paths += images
        labels += [label_of[name]] * len(images)
        left_out += others
    _log_left_out(folder, left_out)
    return _files(paths, labels, classes, _orients(data))


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
        names = sorted(entry.name for entry in entries if os.path.isdir(entry) and not entry.name.startswith("."))
    return sorted(names, key=int) if _are_numbers(names) else names


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)


def _loose_files(folder: str) -> list[str]:
    """Return the files beside the class folders, which belong to no class."""
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if os.path.isfile(entry) and not entry.name.startswith("."))


def _search(path: str) -> tuple[list[str], list[str]]:
    """List the images at every depth of a folder, and the other files, each sorted by path.

    Links are followed, and no folder is entered twice. Hidden files and folders are in neither list.
    """
    images: list[str] = []
    others: list[str] = []
    entered = {os.path.realpath(path)}
    for folder, below, names in os.walk(path, followlinks=True, onerror=_refuse_unreadable):
        real = {os.path.realpath(os.path.join(folder, name)): name for name in sorted(below, reverse=True) if name[0] != "."}
        below[:] = sorted(name for place, name in real.items() if place not in entered)
        entered |= real.keys()
        for name in names:
            if not name.startswith("."):
                (images if is_image(name) else others).append(os.path.join(folder, name))
        # An empty folder that is named like an image is reported when it is read.
        named_like_images = (os.path.join(folder, name) for name in below if is_image(name))
        images += [place for place in named_like_images if not os.listdir(place)]
    return sorted(images), sorted(others)


def _refuse_unreadable(error: OSError) -> None:
    raise InputError(f"Folder {error.filename} cannot be read ({error.strerror}): mend or remove it.") from error


def _log_left_out(folder: str, paths: Sequence[str]) -> None:
    if paths:
        names = listed([_printable(os.path.relpath(path, folder)) for path in paths], most=3)
        log.warning("%s: %d files are left out, not named like images or in no class folder (%s).", folder, len(paths), names)


def _require_names(paths: Sequence[str]) -> None:
    """Raise InputError for a name that is not text, because it could not be written to a file of results."""
    for path in paths:
        if not path.isprintable() and any("\ud800" <= character <= "\udfff" for character in path):
            raise InputError(f"The name of {_printable(path)} is not UTF-8: rename it.")


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def existing_root(data: ConfigDict) -> str:
    """Expand `~` in `data.root`; InputError if that folder does not exist."""
    root = os.path.expanduser(data.root)
    if not os.path.isdir(root):
        raise InputError(f"Data folder {root or repr(root)} does not exist: set --config.data.root.")
    return root
