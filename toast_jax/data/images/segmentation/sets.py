"""Sets of images with masks: your own folder, VOC2012, ADE20K with 150 classes, Cityscapes, and the scenes of the demo."""

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping

from ml_collections import ConfigDict

from toast_jax.data.images import synthetic_scenes
from toast_jax.data.images.image_files import absent, existing_root, neighbor_with, shifted
from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.data.images.segmentation.masks import Code, MaskedImages, MaskedSource, UprightMaskedImages
from toast_jax.data.images.segmentation.scenes import MaskedScenes
from toast_jax.errors import InputError, choose

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# Class names and their values in *_labelIds.png; all other values are ignored.
CITYSCAPES = {
    **{"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19, "traffic sign": 20},
    **{"vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31},
    **{"motorcycle": 32, "bicycle": 33},
}
_ADE_CLASSES = 150
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass(frozen=True)
class _Labels:
    """The classes of a set and their values in masks, as in `MaskedImages`."""

    classes: tuple[str, ...]
    codes: tuple[Code, ...]
    ignored: tuple[Code, ...] = (IGNORED,)


def open_split(data: ConfigDict, split: str) -> MaskedSource:
    """Open one split of the data of a config, and check that all of its files exist.

    Args:
        data: the fields `format`, `root` and `splits`.
        split: "train", "val" or "test".

    Raises:
        InputError: the data is missing, incomplete, or contradicts the config.
    """
    return choose("config.data.format", data.format, READERS)(data, split)


def _scenes(data: ConfigDict, split: str) -> MaskedScenes:
    return MaskedScenes(*synthetic_scenes.part(split, data.splits[split]))


def _files(
    read: Callable[[str, str], tuple[list[tuple[str, str]], _Labels]],
    data: ConfigDict,
    split: str,
    kind: type[MaskedImages] = MaskedImages,
) -> MaskedImages:
    """Open files by a function from `data.root` and a split to pairs of paths, image and mask, and their labels."""
    pairs, labels = read(existing_root(data), data.splits[split])
    images, masks = zip(*pairs, strict=True)
    return kind(images, masks, **dataclasses.asdict(labels))


def _folder(root: str, split: str) -> tuple[list[tuple[str, str]], _Labels]:
    """Read `images/NAME.jpg` (or .jpeg, .png) and `masks/NAME.png` of the names in `SPLIT.txt`; classes are `classes.json`."""
    path, folder = os.path.join(root, f"{split}.txt"), os.path.join(root, "images")
    names = _names(root, f"{split}.txt")
    # With or without the ending of the image.
    stems = [os.path.splitext(name)[0] if name.lower().endswith(_SUFFIXES) else name for name in names]
    if twice := _repeated(stems):
        raise InputError(f"List {path} names the image {twice[0]!r} twice: leave it in once.")
    is_file = lambda name, stem: name != stem and os.path.exists(os.path.join(folder, name))  # noqa: E731
    files = [name if is_file(name, stem) else stem + _suffix(folder, stem) for name, stem in zip(names, stems, strict=True)]
    return _pairs(path, root, [(f"images/{file}", f"masks/{stem}.png") for file, stem in zip(files, stems, strict=True)]), (
        _described(os.path.join(root, "classes.json"))
    )


def _suffix(folder: str, stem: str) -> str:
    """Return the suffix of the image file with a name, or the first of `_SUFFIXES` if there is no such file."""
    suffixes = (*_SUFFIXES, *map(str.upper, _SUFFIXES))
    return next((suffix for suffix in suffixes if os.path.exists(os.path.join(folder, stem + suffix))), _SUFFIXES[0])


def _described(path: str) -> _Labels:
    """Read `classes.json`: names in the order of their indices, or an object from names to indices or colors."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file, object_pairs_hook=tuple)  # pairs, as a dict would drop a name that is given twice
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): write the names of the classes to it.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): mend it.") from error
    pairs = [(name, index) for index, name in enumerate(content)] if isinstance(content, list) else content
    is_index = lambda code: isinstance(code, int) and 0 <= code < IGNORED  # noqa: E731
    is_color = lambda code: isinstance(code, list) and len(code) == 3 and all(map(_is_byte, code))  # noqa: E731
    names, codes = zip(*pairs, strict=True) if pairs and isinstance(pairs, (list, tuple)) else ((), ())
    are_names = all(isinstance(name, (str, int)) for name in names)
    if not 0 < len(codes) <= IGNORED or not are_names or not (all(map(is_index, codes)) or all(map(is_color, codes))):
        raise InputError(
            f"{path} must hold a list of at most {IGNORED} class names, or an object from names to indices below {IGNORED} or "
            "to colors [red, green, blue]: rewrite it."
        )
    names, codes = tuple(map(str, names)), tuple(tuple(code) if isinstance(code, list) else code for code in codes)
    if len(set(codes)) < len(codes):
        raise InputError(f"{path} gives two classes the same index or color: make them differ.")
    if twice := _repeated(names):
        raise InputError(f"{path} has the class {twice[0]!r} twice: give each class one name of its own.")
    return _Labels(names, codes, (IGNORED,) if isinstance(codes[0], int) else ())


def _repeated(names: Iterable[str]) -> list[str]:
    """List the names that are there more than once."""
    return [name for name, count in collections.Counter(names).items() if count > 1]


def _is_byte(value) -> bool:
    return isinstance(value, int) and 0 <= value < 256


def _voc(root: str, split: str) -> tuple[list[tuple[str, str]], _Labels]:
    """Read `VOCdevkit/VOC2012`: train, val, trainval, or with SBD's masks train+aug or trainaug."""
    pairs = []
    for name in split.split("+"):
        file = os.path.join("ImageSets", "Segmentation", f"{name}.txt")
        masks = "SegmentationClassAug" if name.endswith("aug") else "SegmentationClass"
        files = [(f"JPEGImages/{stem}.jpg", f"{masks}/{stem}.png") for stem in _names(root, file)]
        pairs += _pairs(os.path.join(root, file), root, files)
    if twice := _repeated(image for image, _ in pairs):
        raise InputError(f"The lists of {split} name {len(twice)} images twice, {twice[0]} for one: take them out of one list.")
    return pairs, _Labels(VOC_CLASSES, tuple(range(len(VOC_CLASSES))))


def _ade20k(root: str, split: str) -> tuple[list[tuple[str, str]], _Labels]:
    """Read `ADEChallengeData2016`: training or validation. Value 0 is ignored, k is class k - 1."""
    folder = os.path.join(root, "images", split)
    stems = [file.removesuffix(".jpg") for file in _listing(root, "images", split) if file.endswith(".jpg")]
    pairs = [(f"images/{split}/{stem}.jpg", f"annotations/{split}/{stem}.png") for stem in stems]
    names = tuple(map(str, range(1, _ADE_CLASSES + 1)))
    description = os.path.join(root, "objectInfo150.txt")
    if os.path.exists(description):
        with open(description, encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t") for line in file]
        named = [row[-1].split(",")[0].strip() for row in rows if row[0].strip().isdigit()]
        names = tuple(named) if len(set(named)) == _ADE_CLASSES else names
    return _pairs(folder, root, pairs), _Labels(names, tuple(range(1, _ADE_CLASSES + 1)), (0, IGNORED))


def _cityscapes(root: str, split: str) -> tuple[list[tuple[str, str]], _Labels]:
    """Read `leftImg8bit` and `gtFine` of Cityscapes: train or val. Values that are not evaluated are ignored."""
    folder, ending = os.path.join(root, "leftImg8bit", split), "_leftImg8bit.png"
    cities = _listing(root, "leftImg8bit", split)
    files = [f"{city}/{file}" for city in cities for file in _listing(root, "leftImg8bit", split, city)]
    stems = [file.removesuffix(ending) for file in files if file.endswith(ending)]
    pairs = [(f"leftImg8bit/{split}/{stem}{ending}", f"gtFine/{split}/{stem}_gtFine_labelIds.png") for stem in stems]
    codes = tuple(CITYSCAPES.values())
    ignored = tuple(value for value in range(256) if value not in codes)
    return _pairs(folder, root, pairs), _Labels(tuple(CITYSCAPES), codes, ignored)


READERS: Mapping[str, Callable[[ConfigDict, str], MaskedSource]] = {
    "folder": functools.partial(_files, _folder, kind=UprightMaskedImages),
    "voc": functools.partial(_files, _voc),
    "ade20k": functools.partial(_files, _ade20k),
    "cityscapes": functools.partial(_files, _cityscapes),
    "scenes": _scenes,
}


def _names(root: str, file: str) -> list[str]:
    """Read a list under `root`, one name a line."""
    path = os.path.join(root, file)
    try:
        with open(path, encoding="utf-8-sig") as opened:
            names = [line.strip() for line in opened if line.strip()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = _remedy(root, file, "set --config.data.root and --config.data.splits, or write this list.")
        raise InputError(f"List {path} cannot be read ({reason}): {remedy}") from error
    if not names:
        raise InputError(f"List {path} names no image: write one name a line.")
    return names


def _listing(root: str, *parts: str) -> list[str]:
    """List the files of a folder under `root`."""
    folder = os.path.join(root, *parts)
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        remedy = _remedy(root, os.path.join(*parts), "set --config.data.root.")
        raise InputError(f"Folder {folder} cannot be read ({error.strerror}): {remedy}") from error


def _remedy(root: str, name: str, other: str) -> str:
    """Return which folder to set as the root, if one beside `root` has a file or folder, else another remedy."""
    place = None if os.path.exists(os.path.join(root, name)) else neighbor_with(root, name)
    return f"it is in {place}; set --config.data.root to that." if place else other


def _pairs(origin: str, root: str, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return pairs of paths under `root`; InputError if `origin`, a list or a folder, is empty or files are missing."""
    if not pairs:
        raise InputError(f"Folder {origin} has no images: set --config.data.root.")
    for kind, files in zip(("images", "masks"), zip(*pairs, strict=True), strict=True):
        if missing := absent(root, files):
            first = os.path.join(root, missing[0])
            lossy = any(os.path.exists(os.path.splitext(first)[0] + suffix) for suffix in (".jpg", ".jpeg"))
            remedy = "write the JPEG there as PNG" if kind == "masks" and lossy else "unpack all of them"
            remedy = f"{remedy}, or take them out of the list."
            if place := shifted(root, files, missing):
                remedy = f"it is in {place}; move what is there to {root}."
            raise InputError(
                f"{len(missing)} of the {len(pairs)} {kind} of {origin} do not exist, the first is {first}: {remedy}"
            )
    return [(os.path.join(root, image), os.path.join(root, mask)) for image, mask in pairs]
