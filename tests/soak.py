"""Run as a script, `MINUTES FOLDER [FILE.svg]`: watches the resources of a run of many short epochs.

Every epoch is evaluated and saved. Every second the memory, open files and threads of the process are written to
`FOLDER/soak.jsonl`. The last line on the console is JSON: how their lower quartiles grew from the first third to the last, by
how much, and the last step. (While a checkpoint is written there are twice as many open files, and more threads.) The picture
shows them over the steps, relative to the first third.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from toast_jax.analysis import curves  # noqa: E402

WATCHED = ("memory", "open files", "threads")


def main(minutes, folder, picture=None):
    folder = Path(folder)
    process = start(images(folder / "images"), folder / "run", folder / "log.txt")
    samples, ends = [], None
    while process.poll() is None:
        time.sleep(1)
        if (step := last_step(folder / "run")) < 100:  # by then it has evaluated and saved a few times
            continue
        ends = ends or time.monotonic() + 60 * float(minutes)
        samples.append({"step": step, **state(process.pid)})
        if time.monotonic() > ends:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)
    (folder / "soak.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    steps = np.array([sample["step"] for sample in samples])
    series = {name: np.array([sample[name] for sample in samples]) for name in WATCHED}
    third = len(samples) // 3
    quartiles = {
        name: [np.quantile(part, 0.25) for part in (values[:third], values[-third:])] for name, values in series.items()
    }
    grown = {name: after / before for name, (before, after) in quartiles.items()}
    by = {name: after - before for name, (before, after) in quartiles.items()}
    if picture:
        lines = {name: curves.median_of_runs([(steps, values / np.median(values[:third]))]) for name, values in series.items()}
        Path(picture).write_text(curves.svg(lines, "of the median of the first third"))
    summary = {"status": process.returncode, "minutes": float(minutes), "steps": int(steps[-1]), "grown": grown, "by": by}
    print(json.dumps(summary | {"last": {name: float(values[-1]) for name, values in series.items()}}))


def images(root):
    rng = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 2, "test": 2}.items():
        for name in "abc":
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(root / split / name / f"{i}.jpg")
    return root


def start(root, workdir, log):
    command = [
        *(sys.executable, "main.py", "--config=configs/folder.py:method=toast,backbone=vit_mini8", f"--workdir={workdir}"),
        *(f"--config.data.root={root}", "--config.backbone.weights=random", "--config.batch_size=8"),
        *("--config.data.image_size=16", "--config.data.resize=18", "--config.epochs=1000000", "--config.log_every=100"),
        *("--config.eval_every=1", "--config.checkpoint_every=1"),
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file)


def last_step(run):
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 2000))
            return json.loads(file.read().splitlines()[-2])["step"]
    except (OSError, IndexError, ValueError):
        return 0


def state(pid):
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory, threads = int(fields["VmRSS"].split()[0]) / 1024, int(fields["Threads"])
    return {"memory": memory, "open files": len(os.listdir(f"/proc/{pid}/fd")), "threads": threads}


if __name__ == "__main__":
    main(*sys.argv[1:])
