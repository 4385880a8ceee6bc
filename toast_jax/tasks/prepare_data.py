"""Download and prepare datasets, to be read without TensorFlow: `--config=configs/prepare.py:task=...`."""

import importlib.util
import logging
import os
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from toast_jax.config.check import check_fields
from toast_jax.data.images import tfds_records
from toast_jax.data.images.vtab import records
from toast_jax.data.images.vtab.tasks import BUILDERS, Builder
from toast_jax.errors import InputError, choose
from toast_jax.workdir.run_folder import writable

log = logging.getLogger(__name__)


def run(config: ConfigDict, folder: str) -> None:
    """Download and prepare each of `config.datasets` under `config.root`; `folder` is unused.

    Prepared datasets are skipped. A failure is logged, and the other datasets continue.

    Raises:
      InputError: a dataset is not known, TensorFlow is missing, the folder cannot be written, or some datasets failed (all are
        named, with reasons).
    """
    check_fields(config)
    rows = {name: choose("config.datasets", name, BUILDERS) for name in config.datasets}
    _require_tensorflow()
    root = writable(config.root, "--config.root")
    manual = Path(config.manual or root / "downloads" / "manual").expanduser()
    missing = {name: [path for path in row.manual if not (manual / path).exists()] for name, row in rows.items()}
    for name in config.datasets:
        if missing[name] and not records.is_prepared(root, name):
            log.info("To download by hand: %s", _by_hand(name, missing[name], manual))
    failures = {}
    for name in config.datasets:
        try:
            if prepared := records.find(root, name):
                log.info("%s is prepared already, in %s.", name, prepared)
                continue
            if missing[name]:
                raise InputError(_by_hand(name, missing[name], manual))
            if config.check_disk:
                _check_disk(root, rows[name])
            _prepare(name, root, manual)
            log.info("%s is prepared.", name)
        except Exception as error:  # builders raise nearly anything, and the other datasets continue
            failures[name] = _reason(error)
            log.warning("%s is not prepared: %s", name, failures[name])
    if failures:
        raise InputError(
            f"{len(failures)} of {len(config.datasets)} datasets are not prepared: {', '.join(failures)}; mend what is said "
            "above and give the same command again."
        )
    log.info("All is prepared; read it with --config=configs/vtab.py --config.data.root=%s", root)


def _require_tensorflow() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            "Preparing data needs TensorFlow, which is not installed: run `pip install -r requirements-tfds.txt` or "
            '`pip install "toast_jax[prepare]"`.'
        )
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it logs ten lines for a host that does not respond
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="2", CUDA_VISIBLE_DEVICES="-1")  # read when TensorFlow is imported


def _prepare(name: str, root: Path, manual: Path) -> None:
    tfds = tfds_records.library()
    builder = tfds.builder(f"{name}:{BUILDERS[name].versions[0]}", data_dir=root)
    download_config = tfds.download.DownloadConfig(manual_dir=manual)
    builder.download_and_prepare(download_config=download_config, file_format="array_record")


def _by_hand(name: str, missing: list[str], manual: Path) -> str:
    return f"{name} needs {', '.join(missing)} in {manual} (from {BUILDERS[name].source})."


def _check_disk(root: Path, row: Builder) -> None:
    free = shutil.disk_usage(root).free / 1e9
    if free < row.gigabytes:
        raise InputError(
            f"it takes about {row.gigabytes:g} GB with all that is downloaded, and {root} has {free:.1f} GB free: make room, "
            "set --config.root to another disk, or --config.check_disk=False if part of it is there."
        )


def _reason(error: Exception) -> str:
    if url := getattr(getattr(error, "request", None), "url", None):
        return f"{url} cannot be downloaded ({type(error).__name__}); if the host is gone, nothing here can help."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
