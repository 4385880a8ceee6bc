"""Train: pre-tune or tune a network, by `config.stage`. `--config.task=train`, the default."""

import logging
from pathlib import Path

import jax
from ml_collections import ConfigDict

from toast_jax.analysis import confusion
from toast_jax.config.check import check
from toast_jax.data.images import image_files, selected, verify
from toast_jax.train import saved_run
from toast_jax.train.loop import fit
from toast_jax.train.setup import domain, silenced
from toast_jax.workdir.metrics import described

log = logging.getLogger(__name__)


def run(config: ConfigDict, folder: str) -> None:
    """Train a run, write `result.json` to the folder and log the result in one line.

    With `config.confusion`, log which classes are confused on test (or else val) and write `confusion.csv`.
    With `config.show`, print examples of text instead of training.
    """
    if config.get("show"):
        check(config)
        return domain(config).show(config)
    result = fit(config, folder)
    scores = ", ".join(
        f"{split} {described(result[split], domain(config).UNIT)}" for split in ("val", "test") if split in result
    )
    tuned = f"{result['tuned_parameters']['all']:,} tuned parameters"
    log.info("%s: %s; %s; seed %d; %s/result.json", config.name, scores or "done", tuned, config.seed, folder)
    split = next((name for name in ("test", "val") if name in result), None)
    if config.get("confusion") and split:
        run = saved_run.load(folder)  # in every process, as they open checkpoints together
        with silenced(image_files.log, verify.log):  # the run has logged which images are left out
            source, _ = selected.open_images(config.data, split, run.classes, seed=config.seed, run=folder)
        counts = confusion.matrix(run, source)
        path = Path(folder).expanduser() / "confusion.csv"
        if not jax.process_index():
            confusion.write(path, counts, run.classes)
        log.info("%s\nAll counts on %s are in %s.", confusion.summary(counts, run.classes), split, path)
