"""Evaluate a checkpoint: `--config.task=evaluate`, with the config and `--workdir` of its training.

With `--config.checkpoint=FILE.pth`, evaluate a network tuned with the PyTorch release instead; with
`--config.interpolation=0.5`, one between the parameters that the run started from and those that it tuned.
"""

import logging
import re

from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.config.check import check
from toast_jax.data.images import selected
from toast_jax.devices import precision
from toast_jax.errors import InputError
from toast_jax.train import checkpoint
from toast_jax.train.setup import devices_of, domain, eval_step_of, load_network, reload_network
from toast_jax.weights import places
from toast_jax.workdir import fingerprint, run_folder
from toast_jax.workdir.metrics import described

log = logging.getLogger(__name__)


def run(config: ConfigDict, folder: str) -> None:
    """Evaluate every evaluation split; log the scores and write `evaluation.json` to the folder.

    With `config.save_predictions`, also write the logits of the test split, if they are of the tuned parameters: to
    `test_logits.npz`, or to `logits_SPLIT.npz` if the folder has a run with another test split, with data at another place, or
    beside the network of `config.checkpoint`.
    """
    check(config)
    config = places.pin(config, folder)
    reads = domain(config)
    opened = reads.open_splits(config, folder)
    if opened.keys() == {"train"}:
        raise InputError("There is nothing to evaluate on; name a split in --config.data.splits.test.")
    classes = opened["train"].classes
    if config.get("checkpoint"):
        network = load_network(config, len(classes))
        tuned, origin = network.tuned, config.checkpoint
    else:
        with checkpoint.manager(folder) as checkpoints:
            run_folder.check_evaluates(folder, config)
            share = config.get("interpolation", 1.0)
            network = (reload_network if share == 1 else load_network)(config, len(classes))
            meta = checkpoint.read_meta(checkpoints)
            fingerprint.check_frozen(fingerprint.of_frozen(network.frozen), meta["frozen"], folder, config.backbone.weights)
            classes = meta["classes"]
            step, tuned = checkpoint.restore_tuned(checkpoints, network.tuned)
        origin = f"{folder} at step {step}"
        if share < 1:
            fingerprint.check_start(fingerprint.of_start(network.tuned), meta, folder, config)
            has_start = config.head.start == "classifier"
            tuned = _between(network.tuned, tuned, share, kept="" if has_start else "(head|probe)/")
            origin = f"{origin}, {share} of the way from its start"
    _, evals = reads.open_sources(config, verified=True, run=folder, opened=opened)
    evals = {name: selected.relabel(source, classes) for name, source in evals.items()}
    saved = run_folder.writable(folder) / "evaluation.json"  # created only for a run or a file that was read
    devices = devices_of(config)
    keeps = config.get("save_predictions", False) and config.interpolation == 1
    step = eval_step_of(config, network, devices, keeps)
    tuned, frozen = devices.place(tuned), devices.place(network.frozen)
    results = {}
    with precision.of_products(config):
        for name, source in evals.items():
            evaluation = reads.evaluate(config, source, step, tuned, frozen, devices)
            results[name] = reads.summary(evaluation.means)
            if name == "test" and evaluation.predictions:
                is_of_run = run_folder.is_tested_on(saved.parent, config.data) and not (
                    config.get("checkpoint") and run_folder.has_checkpoint(folder)
                )
                split = "" if is_of_run else config.data.splits.test
                run_folder.write_predictions(saved.parent, split=split, **evaluation.predictions)
    facts = {"checkpoint": origin, "seed": config.seed, "config": config.to_dict(), **run_folder.circumstances()}
    run_folder.write_json(saved, {**results, **facts})
    for name, scores in results.items():
        log.info("%s: %s %s", origin, name, described(scores, reads.UNIT))


def _between(start: dict, tuned: dict, share: float, kept: str) -> dict:
    """Interpolate parameters (WiSE-FT, Wortsman et al., arXiv 2109.01903).

    Those whose path begins with the regex `kept` stay as tuned: a new head, whose start means nothing. "" keeps none.
    """
    first = trees.flat(start)
    return trees.nested(
        {
            path: leaf if leaf is None or (kept and re.match(kept, path)) else first[path] + share * (leaf - first[path])
            for path, leaf in trees.flat(tuned).items()
        }
    )
