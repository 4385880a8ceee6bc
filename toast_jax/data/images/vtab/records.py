"""Images of VTAB-1k, from TFDS datasets prepared by `configs/prepare.py`; reading them needs no TensorFlow."""

import concurrent.futures
import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from toast_jax.data.images import pixels, tfds_records
from toast_jax.data.images.vtab import published_lists, tasks
from toast_jax.errors import InputError, choose, listed, with_remedy

# Splits up to this size are cached in memory; larger ones are test splits, which are read once.
CACHED = tasks.TRAIN + tasks.VAL


@dataclasses.dataclass(frozen=True)
class VtabImages(tfds_records.Records):
    """A source (see `sources.Source`) of the images of a task; 'image' is uint8 [size, size, 3].

    Attributes:
        task: key of `vtab.tasks.TASKS`.
        directory: folder of the prepared dataset.
        split: the TFDS split, such as 'train[:800]'.
        size: side that images are stretched to, in pixels.
        classes: names of the classes.
        indices: positions in the split, None for the whole split.
    """

    task: str
    directory: str
    split: str
    size: int
    classes: tuple[str, ...]
    indices: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self._records if self.indices is None else self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._cached[index] if len(self) <= CACHED else self._read(index)

    def name(self, index: int) -> str:
        """Return the name of an image in the dataset, or else its position."""
        return self._name(index, self._record(index))

    def _name(self, index: int, record: dict[str, Any]) -> str:
        feature = tasks.BUILDERS[tasks.TASKS[self.task].builder].filename
        return record[feature].decode(errors="backslashreplace") if feature else f"{self.split}[{index}]"

    def _record(self, index: int) -> dict[str, Any]:
        place = index if self.indices is None else self.indices[index]
        return tfds_records.record_of(self._records, place, self.directory)

    def _read(self, index: int) -> dict[str, Any]:
        task, record = tasks.TASKS[self.task], self._record(index)
        name, label = f"{task.builder} {self._name(index, record)}", task.label(record[task.key])
        if not 0 <= label < task.num_classes:
            raise InputError(
                f"Image {name} has class {label} of {self.task}, which has 0 to {task.num_classes - 1}: remove "
                f"{self.directory} and prepare it again."
            )
        with with_remedy(f"remove {self.directory} and prepare it again"):
            image = pixels.decode(record["image"], name) * tasks.BUILDERS[task.builder].scale
        return {"image": pixels.stretch(image, self.size), "label": label, "name": name}

    @functools.cached_property
    def _cached(self) -> tuple[dict[str, Any], ...]:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return tuple(pool.map(self._read, range(len(self))))


def read(data: ConfigDict, split: str) -> VtabImages:
    """Open a split of the task `data.name`; all images of a training or validation split are read and checked.

    Raises:
        InputError: the dataset is not prepared, damaged, or too small.
    """
    task = choose("config.data.name", data.name, tasks.TASKS)
    if data.resize != data.image_size:
        raise InputError(
            f"VTAB's images are stretched to {data.image_size} pixels and not cropped, but config.data.resize is "
            f"{data.resize}: set --config.data.resize={data.image_size}."
        )
    if not data.labels:
        raise InputError("config.data.labels is False, but the images of VTAB have classes: set it to True.")
    directory = prepared(os.path.expanduser(data.root), task.builder)
    try:
        return _open(data, split, task, directory)
    except (AttributeError, OSError, RuntimeError, ValueError) as error:  # TFDS raises these for damaged files
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{directory} is damaged ({reason}): remove it and prepare it again.") from error


def _open(data: ConfigDict, split: str, task: tasks.Task, directory: str) -> VtabImages:
    info = tfds_records.library().builder_from_directory(directory).info
    if missing := [str(path) for part in info.splits.values() for path in part.filepaths if not path.exists()]:
        raise InputError(f"{directory} lacks {listed(missing, most=3)}: remove it and prepare it again.")
    counts = {name: part.num_examples for name, part in info.splits.items()}
    try:
        slices = tasks.slices(tasks.BUILDERS[task.builder], counts)
    except KeyError as error:
        raise InputError(f"{directory} has no split {error}: remove it and prepare it again.") from error
    classes = task.names or tuple(info.features[task.key].names)
    chosen = choose(f"config.data.splits.{split}", data.splits[split], slices)
    open_slice = functools.partial(VtabImages, task=data.name, directory=directory, size=data.image_size, classes=classes)
    source = open_slice(split=chosen)
    try:
        len(source)
        if tasks.share_images(tasks.BUILDERS[task.builder], counts):
            raise ValueError("training images are evaluated")
    except ValueError as error:
        have = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise InputError(
            f"{directory} is too small for {chosen} of {task.builder} (it has {have}): remove it and prepare all of it again."
        ) from error
    if data.split_file and data.splits[split] != "test":
        chosen, indices = published_lists.exact(open_slice, data.split_file, data.splits[split], task=task, slices=slices)
        source = open_slice(split=chosen, indices=indices)
    source[0]  # reads all images of cached splits
    return source


def prepared(root: str, builder: str) -> str:
    """Find the folder of a prepared dataset; InputError with the command that prepares it."""
    if folder := find(root, builder):
        return str(folder)
    version = tasks.BUILDERS[builder].versions[0]
    others = sorted(path.parent.name for path in (Path(root) / builder).glob("*/dataset_info.json"))
    task = next(name for name, row in tasks.TASKS.items() if row.builder == builder)
    if not others:
        tfds_records.refuse_neighbor(root, builder)
    raise InputError(
        f"TFDS dataset {builder}:{version} is not prepared under {root}"
        f"{f' (version {others[-1]} is, which has other images)' if others else ''}: where TensorFlow is installed, run "
        f"`python main.py --config=configs/prepare.py:task={task} --config.root={root}` once."
    )


def is_prepared(root: str | Path, builder: str) -> bool:
    """Return whether `root` has a complete dataset, in any format."""
    return bool(_complete(root, builder))


def find(root: str | Path, builder: str) -> Path | None:
    """Find the folder of a prepared dataset, or None; InputError if its format requires TensorFlow."""
    for folder in _complete(root, builder):
        if not re.search(r'"fileFormat":\s*"array_record"', (folder / "dataset_info.json").read_text()):
            raise InputError(
                f"{folder} is not in array_record format: where TensorFlow is installed, run `tfds convert_format "
                f"--dataset_version_dir={folder} --out_file_format=array_record` once, or remove it and prepare it again."
            )
        return folder
    return None


def _complete(root, builder) -> list[Path]:
    folders = [Path(root) / builder / version for version in tasks.BUILDERS[builder].versions]
    return [folder for folder in folders if (folder / "dataset_info.json").exists()]
