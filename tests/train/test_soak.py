"""A run that lasts does not grow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it looks at processes where Linux shows them")
def test_memory_open_files_and_threads_stay_as_they_are(tmp_path):
    """Of a minute, or of as many as TOAST_SOAK_MINUTES says."""
    command = [sys.executable, "tests/soak.py", os.environ.get("TOAST_SOAK_MINUTES", "1"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + (tmp_path / "log.txt").read_text()[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["status"] == 130 and told["steps"] > 200
    assert told["grown"]["memory"] <= 1.1, told
    # One comes and goes; one that every epoch left open would be hundreds.
    assert all(told["grown"][name] <= 1.1 or told["by"][name] <= 1 for name in ("open files", "threads")), told
