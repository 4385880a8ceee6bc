"""Train: pre-tune or tune, as the config says. `--config.task=train`, the default."""

from ml_collections import ConfigDict

from toast_jax.fit import fit


def run(config: ConfigDict, workdir: str) -> None:
    """Trains, saves `result.json` in `workdir` and prints the result in one line."""
    result = fit(config, workdir)
    scores = ", ".join(f"{split} accuracy {result[split]['accuracy']:.4f}" for split in ("val", "test") if split in result)
    print(
        f"{config.name}: {scores or 'no evaluation split'}; "
        f"{result['tuned_parameters']['all']:,} tuned parameters; seed {config.seed}; {workdir}"
    )
