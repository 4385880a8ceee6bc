"""Measure this package on an accelerator, most important numbers first, in a few minutes.

    python -m benchmarks.accelerator --minutes=8 --out=results

Needs jax, flax, optax, jaxtyping, numpy, absl-py and ml_collections; no data, weights or network. With torch and timm (and
peft, or a checkout of the release as `--release`) the same steps are timed in PyTorch. OUT/accelerator.json and
OUT/accelerator.md are replaced after every row, so a run that is cut off loses only the row that it was at. A row that fails
is recorded with its message; a row starts only if the longest row of its part so far still fits the time. Times are medians of
`rounds` windows of consecutive steps; the host waits for the device at the end of a window. `--tiny` runs every row on a CPU.
"""

import argparse
import dataclasses
import functools
import gc
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch's process needs memory of the same card

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import against_release, chips, choices, idle, machine, release_weights, steps  # noqa: E402
from benchmarks.recipe import DECAY, RATE  # noqa: E402
from toast_jax import trees  # noqa: E402
from toast_jax.config import run_fields  # noqa: E402
from toast_jax.devices import parallel  # noqa: E402
from toast_jax.model import generation, steered  # noqa: E402
from toast_jax.model.backbones.vit import network as vit  # noqa: E402
from toast_jax.testing import parity  # noqa: E402
from toast_jax.train.grid_step import grid_step, own, with_own  # noqa: E402
from toast_jax.train.step import init_state  # noqa: E402

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured; batches are images or sequences per device.

    Attributes:
      batches: of the steps; the first one in the first table, the others last.
      larger: backbone of the last table, or "".
      recordings: of the PyTorch release, in tests/fixtures.
      maps: side and channels of the maps of a ConvNeXt's stages.
      text: sequences and tokens of a train step; rows, prompt and new tokens of decoding.
    """

    backbone: str = "vit_b16"
    larger: str = "vit_l16"
    image_size: int = 224
    batches: tuple[int, ...] = (128, 64, 256)
    dtype: str = "bfloat16"
    steered_blocks: tuple[int, ...] = (6, 4)
    window: int = 20
    rounds: int = 4
    recordings: tuple[str, ...] = ("vit_toast", "llama_toast")
    maps: tuple[tuple[int, int], ...] = ((56, 128), (28, 256), (14, 512), (7, 1024))
    points: int = 28
    grid_batch: int = 32
    at_once: tuple[int, ...] = (28, 14, 7)
    llama: str = "llama3_2_1b"
    text: tuple[int, int] = (8, 512)
    decoding: tuple[int, int, int] = (16, 128, 128)
    profiled: int = 50


TINY = Sizes(
    backbone="vit_mini16",
    larger="",
    image_size=32,
    batches=(2,),
    dtype="float32",
    steered_blocks=(2,),
    window=2,
    recordings=("vit_linear",),
    maps=((4, 8),),
    points=2,
    grid_batch=2,
    at_once=(2,),
    llama="stories260k",
    text=(2, 8),
    decoding=(2, 4, 4),
    profiled=2,
)


class Row(NamedTuple):
    """One row of a part: its name, and the function that measures its cells from the rows of all parts so far."""

    name: str
    measure: Callable[[dict], dict]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="start no row that would end later")
    parser.add_argument("--out", type=Path, required=True, help="folder of accelerator.json and accelerator.md")
    parser.add_argument("--release", default="", help="folder visual_classification of a checkout of the PyTorch release")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="all by default, in this order")
    parser.add_argument("--rows", default="", help="regex: measure only the rows whose `PART | NAME` has a match")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to check the script on a CPU")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    sizes, end = TINY if args.tiny else Sizes(), time.perf_counter() + 60 * args.minutes
    report = {"minutes": args.minutes, "sizes": dataclasses.asdict(sizes), "machine": machine.facts(), "parts": {}}
    _save(args.out, report)
    for part in args.parts:
        rows = report["parts"].setdefault(part, {})
        longest = 0.0
        for name, measure in PARTS[part](sizes, args.release):
            if not re.search(args.rows, f"{part} | {name}"):
                continue
            started = time.perf_counter()
            if started + longest >= end:
                rows[name] = {"skipped": "no time was left"}
            else:
                rows[name] = _cells(measure, report["parts"])
                rows[name]["took_seconds"] = time.perf_counter() - started
                longest = max(longest, rows[name]["took_seconds"])
            print(f"{part} | {name} | {_line(rows[name])}", flush=True)
            _save(args.out, report)
            gc.collect()


def _cells(measure: Callable, parts: dict) -> dict:
    """Measure a row; an exception becomes a cell, so that the next row is measured."""
    try:
        return measure(parts)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


# The parts, each a function `(sizes, release) -> rows`.


def _parity(sizes: Sizes, release: str) -> Iterator[Row]:
    def replayed(name, precision, parts):
        path = FIXTURES / f"{name}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; copy tests/fixtures of the repository to this machine.")
        with jax.default_matmul_precision(precision):
            checks = parity.replay(str(path))
        worst = {bound: max((c.error for c in checks if c.bound == bound), default=0.0) for bound in (1e-5, 1e-4)}
        failed = [check.name for check in checks if not check.passed]
        return {
            "quantities": len(checks),
            "past_their_bound": len(failed),
            "worst_forward": worst[1e-5],
            "worst_gradient": worst[1e-4],
            "failed": failed[:20],
        }

    for name in sizes.recordings:
        for precision in ("highest", "default"):
            yield Row(f"{name}, {precision}", functools.partial(replayed, name, precision))


def _variants(sizes: Sizes) -> dict[str, tuple[str, dict]]:
    """Return the methods of the tables by the names of their rows, with the fields that they change."""
    late = sizes.steered_blocks if "steered_blocks" in run_fields.IMAGES else ()
    return {
        "toast": ("toast", {}),
        **{f"toast k={k}": ("toast", {"steered_blocks": k}) for k in late},
        **{name: (name, {}) for name in ("lora", "linear", "finetune", "toast_lite")},
        **{f"{name}, unrolled": (name, {"backbone.unroll": True}) for name in ("toast", "finetune", "lora", "linear")},
    }


def _steps(sizes: Sizes, release: str) -> Iterator[Row]:
    yield from _steps_of(sizes, sizes.backbone, sizes.batches[0])


def _more_steps(sizes: Sizes, release: str) -> Iterator[Row]:
    if sizes.larger:
        yield from _steps_of(sizes, sizes.larger, sizes.batches[0])
    for batch in sizes.batches[1:]:
        yield from _steps_of(sizes, sizes.backbone, batch)


def _steps_of(sizes, backbone, batch):
    def measured(method, fields, parts):
        images = steps.images(batch * jax.device_count(), sizes.image_size)
        case = steps.Case(method, backbone, images, dtype=sizes.dtype, **fields)
        return _timed(case, images, sizes)

    for name, (method, fields) in _variants(sizes).items():
        yield Row(f"{backbone}, batch {batch}, {name}", functools.partial(measured, method, fields))


def _timed(case: steps.Case, batch: dict, sizes: Sizes) -> dict:
    """Time a compiled method; `share_of_peak` is that of matrix products in a train step."""
    for _ in range(sizes.rounds + 1):
        case.time_train(batch, sizes.window)
        case.time_evaluation(batch, sizes.window)
    del case.train_seconds[0], case.evaluation_seconds[0]
    row, chip = case.row(batch["label"].size), chips.of_kind(jax.devices()[0].device_kind)
    seconds = statistics.median(case.train_seconds)
    return {**row, "share_of_peak": case.flops / seconds / chip.flops if chip else None}


def _torch(sizes: Sizes, release: str) -> Iterator[Row]:
    def measured(kind, method, needed, parts):
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            return {"skipped": f"not installed: {', '.join(missing)}"}
        with tempfile.TemporaryDirectory() as folder:
            logits = _reference_logits(method, sizes, folder) if kind == "release" else None
            facts = {name: getattr(sizes, name) for name in ("backbone", "image_size", "window", "rounds")}
            facts |= {"kind": kind, "method": method, "batch": sizes.batches[0], "folder": folder, "release": release}
            command = [sys.executable, "-m", "benchmarks.torch_side", json.dumps(facts)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
            if done.returncode:
                raise RuntimeError(done.stderr[-1500:])
            row = json.loads(done.stdout.splitlines()[-1])
            if logits is not None:
                row["logits_differ_by"] = parity.relative_error(np.load(f"{folder}/release.npy"), logits)
        for name, ours in ((method, ""), (f"{method}, unrolled", "unrolled_")):
            here = parts.get("steps", {}).get(f"{sizes.backbone}, batch {sizes.batches[0]}, {name}", {})
            for step in ("train", "evaluation"):
                if step in here:
                    row[f"{ours}times_as_fast_{step}"] = here[step] / row[step] / jax.device_count()
        return row

    if release:
        for method in ("toast", "toast_lite"):
            yield Row(f"release, {method}", functools.partial(measured, "release", method, ("torch", "timm")))
    for method in ("finetune", "linear"):
        yield Row(f"timm, {method}", functools.partial(measured, "timm", method, ("torch", "timm")))
    yield Row("peft, lora", functools.partial(measured, "peft", "lora", ("torch", "timm", "peft")))


def _reference_logits(method, sizes, folder):
    """Save weights for the release, and compute the logits of its eight images in float32."""
    network, row, *_ = steps.timed(method, sizes.backbone, sizes.image_size)
    params = jax.jit(lambda: steered.init(network, row, jax.random.key(0)))()
    release_weights.save(f"{folder}/weights.npz", params)
    images, _ = against_release.batch(8)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(functools.partial(steered.apply, network, row))(params, images))


def _choices(sizes: Sizes, release: str) -> Iterator[Row]:
    size, dtype = vit.SIZES[_size_of(sizes.backbone)], jnp.dtype(sizes.dtype)
    tokens, batch = (sizes.image_size // 16) ** 2 + 1, sizes.batches[0]

    def stack(variant, parts):
        x = choices.drawn((batch, tokens, size.width), dtype)
        kernels = choices.parameters(size.width, size.depth, dtype)
        return _called(choices.gradient(variant, size.num_heads), (kernels, x), sizes)

    def convolution(convolve, side, channels, parts):
        x = choices.drawn((batch, side, side, channels), dtype)
        kernel = choices.drawn((7, 7, 1, channels), dtype)
        return _called(choices.gradient_of_depthwise(convolve), (kernel, x), sizes)

    for name, variant in choices.STACKS.items():
        yield Row(name, functools.partial(stack, variant))
    for side, channels in sizes.maps:
        for name, convolve in choices.DEPTHWISE.items():
            row = f"depthwise {side} x {side} x {channels}, {name}"
            yield Row(row, functools.partial(convolution, convolve, side, channels))


def _size_of(backbone):
    return run_fields.base(name="timed", method="toast", backbone=backbone).backbone.size


def _called(function: Callable, args: tuple, sizes: Sizes) -> dict:
    """Compile and time a function of arrays."""
    program, compile_seconds, memory = steps.compiled(jax.jit(function), *args)
    seconds = []
    for _ in range(sizes.rounds + 1):
        started = time.perf_counter()
        for _ in range(sizes.window):
            out = program(*args)
        jax.block_until_ready(out)
        seconds.append((time.perf_counter() - started) / sizes.window)
    cells = {"compile_seconds": compile_seconds, "memory_bytes": steps.planned_bytes(memory)}
    return {"milliseconds": 1e3 * statistics.median(seconds[1:]), **cells, "seconds": seconds[1:]}


def _grid(sizes: Sizes, release: str) -> Iterator[Row]:
    name = f"{sizes.backbone}, batch {sizes.grid_batch}, toast"

    def alone(parts):
        images = steps.images(sizes.grid_batch * jax.device_count(), sizes.image_size)
        row = _timed(steps.Case("toast", sizes.backbone, images, dtype=sizes.dtype), images, sizes)
        return {"step_of_a_point_ms": 1e3 * statistics.median(row["train_seconds"]), "memory_bytes": row["memory_bytes"]}

    yield Row(f"{name}, one by one", alone)
    for at_once in sizes.at_once:
        yield Row(f"{name}, {sizes.points} points, {at_once} at once", functools.partial(_grid_row, sizes, at_once))


def _grid_row(sizes, at_once, parts):
    network, method, mask, tx, step = steps.timed("toast", sizes.backbone, sizes.image_size, sizes.dtype)
    tuned, frozen = trees.split(jax.jit(lambda: steered.init(network, method, jax.random.key(0)))(), mask)
    frozen = jax.tree.map(lambda leaf: leaf.astype(sizes.dtype), frozen)
    state = init_state(tuned, tx, seed=0)
    stacked = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], sizes.points, axis=0), own(state))
    state, frozen = parallel.place(with_own(state, stacked)), parallel.place(frozen)

    def features(frozen, batch, rng):
        return network.apply({"params": {"backbone": frozen["backbone"]}}, batch["image"], rng, method="frozen_features")

    together = functools.partial(
        grid_step,
        points=(jnp.full(sizes.points, RATE), jnp.full(sizes.points, DECAY)),
        features=features,
        scores=step.keywords["scores"],
        tx=lambda rate, decay: steps.optimizer(mask, ("head/bias",), rate, decay),
        augment=lambda batch, rng: batch,
        ema=0.0,
        at_once=at_once,
    )
    batch = steps.images(sizes.grid_batch * jax.device_count(), sizes.image_size)
    mapped = parallel.replicate(together, num_replicated=2, donate=(0,))
    program, compile_seconds, memory = steps.compiled(mapped, state, frozen, batch)
    window, seconds = max(2, sizes.window // 10), []
    for _ in range(sizes.rounds + 1):
        started = time.perf_counter()
        for _ in range(window):
            state, metrics = program(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        seconds.append((time.perf_counter() - started) / window / sizes.points)
    each = 1e3 * statistics.median(seconds[1:])
    cells = {"step_of_a_point_ms": each, "memory_bytes": steps.planned_bytes(memory), "compile_seconds": compile_seconds}
    before = next((row.get("step_of_a_point_ms") for row in parts.get("grid", {}).values()), None)
    return {**cells, "times_as_fast": before / each if before else None}


def _language(sizes: Sizes, release: str) -> Iterator[Row]:
    sequences, length = sizes.text

    def train(method, parts):
        batch = steps.texts(sizes.llama, sequences * jax.device_count(), length)
        return _timed(steps.Case(method, sizes.llama, batch, dtype=sizes.dtype), batch, sizes)

    for method in ("toast", "lora", "toast_lite"):
        yield Row(f"{sizes.llama}, {sequences} x {length} tokens, {method}", functools.partial(train, method))
    rows, prompt, new = sizes.decoding
    for method in ("toast", "lora"):
        yield Row(f"{sizes.llama}, decode {rows} x {new} after {prompt}, {method}", functools.partial(_decoded, sizes, method))


def _decoded(sizes, method, parts):
    rows, prompt, new = sizes.decoding
    network, row, *_ = steps.timed(method, sizes.llama, dtype=sizes.dtype)
    params = jax.jit(lambda: steered.init(network, row, jax.random.key(0)))()
    params = jax.tree.map(lambda leaf: leaf.astype(sizes.dtype), params)
    prompts, lengths = jnp.ones((rows, prompt), jnp.int32), jnp.full(rows, prompt, jnp.int32)
    sampling, seconds, first = generation.Sampling(), [], []
    for _ in range(sizes.rounds + 1):
        started = time.perf_counter()
        keys = jax.random.split(jax.random.key(0), len(prompts))
        state = generation.begin(network, row, params, prompts, lengths, prompt + new, sampling, keys)
        jax.block_until_ready(state)
        first.append(time.perf_counter() - started)
        started = time.perf_counter()
        jax.block_until_ready(generation.extend(network, row, params, state, new - 1, sampling))
        seconds.append((time.perf_counter() - started) / (new - 1))
    per_token = statistics.median(seconds[1:])
    return {
        "tokens_a_second": rows / per_token,
        "milliseconds_a_token": 1e3 * per_token,
        "prompt_milliseconds": 1e3 * statistics.median(first[1:]),
    }


def _idle(sizes: Sizes, release: str) -> Iterator[Row]:
    def profiled(method, parts):
        images = steps.images(sizes.batches[0] * jax.device_count(), sizes.image_size)
        case = steps.Case(method, sizes.backbone, images, dtype=sizes.dtype)
        return idle.measured(lambda: case.dispatch(images), sizes.profiled)

    for method in ("toast", "linear"):
        yield Row(f"{sizes.backbone}, batch {sizes.batches[0]}, {method}", functools.partial(profiled, method))


PARTS = {
    "parity": _parity,
    "steps": _steps,
    "torch": _torch,
    "choices": _choices,
    "grid": _grid,
    "language": _language,
    "idle": _idle,
    "more_steps": _more_steps,
}


# Output.


def _save(folder: Path, report: dict) -> None:
    machine.write_json(folder / "accelerator.json", report)
    machine.replace(folder / "accelerator.md", markdown(report))


def markdown(report: dict) -> str:
    """Format a report: the machine, then a table for each part with its cells of one value."""
    facts = report["machine"]
    device, versions = facts["device"], ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"# {device['count']} x {device['kind']}",
        "",
        f"{versions}. {facts['cpu']}, {facts['cores']} cores, {facts['instruction_set']}. XLA_FLAGS: `{facts['xla_flags']}`.",
    ]
    for part, rows in report["parts"].items():
        columns = list(dict.fromkeys(name for row in rows.values() for name, value in row.items() if _is_cell(value)))
        lines += ["", f"## {part}", "", f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        for name, row in rows.items():
            lines.append(f"| {name} | {' | '.join(_text(column, row.get(column)) for column in columns)} |")
    return "\n".join(lines) + "\n"


def _is_cell(value):
    return not isinstance(value, list | dict)


def _text(column, value):
    if value is None:
        return "-"
    if isinstance(value, str):
        return value.replace("|", "/").replace("\n", " ")[:200]
    if column.endswith("_bytes"):
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _line(row):
    return ", ".join(f"{name} {_text(name, value)}" for name, value in row.items() if _is_cell(value))


if __name__ == "__main__":
    main()
