"""Two processes, as on two hosts, give the numbers of one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLAGS = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"


def start(image_folder, workdir, *flags, **env):
    """Starts a run of six steps on CPU devices; drop-path is on."""
    command = [
        *(sys.executable, "main.py", "--config=configs/folder.py:method=toast,backbone=vit_ti16", *flags),
        *(f"--workdir={workdir}", f"--config.data.root={image_folder}", "--config.backbone.weights=random"),
        *("--config.data.image_size=16", "--config.data.resize=18", "--config.batch_size=8"),
        *("--config.epochs=2", "--config.warmup_epochs=0", "--config.eval_every=2"),
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, **env}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def numbers(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_equal_one(image_folder, tmp_path):
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    pair = [
        start(image_folder, tmp_path / "two", "--distributed", **slurm, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert "test accuracy" in outputs[0] and "test accuracy" not in outputs[1]

    one = start(image_folder, tmp_path / "one")
    assert "test accuracy" in one.communicate(timeout=300)[0]
    assert len(numbers(tmp_path / "one")) == 8
    for ours, theirs in zip(numbers(tmp_path / "two"), numbers(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)
