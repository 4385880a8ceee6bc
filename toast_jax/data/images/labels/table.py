"""Tables of images: a CSV, TSV or Parquet file with the columns path, label and, optionally, split."""

import csv
import dataclasses
import os
from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict

from toast_jax.data.images import image_files
from toast_jax.data.images.image_files import TRAIN, UNLABELLED, Files
from toast_jax.errors import InputError, listed, of_extra

SUFFIXES = (".csv", ".tsv", ".parquet")
PATH, LABEL, SPLIT = "path", "label", "split"


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a table; columns other than path, label and split are ignored.

    Attributes:
        file: where it is.
        columns: the names of all columns.
        rows: for each row its number, as in a spreadsheet, and its cells by column.
    """

    file: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


def is_table(path: str) -> bool:
    """Return whether a path is that of a CSV, TSV or Parquet file."""
    return path.lower().endswith(SUFFIXES) and os.path.isfile(path)


def read(data: ConfigDict, split: str) -> Files:
    """Read a split of a table; the training rows define the classes, sorted like class folders.

    `data.root` is a table with the column split, or a folder with a table for each split (`train.csv`). Paths are relative to
    the folder of the table, or to `data.image_dir` in it, which may be a zip archive.
    """
    images = image_files.image_root(data)
    if not data.labels:
        table, classes, label_of = _of_split(data, split), (UNLABELLED,), None
    else:
        training = _of_split(data, TRAIN)
        _require(training, LABEL)
        classes, label_of = image_files.ranked({cells[LABEL] for _, cells in training.rows}, data.num_classes)
        table = training if split == TRAIN else _of_split(data, split)
        _require(table, LABEL)
        for number, cells in table.rows:
            if cells[LABEL] not in label_of:
                raise InputError(
                    f"Row {number} of {table.file} has the label {cells[LABEL]!r}, which no row of split {TRAIN} has: correct "
                    "it, remove the row, or add training images of that class."
                )
    names = [cells[PATH] for _, cells in table.rows]
    if missing := image_files.absent(images, names):
        number, remedy = table.rows[names.index(missing[0])][0], "correct the paths, or set --config.data.image_dir."
        if folder := image_files.shifted(images, names, missing):
            remedy = f"it is in {folder}; set --config.data.image_dir={os.path.abspath(folder)}."
        raise InputError(
            f"{len(missing)} of {len(names)} images of {table.file} do not exist, the first is "
            f"{os.path.join(images, missing[0])} of row {number}: {remedy}"
        )
    labels = (label_of[cells[LABEL]] if label_of else 0 for _, cells in table.rows)
    return image_files.files_of(data, (os.path.join(images, name) for name in names), labels, classes)


def paths(file: str) -> list[str]:
    """List the paths in the column path of a table; relative ones start at the folder of the table.

    Raises:
        InputError: the table cannot be read, has no such column, or a path in it is empty or there twice.
    """
    folder = os.path.dirname(file)
    return [os.path.join(folder, cells[PATH]) for _, cells in load(file).rows]


def has_splits(data: ConfigDict) -> bool:
    """Return whether the data of a config assigns its images to splits."""
    root = os.path.expanduser(data.root)
    return not os.path.isfile(root) or SPLIT in load(root).columns


def load(file: str) -> Table:
    """Read a table.

    Raises:
        InputError: it cannot be read, has no column path or no rows, an empty path or split, or an image twice.
    """
    try:
        columns, rows = _of_parquet(file) if file.lower().endswith(".parquet") else _of_text(file)
    except OSError as error:
        raise InputError(f"Table {file} cannot be read ({error.strerror or error}): mend it.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"Table {file} cannot be read ({error}): save it as CSV in UTF-8.") from error
    if twice := [name for name in (PATH, LABEL, SPLIT) if columns.count(name) > 1]:
        raise InputError(f"Table {file} has {columns.count(twice[0])} columns {twice[0]}: rename all but one.")
    table = Table(file, columns, tuple(rows))
    if not rows:
        raise InputError(f"Table {file} has no rows: write one for each image.")
    _require(table, PATH)
    if SPLIT in columns:
        _require(table, SPLIT)
    first: dict[str, tuple[int, str]] = {}
    for number, cells in table.rows:
        place, label = os.path.normpath(cells[PATH]), cells.get(LABEL, "")
        if place in first:
            former, other = first[place]
            both = "" if label == other else f", with the labels {other!r} and {label!r}"
            raise InputError(f"Rows {former} and {number} of {file} have the same image {cells[PATH]!r}{both}: remove one.")
        first[place] = number, label
    return table


def _of_text(file: str) -> tuple[tuple[str, ...], list]:
    with open(file, newline="", encoding="utf-8-sig") as opened:
        header = opened.readline()
        # Spreadsheets write semicolons where the comma is a decimal mark.
        delimiter = max(",;\t", key=header.count)
        opened.seek(0)
        reader = csv.reader(opened, delimiter=delimiter, skipinitialspace=True, strict=True)
        columns = tuple(name.strip() for name in next(reader, ()))
        rows = []
        for number, row in enumerate(reader, 2):
            if not any(row):
                continue
            if len(row) > len(columns):
                raise InputError(
                    f"Row {number} of {file} has {len(row)} cells and the header {len(columns)}: put quotes around cells that "
                    f"contain {delimiter!r}."
                )
            rows.append((number, _read_cells(zip(columns, [*row, *[""] * (len(columns) - len(row))], strict=True))))
    return columns, rows


def _text(cell) -> str:
    """Return a cell as text; of integers with gaps, of which other programs make floats, without points, gaps being empty."""
    return "" if cell is None or cell != cell else str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell)


def _of_parquet(file: str) -> tuple[tuple[str, ...], list]:
    parquet = of_extra("pyarrow.parquet", "parquet", "Reading a Parquet file")
    lib = of_extra("pyarrow", "parquet", "Reading a Parquet file")
    try:
        columns = tuple(parquet.read_schema(file).names)
        read = parquet.read_table(file, columns=[name for name in (PATH, LABEL, SPLIT) if name in columns]).to_pylist()
    except lib.ArrowException as error:
        raise InputError(f"Table {file} cannot be read ({str(error).splitlines()[0].rstrip('.')}): write it again.") from error
    return columns, [
        (number, _read_cells((name, _text(cell)) for name, cell in row.items())) for number, row in enumerate(read, 1)
    ]


def _read_cells(cells: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: cell.strip() for name, cell in cells if name in (PATH, LABEL, SPLIT)}


def _require(table: Table, column: str) -> None:
    """Raise InputError unless a table has a column, and every row a value in it."""
    if column not in table.columns:
        raise InputError(
            f"Table {table.file} has no column {column} (it has {listed(table.columns, most=6) or 'none'}): add it, or rename "
            "one."
        )
    empty = [number for number, cells in table.rows if not cells[column]]
    if empty:
        raise InputError(
            f"{len(empty)} of {len(table.rows)} rows of {table.file} have no {column}, the first is row {empty[0]}: fill it "
            "in, or remove the row."
        )


def _of_split(data: ConfigDict, split: str) -> Table:
    """Read the rows of a split."""
    root, name = os.path.expanduser(data.root), data.splits[split]
    if not os.path.isfile(root):
        return load(_file_of_split(image_files.existing_root(data), name, split))
    table = load(root)
    if SPLIT not in table.columns:
        if data.get("held_out", 0) or not (data.splits.val or data.splits.test):
            return table
        raise InputError(
            f"Table {root} has no column {SPLIT} (it has {listed(table.columns, most=6)}): add it, or hold out a share of the "
            "images for validation, as in --config.data.held_out=0.2."
        )
    rows = tuple((number, cells) for number, cells in table.rows if cells[SPLIT] == name)
    if not rows:
        others = sorted({cells[SPLIT] for _, cells in table.rows})
        raise InputError(
            f"Table {root} has no row of split {name!r} (it has {listed(others, most=6)}): set --config.data.splits.{split} to "
            "another split, or to nothing if there is no such split."
        )
    return dataclasses.replace(table, rows=rows)


def _file_of_split(root: str, name: str, split: str) -> str:
    candidates: Sequence[str] = [os.path.join(root, name + suffix) for suffix in ("", *SUFFIXES)]
    file = next(filter(is_table, candidates), None)
    if file is None:
        remedy = (
            f"put it there, or set --config.data.splits.{split} to another name, or to nothing if there is no such split, or "
            "--config.data.root to one table with a column split."
        )
        if folder := next(filter(None, (image_files.neighbor_with(root, name + suffix) for suffix in SUFFIXES)), None):
            remedy = f"it is in {folder}; set --config.data.root to that."
        raise InputError(f"There is no table {os.path.join(root, name)}.csv, .tsv or .parquet: {remedy}")
    return file
