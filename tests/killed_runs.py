"""Run as a script, `IMAGES FOLDER METHOD TRIALS`: kills runs at random instants, resumes them and compares the results.

The process imports everything but does not start JAX. Each run is a fork of it, so a trial costs little more than the run.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from tests.conftest import tiny_config
from toast_jax import trees
from toast_jax.devices import parallel
from toast_jax.model.backbones.vit import network as vit
from toast_jax.train import checkpoint, loop, setup


def main(images, folder, method, trials):
    vit.SIZES["tiny"] = vit.Size(width=16, depth=3, num_heads=2)
    config, folder = tiny_config(images, method), Path(folder)
    config.epochs, config.backbone.drop_path, config.data.verify = 4, 0.3, False
    forked(run, config, folder / "warm")  # fills the compilation cache
    started = time.monotonic()
    pid = fork(run, config, folder / "whole")
    wait_for_a_checkpoint(folder / "whole")
    saved = time.monotonic()
    assert not os.waitpid(pid, 0)[1]
    # Most of a short run is its start, so every other run is killed after its first checkpoint.
    seconds, rng, kills, saves = [(time.monotonic() - saved) / 2, time.monotonic() - started], random.Random(0), 0, 0
    for i in range(int(trials)):
        parts = folder / f"parts_{i}"
        pid = fork(run, config, parts)
        if i % 2 == 0:
            wait_for_a_checkpoint(parts)
        time.sleep(rng.uniform(0.0, seconds[i % 2]))
        os.kill(pid, signal.SIGKILL)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        kills += killed
        saves += killed and has_checkpoint(parts)
        seconds[i % 2] *= 1.0 if killed else 0.9  # a run that ended before its instant ran on a machine that had become faster
        forked(resumed, config, parts, folder / "whole")
    print(json.dumps({"trials": int(trials), "killed": kills, "resumed": saves}))


def has_checkpoint(folder):
    return any(path.name.isdigit() for path in folder.glob("checkpoints/*"))


def wait_for_a_checkpoint(folder):
    while not has_checkpoint(folder):
        time.sleep(0.002)


def run(config, folder):
    loop.fit(config, folder)


def resumed(config, parts, whole):
    """Goes on with a run and asserts that metrics, scores, final parameters and optimizer state are equal bit for bit."""
    run(config, parts)
    metrics = [(path / "metrics.jsonl").read_text().splitlines() for path in (parts, whole)]
    assert metrics[0] == metrics[1]
    results = [json.loads((path / "result.json").read_text()) for path in (parts, whole)]
    assert results[0]["test"] == results[1]["test"]
    states = [final_state(config, path) for path in (parts, whole)]
    for leaves in zip(*states, strict=True):
        np.testing.assert_array_equal(*leaves)


def final_state(config, folder):
    _, state = setup.prepare(config, folder)
    with checkpoint.manager(folder) as checkpoints:
        restored = checkpoint.restore(checkpoints, state)
    assert restored is not None
    return [*trees.flat(trees.prune(restored.tuned)).values(), *map(np.asarray, parallel.jax.tree.leaves(restored.opt_state))]


def fork(call, *args) -> int:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            call(*args)
            code = 0
        finally:
            os._exit(code)
    return pid


def forked(call, *args):
    code = os.waitstatus_to_exitcode(os.waitpid(fork(call, *args), 0)[1])
    assert not code, (call.__name__, *args[1:], code)


if __name__ == "__main__":
    main(*sys.argv[1:])
