"""Benchmarks run to their tables, those that need data or code from elsewhere excepted."""

import os
import subprocess
import sys

import pytest

from tests import ROOT

SMALL = {
    "steps": "--backbone=vit_mini16 --batch=8 --rounds=1 --methods toast --out={folder}/steps.json",
    "steps on text": "--backbone=stories260k --batch=8 --rounds=1",
    "costs": "--methods=linear --rounds=1 --folder={folder}",
    "epoch": "--backbone=vit_mini16 --methods=linear --batch=8 --images=64 --epochs=2",
    "fsdp": "--backbone=stories260k --batch=8 --length=16 --devices=4",
    "pipeline": "--images=16 --batch=8 --batches=2 --rounds=1 --workers 0 1",
    "roofline": "--backbone=vit_mini16 --batch=2 --methods=linear",
    "scaling": "--backbone=vit_mini16 --methods=linear",
    "start": "--backbone=vit_mini16 --batch=8",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs_to_its_table(name, tmp_path):
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
    command = [sys.executable, "-m", f"benchmarks.{name.split()[0]}", *SMALL[name].format(folder=tmp_path).split()]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "costs":
        pictures = {f"{cost}_{what}.svg" for cost in ("ms", "mb") for what in ("image_size", "batch", "depth")}
        assert {path.name for path in tmp_path.iterdir()} == {"costs.json", *pictures}
    else:
        assert ("filled cache: first step after" if name == "start" else "|---|") in done.stdout
