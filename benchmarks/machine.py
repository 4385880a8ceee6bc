"""What a table of times states about the machine, from the standard library and JAX alone."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml-collections", "jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu")
# Widest first; the names of /proc/cpuinfo on x86-64 and on ARM.
_INSTRUCTION_SETS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "sve", "asimd")


def facts() -> dict:
    """Return devices, versions of the installed packages, `XLA_FLAGS`, processor and its widest instruction set."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
        "backend": device.client.platform_version.splitlines()[0],
        "versions": {"python": platform.python_version(), **versions},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **processor(),
    }


def processor() -> dict:
    """Return the model of the processor, its cores for this process and its widest instruction set."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        lines = []
    info = {name.strip(): value.strip() for name, _, value in lines}
    flags = info.get("flags", info.get("Features", "")).split()
    return {
        "cpu": info.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_set": next((name for name in _INSTRUCTION_SETS if name in flags), "unknown"),
    }


def write_json(path: Path, value: dict) -> None:
    """Replace a JSON file atomically."""
    replace(path, json.dumps(value, indent=2) + "\n")


def replace(path: Path, content: str) -> None:
    """Replace a file atomically: whenever the process ends, the file holds the old or the new content."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content)
    partial.replace(path)
