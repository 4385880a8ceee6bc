"""Benchmarks run to their tables, those that need data or code from elsewhere excepted."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import jax
import pytest

from benchmarks import accelerator, chips, idle, language_feedback, steps
from configs import demo_language
from tests import ROOT
from tests.tasks import test_demo_language
from toast_jax.model.backbones.llama import network as llama
from toast_jax.train.step import State

SMALL = {
    "accelerator": "--tiny --out={folder}",
    "steps": "--backbone=vit_mini16 --batch=8 --rounds=1 --methods toast --out={folder}/steps.json",
    "steps of segmentation": "--backbone=vit_mini16 --batch=8 --rounds=1 --methods toast --heads linear",
    "steps on text": "--backbone=stories260k --batch=8 --rounds=1",
    "costs": "--methods=linear --rounds=1 --folder={folder}",
    "epoch": "--backbone=vit_mini16 --methods=linear --batch=8 --images=64 --epochs=2",
    "fsdp": "--backbone=stories260k --batch=8 --length=16 --devices=4",
    "kinds": "--backbone=vit_ti16 --batch=1 --rounds=1",
    "pipeline": "--images=16 --batch=8 --batches=2 --rounds=1 --workers 0 1",
    "demo_backbone": "--steps=2 --scenes=80 --out={folder}/demo.safetensors",
    "roofline": "--backbone=vit_mini16 --batch=2 --methods=linear",
    "scaling": "--backbone=vit_mini16 --methods=linear",
    "start": "--backbone=vit_mini16 --batch=8",
    "beside_timm": "--networks DINOv2_S --rounds=1 --out={folder}/beside_timm.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs_to_its_table(name, tmp_path):
    if name == "beside_timm":
        pytest.importorskip("timm")
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
    command = [sys.executable, "-m", f"benchmarks.{name.split()[0]}", *SMALL[name].format(folder=tmp_path).split()]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "accelerator":
        report = json.loads((tmp_path / "accelerator.json").read_text())
        errors = {row for rows in report["parts"].values() for row, cells in rows.items() if "error" in cells}
        assert errors <= {"attention by cuDNN"}
        assert [*report["parts"], "more_steps"] == list(accelerator.PARTS)  # the last part has no rows at these sizes
    elif name == "costs":
        pictures = {f"{cost}_{what}.svg" for cost in ("ms", "mb") for what in ("image_size", "batch", "depth")}
        assert {path.name for path in tmp_path.iterdir()} == {"costs.json", *pictures}
    elif name == "demo_backbone":
        assert (tmp_path / "demo.safetensors").is_file()
    else:
        assert ("filled cache: first step after" if name == "start" else "|---|") in done.stdout


def test_products_are_counted_without_a_program_and_windows_wait_once(monkeypatch):
    """On GPUs a program names its products by other words, and waiting for every step would time the host."""
    waits, program = [], lambda state, *_: (state, {}) if isinstance(state, State) else {}
    plan = types.SimpleNamespace(temp_size_in_bytes=1, argument_size_in_bytes=1, output_size_in_bytes=1, alias_size_in_bytes=0)
    monkeypatch.setattr(steps, "compiled", lambda *_: (program, 0.0, plan))
    one, two = (steps.Case("linear", "vit_mini16", steps.images(n * jax.device_count(), 32)) for n in (1, 2))
    # Tokens, the class token included, times the products of six blocks, the last of which has one query.
    tokens, width = 5, 64
    of_blocks = 2 * width**2 * (5 * 12 * tokens + 2 * tokens + 10) + 4 * width * tokens * (5 * tokens + 1)
    assert one.flops == of_blocks + 2 * 4 * 16 * 16 * 3 * width + 2 * 2 * width * steps.CLASSES and two.flops == 2 * one.flops
    monkeypatch.setattr(jax, "block_until_ready", waits.append)
    one.time_train({}, window=4)
    one.time_evaluation({}, window=4)
    assert len(waits) == 2 and len(one.train_seconds) == len(one.evaluation_seconds) == 1


@pytest.mark.slow
def test_every_path_of_the_feedback_is_measured(tmp_path, monkeypatch):
    """With a network of random numbers: no answer is right, and only what the row names is tuned."""

    def longer(config, short=demo_language._short):
        config = short(config)
        config.data.length = 160  # its tokens are bytes
        return config

    monkeypatch.setattr(demo_language, "_short", longer)
    monkeypatch.setattr(language_feedback, "QUESTIONS", {"val": 3, "test": 2})
    monkeypatch.setitem(llama.SIZES, "stories15m", test_demo_language.SIZE)
    args = types.SimpleNamespace(weights=test_demo_language.teller(tmp_path), splits=["test", "val"])
    changed = "A_l tuned", "no selection", "A_l random rotations, frozen", "own inputs through B_l alone", "lora on values"
    for name in changed:
        row = language_feedback.ROWS[name]
        small = dataclasses.replace(row, tales=8, epochs=1, pretuning=min(row.pretuning, 1))
        tuned, right, *signal = language_feedback._measured(small, 1, args, tmp_path)
        matrices = test_demo_language.SIZE.depth * test_demo_language.D**2
        if row.method == "toast":
            assert tuned == matrices * (1 + row.tune_back) + test_demo_language.D, name
        assert right == [0.0, 0.0] and ("-" in signal) == (row.method == "lora"), name


def test_rows_are_saved_as_they_end_and_a_failure_stops_nothing(tmp_path, monkeypatch):
    saved = []

    def fails(parts):
        saved.append(json.loads((tmp_path / "accelerator.json").read_text())["parts"])
        raise ValueError("no such kernel")

    rows = {
        "first": lambda parts: {"a_bytes": 2**21},
        "second": fails,
        "third": lambda parts: {"b": parts["part"]["first"]["a_bytes"]},
    }
    monkeypatch.setattr(
        accelerator, "PARTS", {"part": lambda *_: (accelerator.Row(*row) for row in rows.items()), "other": lambda *_: ()}
    )
    accelerator.main(["--tiny", "--out", str(tmp_path), "--parts", "part"])
    (before,) = saved
    assert before["part"]["first"]["a_bytes"] == 2**21 and "second" not in before["part"]
    report = json.loads((tmp_path / "accelerator.json").read_text())
    assert report["parts"]["part"]["second"]["error"] == "ValueError: no such kernel"
    assert report["parts"]["part"]["third"]["b"] == 2**21 and report["machine"]["instruction_set"]
    table = (tmp_path / "accelerator.md").read_text()
    assert "| first | 2 MiB |" in table and "ValueError: no such kernel" in table
    assert not list(tmp_path.glob("*.partial"))


def test_no_row_starts_without_time(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "PARTS", {"part": lambda *_: iter([accelerator.Row("late", lambda parts: 1 / 0)])})
    accelerator.main(["--tiny", "--out", str(tmp_path), "--minutes=0"])
    rows = json.loads((tmp_path / "accelerator.json").read_text())["parts"]["part"]
    assert rows == {"late": {"skipped": "no time was left"}}


def test_a_missing_recording_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "FIXTURES", tmp_path)
    accelerator.main(["--tiny", "--out", str(tmp_path), "--parts", "parity"])
    rows = json.loads((tmp_path / "accelerator.json").read_text())["parts"]["parity"]
    assert all("vit_linear.npz is missing; copy tests/fixtures" in row["error"] for row in rows.values()) and len(rows) == 2


def test_both_depthwise_forms_are_timed(tmp_path, monkeypatch):
    of_choices = accelerator.PARTS["choices"]
    monkeypatch.setattr(
        accelerator, "PARTS", {"choices": lambda *args: (row for row in of_choices(*args) if row.name.startswith("depthwise"))}
    )
    accelerator.main(["--tiny", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "accelerator.json").read_text())["parts"]["choices"]
    assert len(rows) == 2 and all(row["milliseconds"] > 0 and len(row["seconds"]) == 4 for row in rows.values())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("cpu", None),
    ],
)
def test_a_device_kind_names_its_chip(kind, name):
    assert chips.of_kind(kind) is chips.CHIPS.get(name)


def test_a_device_is_idle_between_its_operations():
    names = [(1, None, "process_name", "/device:GPU:0"), (2, None, "process_name", "/host:CPU")]
    names += [(1, 7, "thread_name", "XLA Modules"), (1, 8, "thread_name", "Stream #1"), (1, 9, "thread_name", "Stream #2")]
    events = [{"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}} for pid, tid, kind, name in names]
    spans = [(1, 7, 0, 100), (2, 1, 0, 100), (1, 8, 10, 20), (1, 8, 20, 20), (1, 9, 70, 20)]
    events += [{"ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": time} for pid, tid, start, time in spans]
    assert idle.idle_shares({"traceEvents": events}) == {"/device:GPU:0": pytest.approx(1 - 50 / 80)}


def test_the_accelerator_script_needs_few_packages():
    """An accelerator machine may have neither data nor the packages that read it."""
    absent = [
        "orbax",
        "orbax.checkpoint",
        "grain",
        "tensorflow",
        "tensorflow_datasets",
        "PIL",
        "safetensors",
        "filelock",
        "tqdm",
    ]
    absent += ["etils.epath", "torch", "timm", "sklearn", "sentencepiece", "tokenizers", "tensorboardX"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import benchmarks.accelerator"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
