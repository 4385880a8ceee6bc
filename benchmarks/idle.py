"""How long the device waits between the operations of consecutive steps."""

import gzip
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax


def measured(run: Callable[[int], None], count: int) -> dict:
    """Profile `count` steps.

    Args:
      run: runs so many consecutive steps and waits for the last.

    Returns:
      seconds of a step, and `idle_share` of the device between its first and last operation; None if the trace names no
      device, as on a CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with jax.profiler.trace(folder):
            run(count)
        seconds = time.perf_counter() - started
        files = sorted(Path(folder).rglob("*.trace.json.gz"))
        traces = [json.loads(gzip.decompress(path.read_bytes())) for path in files]
    shares = [share for trace in traces for share in idle_shares(trace).values()]
    return {"steps": count, "profiled_seconds_a_step": seconds / count, "idle_share": max(shares, default=None)}


def idle_shares(trace: dict) -> dict[str, float]:
    """Compute the idle share of every device of a trace in Chrome's format.

    A device is idle while none of its threads runs an operation, between the first operation and the end of the last. Threads
    that show whole steps or modules are left out, as they also cover the gaps.
    """
    named = [event for event in trace["traceEvents"] if event.get("ph") == "M"]
    devices = {
        event["pid"]: event["args"]["name"]
        for event in named
        if event["name"] == "process_name" and event["args"]["name"].startswith("/device:")
    }
    whole = {
        (event["pid"], event["tid"])
        for event in named
        if event["name"] == "thread_name" and any(word in event["args"]["name"] for word in ("Steps", "Modules", "Framework"))
    }
    spans: dict[str, list] = {}
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event["pid"] in devices and (event["pid"], event["tid"]) not in whole:
            spans.setdefault(devices[event["pid"]], []).append((event["ts"], event["ts"] + event["dur"]))
    return {device: _idle(sorted(operations)) for device, operations in spans.items()}


def _idle(spans):
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1.0 - busy / (end - spans[0][0])
