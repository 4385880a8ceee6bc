"""Train: pre-tune or tune, as the config says. `--config.task=train`, the default."""

import logging

from ml_collections import ConfigDict

from toast_jax.evaluation import described
from toast_jax.fit import fit

log = logging.getLogger(__name__)


def run(config: ConfigDict, folder: str) -> None:
    """Trains, saves `result.json` in the folder and logs the result in one line."""
    result = fit(config, folder)
    scores = ", ".join(f"{split} {described(result[split])}" for split in ("val", "test") if split in result)
    tuned = f"{result['tuned_parameters']['all']:,} tuned parameters"
    log.info("%s: %s; %s; seed %d; %s/result.json", config.name, scores or "done", tuned, config.seed, folder)
