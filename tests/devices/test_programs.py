"""Compiling ahead of the first call, and giving memory back to the system."""

import ctypes
import dataclasses
import platform
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.conftest import tiny_config
from toast_jax.devices import fsdp, parallel, programs
from toast_jax.train import loop, setup


def step(state, frozen, batch):
    """Follows the protocol of a train step."""
    total = jax.lax.psum((batch["x"] @ frozen).sum(), parallel.AXIS)
    return state + total, {"loss": total}


@pytest.mark.parametrize("devices", [parallel, fsdp.Shared(8, [(".*", PartitionSpec())])], ids=["parallel", "fsdp"])
def test_a_step_is_compiled_once(devices, caplog):
    mapped = devices.replicate(step, num_replicated=2, donate=(0,))
    state, frozen = devices.place(jnp.zeros(())), devices.place(jnp.ones((3, 2)))
    batch = devices.shard({"x": np.ones((16, 3), np.float32)})
    with jax.log_compiles():
        programs.compile_ahead(mapped, state, frozen, batch)
        assert "Finished XLA compilation" in caplog.text
        caplog.clear()
        state, metrics = mapped(state, frozen, batch)
        assert "Finished XLA compilation" not in caplog.text
    assert float(state) == float(metrics["loss"]) == 96


def test_a_run_compiles_its_step_before_the_first_call(image_folder, tmp_path, monkeypatch, caplog):
    config = tiny_config(image_folder, "linear")
    run, state = setup.prepare(config, tmp_path)
    called = []

    def first(*args):
        called.append(caplog.text)
        return run.step(*args)

    first.lower = run.step.lower
    monkeypatch.setattr(loop, "_evaluate", lambda *args: {})
    with jax.log_compiles():
        loop._finish(dataclasses.replace(run, step=first), state, time.perf_counter())
    compiled = r"Compiling jit\(_fun\) with .*ShapedArray\(uint32\[2\]\)"  # the key of the state
    assert len(re.findall(compiled, called[0])) == len(re.findall(compiled, caplog.text)) == 1


def resident():
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less")
@pytest.mark.parametrize("give_back", [programs.free_memory, programs.drop_all])
def test_freed_memory_goes_back_to_the_system(give_back):
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    chunks = [libc.malloc(60_000) for _ in range(4000)]
    for chunk in chunks:
        ctypes.memset(chunk, 1, 60_000)
    for chunk in chunks[:-1]:  # the last one keeps the end of the heap in use
        libc.free(chunk)
    before = resident()
    give_back()
    assert before - resident() > 150e6
    libc.free(chunks[-1])
