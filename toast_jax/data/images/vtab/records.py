"""Images of VTAB-1k, from TFDS datasets that `configs/prepare.py` has prepared; TensorFlow is not needed to read them."""

import concurrent.futures
import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from toast_jax.data.images import pixels, tfds_records
from toast_jax.data.images.vtab import published, tasks
from toast_jax.errors import InputError, choose, listed

# Splits up to this size are kept in memory; the others are test splits, which are read once.
KEPT = tasks.TRAIN + tasks.VAL


@dataclasses.dataclass(frozen=True)
class VtabImages:
    """Images of a task, as a source (see `sources.Source`); 'image' is uint8 [size, size, 3].

    Attributes:
        task: row of `vtab_tasks.TASKS`.
        directory: where TFDS has prepared the dataset.
        split: the TFDS split, such as 'train[:800]'.
        size: to how many pixels the images are stretched.
        classes: their names.
        indices: positions in the split, None for all of it.
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
        return self._kept[index] if len(self) <= KEPT else self._read(index)

    def name(self, index: int) -> str:
        """The name that the dataset gives to an image, or its place."""
        return self._name(index, self._record(index))

    def _name(self, index: int, record: dict[str, Any]) -> str:
        feature = tasks.BUILDERS[tasks.TASKS[self.task].builder].filename
        return record[feature].decode() if feature else f"{self.split}[{index}]"

    def _record(self, index: int) -> dict[str, Any]:
        return self._records[index if self.indices is None else self.indices[index]]

    def _read(self, index: int) -> dict[str, Any]:
        task, record = tasks.TASKS[self.task], self._record(index)
        name, label = f"{task.builder} {self._name(index, record)}", task.label(record[task.key])
        if not 0 <= label < task.num_classes:
            raise InputError(
                f"Image {name} has class {label} of {self.task}, which has 0 to {task.num_classes - 1}: remove "
                f"{self.directory} and prepare it again."
            )
        image = pixels.decode(record["image"], name) * tasks.BUILDERS[task.builder].scale
        return {"image": pixels.stretch(image, self.size), "label": label, "name": name}

    @functools.cached_property
    def _kept(self) -> tuple[dict[str, Any], ...]:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return tuple(pool.map(self._read, range(len(self))))

    @functools.cached_property
    def _records(self) -> Sequence[dict[str, Any]]:
        return tfds_records.records(self.directory, self.split)

    def __getstate__(self) -> dict[str, Any]:
        # Open files and kept images stay behind; the other process reads its own.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def read(data: ConfigDict, split: str) -> VtabImages:
    """Opens a split of the task `data.name`; those for training and validation are read and checked to the last image.

    Raises:
        InputError: the dataset is not prepared, or not as it has to be.
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
    except (AttributeError, OSError, RuntimeError, ValueError) as error:  # what TFDS raises over damaged files
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{directory} is damaged ({reason}): remove it and prepare it again.") from error


def _open(data: ConfigDict, split: str, task: tasks.Task, directory: str) -> VtabImages:
    info = tfds_records.library().builder_from_directory(directory).info
    if gone := [str(path) for one in info.splits.values() for path in one.filepaths if not path.exists()]:
        raise InputError(f"{directory} lacks {listed(gone, most=3)}: remove it and prepare it again.")
    counts = {name: one.num_examples for name, one in info.splits.items()}
    try:
        slices = tasks.slices(tasks.BUILDERS[task.builder], counts)
    except KeyError as error:
        raise InputError(f"{directory} has no split {error}: remove it and prepare it again.") from error
    classes = task.names or tuple(info.features[task.key].names)
    chosen = choose(f"config.data.splits.{split}", data.splits[split], slices)
    open_slice = functools.partial(VtabImages, task=data.name, directory=directory, size=data.image_size, classes=classes)
    source = open_slice(split=chosen)
    _check_readable(source, task, counts)
    if data.split_file and data.splits[split] != "test":
        chosen, indices = published.exact(open_slice, data.split_file, data.splits[split], task=task, slices=slices)
        source = open_slice(split=chosen, indices=indices)
    source[0]  # of splits that are kept, this reads all
    return source


def prepared(root: str, builder: str) -> str:
    """The folder of a prepared dataset, or InputError with the command that prepares it."""
    if folder := find(root, builder):
        return str(folder)
    version = tasks.BUILDERS[builder].versions[0]
    found = sorted(path.parent.name for path in (Path(root) / builder).glob("*/dataset_info.json"))
    task = next(name for name, one in tasks.TASKS.items() if one.builder == builder)
    raise InputError(
        f"TFDS dataset {builder}:{version} is not prepared under {root}"
        f"{f' (version {found[-1]} is, which has other images)' if found else ''}: where TensorFlow is installed, run "
        f"`python main.py --config=configs/prepare.py:task={task} --config.root={root}` once."
    )


def find(root: str | Path, builder: str) -> Path | None:
    """The folder of a prepared dataset, or None; InputError if it is in a format that only TensorFlow reads."""
    for version in tasks.BUILDERS[builder].versions:
        folder = Path(root) / builder / version
        if not (folder / "dataset_info.json").exists():
            continue
        if not re.search(r'"fileFormat":\s*"array_record"', (folder / "dataset_info.json").read_text()):
            raise InputError(
                f"{folder} is not in array_record format: where TensorFlow is installed, run `tfds convert_format "
                f"--dataset_version_dir={folder} --out_file_format=array_record` once, or remove it and prepare it again."
            )
        return folder
    return None


def _check_readable(source: VtabImages, task: tasks.Task, counts: dict[str, int]) -> None:
    try:
        len(source)
    except ValueError as error:
        have = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise InputError(
            f"{source.directory} is too small for {source.split} of {task.builder} (it has {have}): remove it and prepare "
            "all of it again."
        ) from error
