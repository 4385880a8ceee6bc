"""Evaluate a checkpoint: `--config.task=evaluate`, with the config and `--workdir` it was trained with.

With `--config.checkpoint=FILE.pth` it evaluates a network that was tuned with the PyTorch release instead.
"""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from toast_jax import checkpoint, methods, model, parallel, parameters, trees
from toast_jax.evaluate import evaluate, mapped
from toast_jax.fit import eval_batches, open_sources
from toast_jax.workdir import circumstances, write_json

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: str) -> None:
    """Prints accuracy and loss on every evaluation split, and saves them as `evaluation.json` in `workdir`."""
    parallel.check_batch_size(config.batch_size)
    train, evals = open_sources(config)
    network, method = model.build(config, len(train.classes))
    params = parameters.start(
        network,
        method,
        image_size=config.data.image_size,
        seed=config.seed,
        weights=config.backbone.weights,
        top_down=config.top_down,
        tuned=config.checkpoint,
    )
    tuned, frozen = trees.split(params, methods.tuned_mask(params, method))
    origin = config.checkpoint
    if not config.checkpoint:
        with checkpoint.manager(workdir) as checkpoints:
            step, tuned = checkpoint.restore_tuned(checkpoints, tuned)
        origin = f"{workdir} at step {step}"
    step = mapped(network, method)
    tuned, frozen = parallel.place(tuned), parallel.place(frozen)
    results = {name: evaluate(step, tuned, frozen, eval_batches(config, source)) for name, source in evals.items()}
    folder = Path(workdir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    saved = {**results, "checkpoint": origin, "seed": config.seed, "config": config.to_dict(), **circumstances()}
    write_json(folder / "evaluation.json", saved)
    for name, one in results.items():
        log.info("%s: %s accuracy %.4f, loss %.4f (%d images)", origin, name, *one.values())
