"""The 19 tasks of VTAB-1k (arXiv 1910.04867): their datasets, classes and splits.

The definitions are those of google-research/task_adaptation as VPT and TOAST use them. This module reads no data.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

NATURAL, SPECIALIZED, STRUCTURED = "natural", "specialized", "structured"

# Number of training and of validation images.
TRAIN, VAL = 800, 200

_KAGGLE = "https://www.kaggle.com/c/diabetic-retinopathy-detection/data"
_ONEDRIVE = "https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs"


@dataclasses.dataclass(frozen=True)
class Builder:
    """A TFDS dataset.

    Attributes:
        versions: versions with the same images in the same order; the first is the one to prepare.
        gigabytes: approximate disk space for preparing, downloads and unpacked archives included.
        val, test: a TFDS split and the percentage of it after which these images begin; training images are the first of the
            split 'train'.
        filename: feature that names an image, '' for none.
        scale: factor on the stored pixels.
        manual: files that must be in the manual folder.
        source: where to download the manual files.
    """

    versions: tuple[str, ...]
    gigabytes: float
    val: tuple[str, int]
    test: tuple[str, int] = ("test", 0)
    filename: str = ""
    scale: int = 1
    manual: tuple[str, ...] = ()
    source: str = ""


BUILDERS = {
    "caltech101": Builder(("3.0.2", "3.0.1"), 0.6, ("train", 90), filename="image/file_name"),
    "cifar100": Builder(("3.0.2",), 0.5, ("train", 90), filename="id"),
    "dtd": Builder(("3.0.1",), 2, ("validation", 0), filename="file_name"),
    "oxford_flowers102": Builder(("2.1.1",), 1.1, ("validation", 0), filename="file_name"),
    "oxford_iiit_pet": Builder(("4.0.0", "3.2.0"), 2.5, ("train", 80), filename="file_name"),
    "sun397/tfds": Builder(("4.0.0",), 80, ("validation", 0), filename="file_name"),
    "svhn_cropped": Builder(("3.1.0", "3.0.0"), 3, ("train", 90)),
    "patch_camelyon": Builder(("2.0.0",), 25, ("validation", 0), filename="id"),
    "eurosat/rgb": Builder(("2.0.0",), 0.4, ("train", 60), ("train", 80), filename="filename"),
    "resisc45": Builder(
        ("3.0.0",),
        0.5,
        ("train", 60),
        ("train", 80),
        filename="filename",
        manual=("NWPU-RESISC45",),
        source=f"{_ONEDRIVE}, unpacked",
    ),
    "diabetic_retinopathy_detection/btgraham-300": Builder(
        ("3.0.0",),
        5,
        ("validation", 0),
        filename="name",
        manual=("train", "test", "sample", "trainLabels.csv"),
        source=f"{_KAGGLE}, each archive unpacked into the folder of its name",
    ),
    "clevr": Builder(("3.1.0", "3.0.0"), 60, ("train", 90), ("validation", 0), filename="file_name"),
    "dmlab": Builder(("2.0.1",), 10, ("validation", 0), filename="filename"),
    "kitti": Builder(("3.3.0", "3.2.0"), 19, ("validation", 0), filename="image/file_name"),
    "dsprites": Builder(("2.0.0",), 0.5, ("train", 80), ("train", 90), scale=255),
    "smallnorb": Builder(("2.0.0",), 1.5, ("test", 0), ("test", 50)),
}


def count_objects(objects: Mapping[str, Any]) -> int:
    """Classify a CLEVR image by its number of objects, 3 to 10."""
    return len(objects["size"]) - 3


def closest_object(objects: Mapping[str, Any]) -> int:
    """Classify a CLEVR image by the distance of the closest object, in six bins that include their upper edges."""
    distances = np.reshape(objects["pixel_coords"], (-1, 3))[:, 2]
    return _bin(min(distances), (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0))


def closest_vehicle(objects: Mapping[str, Any]) -> int:
    """Classify a KITTI image by the distance ahead, in meters, of the closest car, van or truck (types 0, 1 and 2).

    There are three bins, and a fourth for images without a vehicle.
    """
    ahead = np.reshape(objects["location"], (-1, 3))[:, 2]
    vehicles = ahead[np.asarray(objects["type"]) < 3]
    return _bin(min(vehicles, default=1000.0), (-100.0, 8.0, 20.0, 999.0))


def position_bin(position: int) -> int:
    """Classify a dSprites position, 0 to 31, in 16 pairs."""
    return position // 2


def orientation_bin(orientation: int) -> int:
    """Classify a dSprites orientation, 0 to 39, in 16 bins of alternately three and two."""
    return int(orientation / 2.5)


def _bin(value: float, edges: tuple[float, ...]) -> int:
    """Return the index of the last edge below the value; -1 if there is none."""
    return int(np.searchsorted(edges, value, side="left")) - 1


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of VTAB-1k.

    Attributes:
        builder: key of BUILDERS.
        key: the feature that determines the class.
        label: from that feature to the class.
        names: names of the classes, if not those of the feature.
        published: name of the task in VPT's list of training images, '' if the list lacks it.
    """

    group: str
    builder: str
    num_classes: int
    key: str = "label"
    label: Callable[[Any], int] = int
    names: tuple[str, ...] = ()
    published: str = ""


_COUNTS = tuple(f"{count} objects" for count in range(3, 11))
_DEPTHS = ("up to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "beyond 10")
_METRES = ("up to 8 m", "8 to 20 m", "beyond 20 m", "no vehicle")
_PAIRS = tuple(f"{2 * low} or {2 * low + 1} of 32" for low in range(16))
_TURNS = tuple(f"{-(-5 * low // 2)} to {-(-5 * (low + 1) // 2) - 1} of 40" for low in range(16))

TASKS = {
    "cifar100": Task(NATURAL, "cifar100", 100, published="cifar(num_classes=100)"),
    "caltech101": Task(NATURAL, "caltech101", 102, published="caltech101"),
    "dtd": Task(NATURAL, "dtd", 47, published="dtd"),
    "oxford_flowers102": Task(NATURAL, "oxford_flowers102", 102, published="oxford_flowers102"),
    "oxford_iiit_pet": Task(NATURAL, "oxford_iiit_pet", 37, published="oxford_iiit_pet"),
    "svhn": Task(NATURAL, "svhn_cropped", 10),
    "sun397": Task(NATURAL, "sun397/tfds", 397, published="sun397"),
    "patch_camelyon": Task(SPECIALIZED, "patch_camelyon", 2, published="patch_camelyon"),
    "eurosat": Task(SPECIALIZED, "eurosat/rgb", 10, published="eurosat"),
    "resisc45": Task(SPECIALIZED, "resisc45", 45, published="resisc45"),
    "diabetic_retinopathy": Task(
        SPECIALIZED,
        "diabetic_retinopathy_detection/btgraham-300",
        5,
        published='diabetic_retinopathy(config="btgraham-300")',
    ),
    "clevr_count": Task(STRUCTURED, "clevr", 8, "objects", count_objects, _COUNTS, 'clevr(task="count_all")'),
    "clevr_distance": Task(STRUCTURED, "clevr", 6, "objects", closest_object, _DEPTHS, 'clevr(task="closest_object_distance")'),
    "dmlab": Task(STRUCTURED, "dmlab", 6, published="dmlab"),
    "kitti": Task(STRUCTURED, "kitti", 4, "objects", closest_vehicle, _METRES, 'kitti(task="closest_vehicle_distance")'),
    "dsprites_location": Task(STRUCTURED, "dsprites", 16, "label_x_position", position_bin, _PAIRS),
    "dsprites_orientation": Task(STRUCTURED, "dsprites", 16, "label_orientation", orientation_bin, _TURNS),
    "smallnorb_azimuth": Task(STRUCTURED, "smallnorb", 18, "label_azimuth"),
    "smallnorb_elevation": Task(STRUCTURED, "smallnorb", 9, "label_elevation"),
}


def slices(builder: Builder, counts: Mapping[str, int]) -> dict[str, str]:
    """Express the splits of VTAB-1k as slices of TFDS splits.

    Args:
        builder: the dataset.
        counts: number of images by TFDS split.

    Returns:
        For train800, val200, train800val200 and test the TFDS slice, such as 'train[:800]'.

    Raises:
        KeyError: a TFDS split is missing.
    """
    first, (name, percent) = counts[builder.val[0]] * builder.val[1] // 100, builder.test
    train, val = f"train[:{TRAIN}]", f"{builder.val[0]}[{first}:{first + VAL}]"
    test = f"{name}[{counts[name] * percent // 100}:]"
    return {"train800": train, "val200": val, "train800val200": f"{train}+{val}", "test": test}


def share_images(builder: Builder, counts: Mapping[str, int]) -> bool:
    """Return whether two of the slices have images in common, as only those of a part of a dataset do; see `slices`."""
    first, last = (counts[name] * percent // 100 for name, percent in (builder.val, builder.test))
    parts = [("train", 0, TRAIN), (builder.val[0], first, first + VAL), (builder.test[0], last, counts[builder.test[0]])]
    pairs = itertools.combinations(parts, 2)
    return any(one == other and start < its_end and its_start < end for (one, start, end), (other, its_start, its_end) in pairs)
