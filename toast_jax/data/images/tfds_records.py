"""Images of TFDS datasets prepared in a random-access format; reading them needs no TensorFlow."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from toast_jax.data.images.image_files import UNLABELLED, existing_root
from toast_jax.errors import InputError, of_extra


class Records:
    """A split of the TFDS dataset prepared under `directory`, opened when it is first read; the base of dataclasses."""

    directory: str
    split: str

    @functools.cached_property
    def _records(self) -> Sequence[dict[str, Any]]:
        return records(self.directory, self.split)

    def __getstate__(self) -> dict[str, Any]:
        # Open files and cached images are not pickled; each process opens its own.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class TfdsRecords(Records):
    """The images in a split of the TFDS dataset prepared under `directory`."""

    directory: str
    split: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = record_of(self._records, index, self.directory)
        name = record.get("image/filename", record.get("file_name", f"{self.split}[{index}]".encode()))
        label = 0 if self.classes == (UNLABELLED,) else int(record["label"])
        return {"image": record["image"], "label": label, "name": name.decode(errors="backslashreplace")}


def library() -> ModuleType:
    """Import TFDS, or raise InputError with the command that installs it."""
    return of_extra("tensorflow_datasets", "vtab", "Reading prepared datasets")


def records(directory: str, split: str) -> Sequence[dict[str, Any]]:
    """Open the records of a prepared split; images are the bytes of their files."""
    tfds = library()
    builder = tfds.builder_from_directory(directory)
    features = builder.info.features.items()
    encoded = {key: tfds.decode.SkipDecoding() for key, value in features if isinstance(value, tfds.features.Image)}
    return builder.as_data_source(split, decoders=encoded)


def refuse_neighbor(root: str, name: str) -> None:
    """Raise InputError, which names the right folder, if a dataset is prepared a few levels above `root` or one below it."""
    here = Path(root)
    folders = [*here.absolute().parents][:3]
    with contextlib.suppress(OSError):  # a folder that is missing or cannot be listed has none below
        folders += sorted(path for path in here.iterdir() if path.is_dir())
    if near := next((folder for folder in folders if any((folder / name).glob("*/dataset_info.json"))), None):
        raise InputError(f"TFDS dataset {name} is not prepared under {root} but under {near}: set --config.data.root={near}.")


def record_of(opened: Sequence[dict[str, Any]], index: int, directory: str) -> dict[str, Any]:
    """Read a record of the dataset in `directory`; InputError if its files are damaged."""
    try:
        record = opened[index]
        if any(value is None for value in record.values()):  # of a truncated file
            raise ValueError("a record is empty")
        return record
    except Exception as error:  # TFDS and array_record raise nearly anything
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise InputError(f"{directory} is damaged ({reason}): remove it and prepare it again.") from error


def read(data: ConfigDict, split: str) -> TfdsRecords:
    """Open a split of the builder `data.name` under `data.root`; InputError with the command that prepares it."""
    tfds = library()
    root = existing_root(data)
    try:
        builder = tfds.builder(data.name, data_dir=root)
    except Exception as error:  # ValueError for an unknown name, nearly anything for damaged files
        reason = str(error).splitlines()[0].strip(".")
        raise InputError(f"TFDS cannot open dataset {data.name!r} ({reason}): correct --config.data.name.") from error
    if not builder.info.splits:
        refuse_neighbor(root, data.name.partition(":")[0])
        raise InputError(
            f"TFDS dataset {data.name} is not prepared under {root}: where TensorFlow is installed, run "
            f"`tfds build {data.name} --file_format=array_record --data_dir={root}` once."
        )
    if missing := {"image", "label"} - set(builder.info.features) - (set() if data.labels else {"label"}):
        raise InputError(f"TFDS dataset {data.name} has no feature {' and no '.join(sorted(missing))}: choose another one.")
    if data.labels and not isinstance(builder.info.features["label"], tfds.features.ClassLabel):
        raise InputError(f"The label of TFDS dataset {data.name} is not a class: choose another one.")
    source = TfdsRecords(
        directory=str(builder.data_path),
        split=data.splits[split],
        classes=tuple(builder.info.features["label"].names) if data.labels else (UNLABELLED,),
    )
    try:
        len(source)
    except NotImplementedError as error:
        raise InputError(
            f"TFDS dataset {data.name} under {root} is not in array_record format: where TensorFlow is installed, run "
            f"`tfds convert_format --dataset_version_dir={source.directory} --out_file_format=array_record` once."
        ) from error
    except ValueError as error:
        raise InputError(
            f"TFDS dataset {data.name} has no split {source.split!r} (it has {', '.join(builder.info.splits)}): "
            f"correct --config.data.splits.{split}."
        ) from error
    return source
