"""Two processes, as on two hosts, give the numbers of one, and neither waits long for the other when that is gone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import ROOT

FLAGS = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"


def start(image_folder, workdir, *flags, **env):
    """Starts a run of six steps on CPU devices; drop-path is on."""
    command = [
        *(sys.executable, "main.py", "--config=configs/folder.py:method=toast,backbone=vit_ti16"),
        *(f"--workdir={workdir}", f"--config.data.root={image_folder}", "--config.backbone.weights=random"),
        *("--config.data.image_size=16", "--config.data.resize=18", "--config.batch_size=8"),
        *("--config.epochs=2", "--config.warmup_epochs=0", "--config.eval_every=2", *flags),
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, **env}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_pair(image_folder, workdir, *flags):
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    return [
        start(image_folder, workdir, "--distributed", *flags, **slurm, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in range(2)
    ]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def numbers(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_equal_one(image_folder, tmp_path):
    pair = start_pair(image_folder, tmp_path / "two")
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert "test accuracy" in outputs[0] and "test accuracy" not in outputs[1]

    one = start(image_folder, tmp_path / "one")
    assert "test accuracy" in one.communicate(timeout=300)[0]
    assert len(numbers(tmp_path / "one")) == 8
    for ours, theirs in zip(numbers(tmp_path / "two"), numbers(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)


LONG = ("--config.epochs=30", "--config.eval_every=30", "--config.checkpoint_every=3", "--config.log_every=1")


@pytest.fixture(scope="module")
def long_run(image_folder, tmp_path_factory):
    """The numbers of a run of 90 steps by two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("long")
    for process in (pair := start_pair(image_folder, folder, *LONG)):
        process.communicate(timeout=300)
    assert [process.returncode for process in pair] == [0, 0]
    return numbers(folder)


def under_way(image_folder, folder):
    """Starts two processes and returns them in the middle of their run."""
    pair = start_pair(image_folder, folder, *LONG)
    for line in pair[0].stdout:
        if line.startswith("step 40/"):
            break
    return pair


def disturbed(image_folder, folder, who, number):
    """Sends a signal to one of two processes in the middle of a run."""
    pair = under_way(image_folder, folder)
    pair[who].send_signal(number)
    return pair


def assert_goes_on(image_folder, folder, long_run):
    pair = start_pair(image_folder, folder, *LONG)
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert re.search(r"Resuming from step \d+ of 90", outputs[0])
    assert numbers(folder) == long_run


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_ends_the_other_within_a_minute(who, number, long_run, image_folder, tmp_path):
    pair, started = disturbed(image_folder, tmp_path, who, number), time.monotonic()
    try:
        output, _ = pair[1 - who].communicate(timeout=90)
        assert time.monotonic() - started < 60
        assert pair[1 - who].returncode not in (0, None)
        assert "Another process of this run is gone" in output or "another task died" in output, output
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    assert_goes_on(image_folder, tmp_path, long_run)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_both_processes_save_the_same_step_when_one_is_asked_to_stop(who, long_run, image_folder, tmp_path):
    pair = disturbed(image_folder, tmp_path, who, signal.SIGTERM)
    outputs = [process.communicate(timeout=90)[0] for process in pair]
    assert [process.returncode for process in pair] == [130, 130], outputs
    stopped = [re.search(r"Stopped after step (\d+) of 90, which is saved", output)[1] for output in outputs]
    assert stopped[0] == stopped[1] and (tmp_path / "checkpoints" / stopped[0]).is_dir()
    assert_goes_on(image_folder, tmp_path, long_run)


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_other(image_folder, tmp_path):
    """Here the first one, which alone writes what is correct, cannot replace a folder by it."""
    pair = under_way(image_folder, tmp_path)
    (tmp_path / "test_correct.txt").mkdir()
    outputs = [process.communicate(timeout=90)[0] for process in pair]
    assert pair[0].returncode == 2 and "test_correct.txt is a folder, where a file is needed" in outputs[0], outputs[0]
    assert pair[1].returncode not in (0, None) and ("is gone" in outputs[1] or "another task died" in outputs[1]), outputs[1]


@pytest.mark.slow
def test_without_others_it_is_told(image_folder, tmp_path):
    alone = start(image_folder, tmp_path, "--distributed")
    output, _ = alone.communicate(timeout=60)
    assert alone.returncode == 2 and "error: --distributed finds no other hosts (" in output and "Traceback" not in output
