"""How long the device waits between the operations of consecutive steps."""

import gzip
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax


def measured(dispatch: Callable[[], object], count: int) -> dict:
    """Profile `count` consecutive steps.

    Args:
      dispatch: starts a step and returns its results, without waiting for them.

    Returns:
      seconds of a step; `dispatch_share` of them that the host took to start it, near 1 if the device waits for the host;
      `idle_share` of the device, None if the trace names no device, as on a CPU.
    """
    jax.block_until_ready(dispatch())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            for _ in range(count):
                result = dispatch()
            dispatched = time.perf_counter() - started
            jax.block_until_ready(result)
            seconds = time.perf_counter() - started
        traces = [json.loads(gzip.decompress(path.read_bytes())) for path in Path(folder).rglob("*.trace.json.gz")]
    shares = [share for trace in traces for share in idle_shares(trace).values()]
    times = {"seconds_a_step": seconds / count, "dispatch_share": dispatched / seconds}
    return {"steps": count, "traces": len(traces), **times, "idle_share": max(shares, default=None)}


def idle_shares(trace: dict) -> dict[str, float]:
    """Compute the idle share of every device of a trace in Chrome's format.

    A device is idle while none of its operations runs, between the start of the first and the end of the last. Operations are
    in the threads of streams (GPU) or "XLA Ops" (TPU); threads of steps, modules and source lines also cover the gaps.
    """
    named = [event for event in trace["traceEvents"] if event.get("ph") == "M"]
    devices = {
        event["pid"]: event["args"]["name"]
        for event in named
        if event["name"] == "process_name" and event["args"]["name"].startswith("/device:")
    }
    threads = {
        (event["pid"], event["tid"])
        for event in named
        if event["name"] == "thread_name" and event["args"]["name"].startswith(("Stream #", "XLA Ops"))
    }
    spans: dict[str, list] = {}
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and event["pid"] in devices and (event["pid"], event["tid"]) in threads:
            spans.setdefault(devices[event["pid"]], []).append((event["ts"], event["ts"] + event["dur"]))
    return {device: _idle(sorted(operations)) for device, operations in spans.items()}


def _idle(spans):
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1.0 - busy / (end - spans[0][0])
