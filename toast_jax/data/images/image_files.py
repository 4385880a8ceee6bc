"""Sources of image files, named by JSON split files or found in class folders, and helpers that tables share."""

import dataclasses
import functools
import io
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NoReturn

from ml_collections import ConfigDict
from PIL import Image

from toast_jax.data.images import archive
from toast_jax.errors import InputError, listed

log = logging.getLogger(__name__)

# The class of images without labels.
UNLABELLED = "unlabelled"
TRAIN = "train"
_COMMON_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
# Formats that Pillow recognizes but does not decode, or decodes only with another program (EPS) or system (WMF).
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
_NAMED = 3  # how many files a warning names


@dataclasses.dataclass(frozen=True)
class Files:
    """A source of image files.

    Attributes:
        paths: of the files.
        labels: for each file an index into `classes`.
        classes: their names.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    # Whether images are turned upright by their EXIF orientation: part of the config, not of the data's fingerprint.
    orient: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        example = {"image": content(path), "label": self.labels[index], "name": path}
        return {**example, "orient": True} if self.orient else example


def content(path: str) -> bytes:
    """Read the file of an image, which may be in an archive.

    Raises:
        InputError: it cannot be read.
    """
    if inside := archive.split(path):
        return archive.read(*inside)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # opening a pipe would block
            return file.read()
    except OSError as error:
        raise InputError(f"Image {path} cannot be read ({error.strerror}): mend or remove it.") from error


def opened(path: str) -> str | io.BytesIO:
    """Return a file for `pixels.size_of` and `pixels.is_turned`: a path, or the content of an image in an archive."""
    inside = archive.split(path)
    return io.BytesIO(archive.read(*inside)) if inside else path


class UprightFiles(Files):
    """A source of image files that are turned upright by their EXIF orientation, as viewers show them."""

    orient = True


@functools.cache
def suffixes() -> tuple[str, ...]:
    """List the suffixes of all formats that Pillow decodes, in lower case, common ones first."""
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
    paths = tuple(in_folder(path)) if os.path.isdir(path) else (path,)
    _require_names(paths)
    return (UprightFiles if orient else Files)(paths, (0,) * len(paths), (UNLABELLED,))


def in_folder(folder: str) -> Iterator[str]:
    """Yield the images of a folder at every depth, sorted by path; then log the files that are left out.

    Raises:
        InputError: a folder cannot be listed, or there is no image.
    """
    count, others = 0, 0
    examples: list[str] = []
    for path, named_like_image in _walk(folder):
        if named_like_image:
            count += 1
            yield path
        else:
            others += 1
            if len(examples) < _NAMED:
                examples.append(path)
    if not count:
        raise InputError(f"Folder {folder} has no images ({listed(suffixes(), most=6)}): put some there, at any depth.")
    _log_left_out(folder, examples, others)


def files_of(data: ConfigDict, paths: Iterable[str], labels: Iterable[int], classes: tuple[str, ...]) -> Files:
    """Return a source of image files, turned upright by their EXIF orientation if the config asks for it."""
    orient = data.get("exif_orientation", False)  # absent in runs of earlier versions
    return (UprightFiles if orient else Files)(tuple(paths), tuple(labels), classes)


def image_root(data: ConfigDict) -> str:
    """Return the folder or archive that image paths of a config are relative to."""
    root = os.path.expanduser(data.root)
    folder = os.path.dirname(root) if os.path.isfile(root) else root  # the file is a table
    return os.path.join(folder, data.image_dir) if data.format in ("json", "table") else folder


def read_json(data: ConfigDict, split: str) -> Files:
    """Read a split in VPT's format, `SPLIT.json`: image path to class id; the training split defines the classes."""
    root, folder = existing_root(data), image_root(data)
    if not os.path.isdir(folder) and not archive.split(os.path.join(folder, "")):
        classes = os.path.join(root, "train")
        remedy = "unpack the images there, or set --config.data.image_dir"
        if place := neighbor_with(root, data.image_dir):
            remedy = f"it is in {place}; set --config.data.root to that"
        elif os.path.isdir(classes):
            remedy = f"{remedy}; folders of classes, as in {classes}, need config.data.format=folder"
        raise InputError(f"Image folder {folder} does not exist: {remedy}.")
    if not data.labels:
        listing = _load_json(_json_path(data, split), labels=False)
        _require_files(folder, listing)
        return files_of(data, (os.path.join(folder, name) for name in listing), (0,) * len(listing), (UNLABELLED,))
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
    labels = (label_of[class_id] for class_id in listing.values())
    return files_of(data, (os.path.join(folder, name) for name in listing), labels, classes)


def ranked(names: Collection[str], num_classes: int) -> tuple[tuple[str, ...], dict[str, int]]:
    """Sort classes by name, or by number if all names are numbers; return their names, and the label of each.

    With `num_classes`, numbers below it are labels, see docs/data.md.
    """
    ordered = _in_order(names)
    return _number(ordered, list(map(int, ordered)) if _are_numbers(ordered) else None, num_classes)


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


def _require_files(images: str, listing: Collection[str]) -> None:
    """Raise InputError unless all files of a listing are in a folder, an archive, or a folder in one."""
    if missing := absent(images, listing):
        remedy = "unpack all of them, or set --config.data.root and --config.data.image_dir."
        if folder := shifted(images, listing, missing):
            remedy = f"it is in {folder}; set --config.data.root and --config.data.image_dir to that."
        raise InputError(
            f"{len(missing)} of {len(listing)} images do not exist, the first is {os.path.join(images, missing[0])}: {remedy}"
        )


def shifted(images: str, listing: Collection[str], missing: Sequence[str]) -> str | None:
    """Return the folder one level below or above `images` that has the first file of a listing, if all files are `missing`."""
    return neighbor_with(images, missing[0]) if len(missing) == len(listing) else None


def neighbor_with(folder: str, name: str) -> str | None:
    """Return the folder one level below or above another one, or an archive, that has a file or folder; None without one."""
    above = os.path.dirname(os.path.normpath(folder)) or os.curdir
    if inside := archive.split(os.path.join(folder, "")):
        file, within = inside
        below = sorted({f"{file}/{entry.split('/')[0]}" for entry in archive.names(file) if "/" in entry and not within})
    else:
        below = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir()) if os.path.isdir(folder) else []
    return next((neighbor for neighbor in (*below, above) if not absent(neighbor, [name])), None)


def absent(images: str, listing: Iterable[str]) -> list[str]:
    """Return the files of a listing that a folder, an archive or a folder in one lacks, in the order of the listing."""
    if inside := archive.split(os.path.join(images, "")):
        file, folder = inside
        names = archive.names(file)
        return [name for name in listing if folder + name not in names]

    @functools.cache  # a query per file takes minutes on network disks
    def present(folder):
        return frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()

    splits = ((name, os.path.split(os.path.join(images, name))) for name in listing)
    return [name for name, (folder, file) in splits if file not in present(folder)]


def read_folder(data: ConfigDict, split: str) -> Files:
    """Read a split of class folders, `SPLIT/CLASS/.../IMAGE`; the training split defines the classes.

    Classes are sorted by name, or by number if all names are numbers.
    """
    if not data.labels:
        return unlabelled(_split_folder(data, split, classes=False), orient=data.get("exif_orientation", False))
    classes, label_of = ranked(_subfolders(_split_folder(data, TRAIN)), data.num_classes)
    folder = _split_folder(data, split)
    unknown = sorted(set(_subfolders(folder)) - label_of.keys())
    if unknown:
        raise InputError(
            f"Class folder {os.path.join(folder, unknown[0])} has no counterpart in {_split_folder(data, TRAIN)}: "
            "remove it, or add training images of that class."
        )
    paths, labels, left_out = [], [], _loose_files(folder)
    for name in _subfolders(folder):
        entries = list(_walk(os.path.join(folder, name)))
        images = [path for path, named_like_image in entries if named_like_image]
        _require_names(images)
        if not images:
            raise InputError(
                f"Class folder {os.path.join(folder, name)} has no images ({listed(suffixes(), most=6)}): add some or remove "
                "the folder."
            )
        paths += images
        labels += [label_of[name]] * len(images)
        left_out += [path for path, named_like_image in entries if not named_like_image]
    _log_left_out(folder, left_out[:_NAMED], len(left_out))
    return files_of(data, paths, labels, classes)


def has_split_folders(data: ConfigDict) -> bool:
    """Return whether the data has a folder for each split, not just class folders of which a share is held out."""
    folders = (os.path.join(os.path.expanduser(data.root), name) for name in data.splits.values() if name)
    return not data.get("held_out", 0) or any(map(os.path.isdir, folders))


def _split_folder(data: ConfigDict, split: str, classes: bool = True) -> str:
    root = existing_root(data)
    folder = os.path.join(root, data.splits[split]) if has_split_folders(data) else root
    if not os.path.isdir(folder):
        without = "to nothing if there is no such split"
        if split == TRAIN:
            without = f"--config.data.held_out=0.2 if {root} has class folders and no splits"
        remedy = f"create it, or set --config.data.splits.{split} to another folder, or {without}."
        if place := neighbor_with(root, data.splits[split]):
            remedy = f"it is in {place}; set --config.data.root to that."
        raise InputError(
            f"Folder {folder} does not exist ({root} has {listed(_subfolders(root), most=3) or 'no folders'}): {remedy}"
        )
    if classes and not _subfolders(folder):
        in_root = data.get("held_out", 0) and folder != root
        above = f", or set --config.data.splits.{split}=. if they are in {root}" if in_root else ""
        raise InputError(f"Folder {folder} has no class folders: put the images in one folder for each class{above}.")
    return folder


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return _in_order([entry.name for entry in entries if os.path.isdir(entry) and not entry.name.startswith(".")])


def _in_order(names: Collection[str]) -> list[str]:
    ordered = sorted(names)
    return sorted(ordered, key=int) if _are_numbers(ordered) else ordered


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)


def _loose_files(folder: str) -> list[str]:
    """List the files beside the class folders, which have no class."""
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if os.path.isfile(entry) and not entry.name.startswith("."))


def _walk(folder: str, entered: set[str] | None = None) -> Iterator[tuple[str, bool]]:
    """Yield the files at every depth of a folder, sorted by path, and whether each is named like an image.

    Links are followed, and no folder is entered twice. Hidden files and folders are left out. Memory holds only the names in
    the folders on the current path.
    """
    entered = {os.path.realpath(folder)} if entered is None else entered
    try:
        with os.scandir(folder) as entries:
            names = {entry.name: _is_folder(entry) for entry in entries if not entry.name.startswith(".")}
    except OSError as error:
        _refuse_unreadable(error)
    below = sorted((name for name, is_folder in names.items() if is_folder), reverse=True)
    first = {os.path.realpath(os.path.join(folder, name)): name for name in below}  # of two links to a folder
    inside = {name for place, name in first.items() if place not in entered}
    entered |= first.keys()
    for name in sorted(names, key=lambda name: f"{name}/" if names[name] else name):
        path = os.path.join(folder, name)
        if not names[name]:
            yield path, is_image(path)
        elif name in inside:
            # An empty folder that is named like an image is reported when it is read.
            if is_image(path) and not os.listdir(path):
                yield path, True
            yield from _walk(path, entered)


def _is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or a link to one, usually without another query to the disk."""
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise InputError(f"Folder {error.filename} cannot be read ({error.strerror}): mend or remove it.") from error


def _log_left_out(folder: str, examples: Sequence[str], count: int) -> None:
    if count:
        names = ", ".join(_printable(os.path.relpath(path, folder)) for path in examples)
        more = f" and {count - len(examples)} more" if count > len(examples) else ""
        files = "1 file is" if count == 1 else f"{count} files are"
        log.warning("%s: %s left out, not named like images or in no class folder (%s%s).", folder, files, names, more)


def _require_names(paths: Sequence[str]) -> None:
    for path in paths:
        require_text(path)


def require_text(path: str) -> None:
    """Raise InputError for a name that is not text, because it could not be written to a file of results."""
    if not path.isprintable() and any("\ud800" <= character <= "\udfff" for character in path):
        raise InputError(f"The name of {_printable(path)} is not UTF-8: rename it.")


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def existing_root(data: ConfigDict) -> str:
    """Expand `~` in `data.root`; InputError unless it is a folder."""
    root = os.path.expanduser(data.root)
    if os.path.isfile(root):
        raise InputError(f"{root} is a file: set --config.data.root to a folder or, for tables, the format too (docs/data.md).")
    if not os.path.isdir(root):
        raise InputError(f"Data folder {root or repr(root)} does not exist: set --config.data.root.")
    return root
