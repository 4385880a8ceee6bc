"""Train: pre-tune or tune, as the config says. `--config.task=train`, the default."""

import logging

from ml_collections import ConfigDict

from toast_jax.fit import fit

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: str) -> None:
    """Trains, saves `result.json` in `workdir` and prints the result in one line."""
    result = fit(config, workdir)
    scores = ", ".join(f"{split} accuracy {result[split]['accuracy']:.4f}" for split in ("val", "test") if split in result)
    tuned = result["tuned_parameters"]["all"]
    log.info("%s: %s; %s tuned parameters; seed %d; %s", config.name, scores or "done", f"{tuned:,}", config.seed, workdir)
