"""A network in Python: tune it, predict, show where it looks, and save it.

Each method runs the functions of a command of `main.py` with the same config, and so gives the same numbers bit for bit.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.analysis import maps, views
from toast_jax.config.check import check
from toast_jax.data.images import image_files, sources
from toast_jax.devices import programs
from toast_jax.errors import InputError, listed
from toast_jax.model import families, methods, steered
from toast_jax.model.layers.batch_norm import STATISTICS
from toast_jax.python import data as python_data
from toast_jax.python import keywords
from toast_jax.python.results import Look, Predictions
from toast_jax.tasks import predict
from toast_jax.train import loop, saved_run, setup
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False, repr=False)
class Net:
    """A network for images and the config to tune it with, made by `load`.

    Attributes:
      config: from `load`, every field of docs/config.md; `tune` sets more of them, in `run.config`.
      run: the network, a `train.saved_run.SavedRun`; of step 0 before it is tuned.
    """

    config: ConfigDict
    run: saved_run.SavedRun

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        state = f"tuned, in {self.folder}" if self.is_tuned else "not tuned"
        return f"<toast_jax.Net: {self.run.config.method}, {self.run.config.backbone.weights}{classes}, {state}>"

    @property
    def is_tuned(self) -> bool:
        """Whether it can predict."""
        return self.run.step > 0

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits; empty until they are known."""
        return self.run.classes

    @property
    def folder(self) -> Path | None:
        """The folder of the run that tuned it: checkpoints, metrics and `result.json`."""
        return Path(self.run.folder) if self.is_tuned else None

    @property
    def params(self) -> dict:
        """All parameters, a nested dict of arrays; InputError while the number of classes is unknown."""
        if not (self.is_tuned or self.classes or self.config.data.num_classes):
            raise InputError("The network has no head before its classes are known; give classes, names or a number, to load.")
        return self.run.params

    @property
    def mask(self) -> dict:
        """A tree like `params`, True for tuned parameters; `optax.masked` and `equinox.partition` take it.

        Running statistics of a probe are False, as they have no gradient.
        """
        tuned = trees.flat(methods.tuned_mask(self.params, self.run.method))
        return trees.nested({path: value and not re.fullmatch(STATISTICS, path) for path, value in tuned.items()})

    @property
    def apply(self) -> Callable:
        """The pure function `apply(params, images)`: images `[B, S, S, 3]` to logits `[B, C]`.

        It normalizes uint8 images; floats have to be normalized already (see `backbones.normalize`). `rng=`, one key for each
        image `[B]`, applies drop-path and dropout; a probe then normalizes by the batch and needs a mapped axis "data", as of
        `jax.vmap(..., axis_name="data")` (see `layers.batch_norm`).
        """
        return functools.partial(steered.apply, self.run.model, self.run.method)

    @keywords.named_in_errors()
    def tune(self, data: Any = None, workdir: str | os.PathLike | None = None, **fields: Any) -> dict:
        """Tune the network on labeled images, and return what `result.json` holds.

        Tuning starts from the pre-trained weights, even if the network is tuned already. The same call with the same `workdir`
        resumes an interrupted run and returns the result of a finished one. At the end all compiled programs of the process are
        dropped (see `programs.drop_all`), so that jitted functions of your own compile again.

        Args:
          data: a folder `CLASS/IMAGE` or `SPLIT/CLASS/IMAGE`, with the splits train, val and test; a CSV, TSV or Parquet file
            with the columns path, label and, optionally, split; a list of (path, label); a dict of fields of `config.data`;
            None for the data of the config. Without val and test, a fifth of each class is held out as val.
          workdir: folder of the run; None for a new temporary folder, which is logged.
          **fields: of the config, as in `load`.

        Raises:
          InputError: the data, a field or the folder cannot be used.
          Interrupted: the process was asked to stop; the last step is saved.
        """
        is_temporary = not workdir
        folder = Path(workdir or tempfile.mkdtemp(prefix="toast_jax_")).expanduser()
        listing = folder / python_data.LISTING
        is_new, has_listing = not folder.exists(), listing.exists()
        try:
            has_format = "data.format" in fields or "format" in fields
            of_data = python_data.to_tune_on(data, folder, self.config, fields, has_format=has_format)
            config = checked(keywords.changed(keywords.changed(self.config, of_data), fields))
            if config.data.format == "folder" and not config.data.root:
                raise InputError("There is no data to tune on; give a folder, a table, or a list of (path, label).")
            if self.classes and not self.is_tuned:
                _check_classes(config, self.classes)
            with _printed_log():
                if is_temporary:
                    log.warning("The run is in the temporary folder %s; net.save(FOLDER) keeps the network.", folder)
                result = loop.fit(config, folder)
        except BaseException:
            if is_temporary and not run_folder.has_checkpoint(folder):
                shutil.rmtree(folder, ignore_errors=True)
            elif not has_listing and not run_folder.has_checkpoint(folder):
                with contextlib.suppress(OSError):
                    listing.unlink(missing_ok=True)
                    if is_new:
                        folder.rmdir()
            raise
        programs.drop_all()  # a notebook may tune many times
        self.run = saved_run.load_tuned(folder.absolute())  # the program may change its folder
        return json.loads(json.dumps(result))  # with lists for tuples, as it is read by the same call later

    @keywords.named_in_errors()
    def predict(self, images: Any, batch_size: int = 32) -> Predictions:
        """Classify images.

        Args:
          images: the path of an image, a folder (searched at every depth), a table with the column path, or a zip archive; a
            PIL image; an array uint8 `[H, W, 3]`, `[H, W]` or `[n, H, W, 3]`; or a list of these.
          batch_size: how many images to compute at once.

        Raises:
          InputError: the network is not tuned, or an image cannot be read.
        """
        self._require_tuned("predict")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give 1 or more.")
        examples = list(python_data.to_look_at(images))
        batches = _readable(views.stream(self.run, examples, min(batch_size, len(examples))))
        parts = []
        for batch, (probabilities, _) in predict.classify(self.run, self.run.compiled(predict.classified), batches):
            parts.append(jax.device_get(probabilities)[: len(batch.paths)])
        labels = [self.classes[best] for part in parts for best in part.argmax(axis=1)]
        names = [example if isinstance(example, str) else example["name"] for example in examples]
        return Predictions(names, labels, np.concatenate(parts))

    @keywords.named_in_errors()
    def look(self, image: Any) -> Look:
        """Return where the network looks in an image, before or after tuning.

        Args:
          image: one image, as `predict` takes it.

        Raises:
          InputError: there are several images, or it cannot be read.
        """
        examples = list(itertools.islice(python_data.to_look_at(image), 2))
        if len(examples) > 1:
            raise InputError("There is more than one image to look at; give one.")
        (batch,) = _readable(views.stream(self.run, examples, 1))
        _, by_name = jax.device_get(self.run.compiled(maps.look)(self.run.params, batch.image))
        return Look(batch.image[0], *(by_name[name][0] if name in by_name else None for name in maps.ORDER))

    @keywords.named_in_errors()
    def pixels(self, images: Any) -> np.ndarray:
        """Return images as the network sees them, for `apply`: uint8 `[n, S, S, 3]`; `images` as in `predict`."""
        examples = list(python_data.to_look_at(images))
        (batch,) = _readable(views.stream(self.run, examples, len(examples)))
        return batch.image

    @keywords.named_in_errors()
    def save(self, folder: str | os.PathLike) -> None:
        """Save the tuned network to a new folder, which `load` and the tasks of `main.py` read as a run.

        It holds the tuned parameters and the path of the backbone, whose weights are not copied.

        Raises:
          InputError: the network is not tuned, or the folder is not empty or cannot be written.
        """
        self._require_tuned("be saved")
        source, target = Path(self.run.folder).expanduser(), Path(folder).expanduser()
        if not run_folder.has_checkpoint(source):
            raise InputError(f"The run in {source} is gone, so the network cannot be saved; tune it again, in a workdir.")
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputError(f"{target} exists already; give another folder.")
        run_folder.writable(target.parent, "folder")
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")

        def left_out(parent: str, names: list[str]) -> set[str]:
            is_of_checkpoints = Path(parent) == source / "checkpoints"
            return set(names) - {str(self.run.step)} if is_of_checkpoints else {"running", "profile"} & set(names)

        try:
            shutil.copytree(source, partial, ignore=left_out)
            partial.replace(target)
        except OSError as error:  # shutil's too
            shutil.rmtree(partial, ignore_errors=True)
            raise InputError(f"{target} cannot be written ({error.strerror or error}); give another folder.") from error

    def _require_tuned(self, purpose):
        if not self.is_tuned:
            raise InputError(f"The network cannot {purpose} before it is tuned; call net.tune(data), or load a tuned one.")


def checked(config: ConfigDict) -> ConfigDict:
    """Return the config; InputError unless it is valid and tunes a network on images."""
    if "backbone" not in config or families.of_config(config).reads != "images" or config.stage != "tune":
        raise InputError("The config does not tune a network on images; give one that does, such as read_config('folder').")
    check(config)
    return config


def _check_classes(config: ConfigDict, expected: tuple[str, ...]) -> None:
    with setup.silenced(image_files.log):  # tuning logs which files are left out
        classes = sources.read_split(config.data, "train", seed=config.seed).classes
    if sorted(classes) != sorted(expected):
        raise InputError(
            f"The data has the classes {listed(classes, most=6)}, and the network was loaded for {listed(expected, most=6)}; "
            "load it with the classes of the data, or with None."
        )


def _readable(batches: Iterable[views.Streamed]) -> Iterator[views.Streamed]:
    """Yield batches; raise InputError at an image that cannot be read."""
    for batch in batches:
        if batch.faults:
            raise InputError(f"{batch.faults[0]}: leave it out, or download it again.")
        yield batch


@contextlib.contextmanager
def _printed_log() -> Iterator[None]:
    """Print the log of the package inside the block, unless the program has configured logging."""
    package = logging.getLogger("toast_jax")
    if package.level or (package.isEnabledFor(logging.INFO) and package.hasHandlers()):
        yield
        return
    handler, propagates = logging.StreamHandler(sys.stdout), package.propagate
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(logging.NOTSET)
        package.propagate = propagates
