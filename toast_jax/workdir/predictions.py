"""Write predictions as they are computed: a CSV file and, on request, an NPZ file of all probabilities."""

import contextlib
import csv
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

TABLE, ARRAYS = "predictions.csv", "predictions.npz"


@contextlib.contextmanager
def writer(
    folder: Path, classes: Sequence[str], *, probabilities: bool = False, arrays: bool = False
) -> Iterator[Callable[[Sequence[str], np.ndarray], None]]:
    """Open the files of predictions; memory does not grow with the number of images.

    Args:
      folder: to write to.
      classes: names, in the order of the probabilities.
      probabilities: add a column `p(CLASS)` for each class to `predictions.csv`.
      arrays: at the end also write `predictions.npz`: images `[N]`, probabilities float32 `[N, C]` and classes `[C]`.

    Returns:
      a function that writes a batch: the paths of `n` images, and their probabilities `[n, C]`.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((folder / TABLE).open("w", newline="", encoding="utf-8"))
        names, numbers = (stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(2))
        rows, shape, width = csv.writer(file), [0, len(classes)], 1
        rows.writerow(("image", "class", "probability", *(f"p({name})" for name in classes if probabilities)))

        def write(paths: Sequence[str], batch: np.ndarray) -> None:
            nonlocal width
            for path, row in zip(paths, batch, strict=True):
                best = int(row.argmax())
                every = (f"{value:.4g}" for value in row if probabilities)
                rows.writerow((path, classes[best], f"{row[best]:.4f}", *every))
            file.flush()
            if arrays:
                names.writelines(f"{json.dumps(path)}\n".encode() for path in paths)
                numbers.write(np.asarray(batch, "<f4").tobytes())
                shape[0] += len(paths)
                width = max([width, *map(len, paths)])

        yield write
        if arrays:
            partial = folder / f"{ARRAYS}.partial"
            with zipfile.ZipFile(partial, "w") as archive:
                with _array(archive, "probabilities", "<f4", shape, numbers) as array:
                    shutil.copyfileobj(numbers, array)
                with _array(archive, "images", f"<U{width}", shape[:1], names) as array:
                    for line in names:
                        array.write(json.loads(line).encode("utf-32-le").ljust(4 * width, b"\0"))
                with archive.open("classes.npy", "w") as array:
                    np.lib.format.write_array(array, np.array(classes))
            partial.replace(folder / ARRAYS)


@contextlib.contextmanager
def _array(archive: zipfile.ZipFile, name: str, dtype: str, shape: Sequence[int], content) -> Iterator:
    """Open an array in an NPZ file for writing after its header, and rewind the file of its content."""
    content.seek(0)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": tuple(shape)})
        yield file
