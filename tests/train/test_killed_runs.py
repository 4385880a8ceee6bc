"""Runs that are killed at any instant go on as if nothing had been."""

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT


@pytest.mark.parametrize(("method", "trials"), [("linear", 2), pytest.param("toast_lite", 100, marks=pytest.mark.slow)])
def test_killed_at_any_instant(method, trials, image_folder, tmp_path):
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "tests/killed_runs.py", str(image_folder), str(tmp_path), method, str(trials)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["trials"] == trials and told["killed"] >= int(0.6 * trials)
    assert told["resumed"] >= 0.3 * trials  # from a checkpoint, the others from the start
