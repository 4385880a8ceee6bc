"""Metrics: what is in the files, what they cost, and that TensorBoard reads them."""

import json
import math
import os
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import ROOT
from tests.conftest import tiny_config
from toast_jax.train import image_runs, setup
from toast_jax.workdir import event_file, metrics


def checksum(data):
    """CRC-32C bit by bit, masked: remainders by the polynomial 0x1EDC6F41 of data whose bits are reversed."""
    crc = 0xFFFFFFFF
    for byte in data:
        for i in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * ((crc ^ byte >> i) & 1)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) % 2**32


def records(path):
    """The data of every record of an event file, checksums checked."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        (of_length,), (of_data,) = struct.unpack("<I", content[8:12]), struct.unpack("<I", content[12 + length : 16 + length])
        data, rest = content[12 : 12 + length], content[16 + length :]
        assert checksum(content[:8]) == of_length and checksum(data) == of_data
        yield data
        content = rest


def message(data):
    """The fields of a protobuf message: number to list of values, bytes where they may be messages."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            at += 1
            value |= (data[at - 1] & 127) << shift
            shift += 7
            if data[at - 1] < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or varint()
            value, at = data[at : at + size], at + size
        fields.setdefault(key >> 3, []).append(value)
    assert at == len(data)
    return fields


def events(folder):
    """What the event files of a run hold, in the order in which TensorBoard reads them."""
    return [message(data) for path in sorted((folder / "tensorboard").iterdir()) for data in records(path)]


def scalars(event):
    values = [message(value) for value in message(event[5][0])[1]]
    return {value[1][0].decode(): struct.unpack("<f", value[2][0])[0] for value in values}


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"123456789", 0xE3069283),
        # RFC 3720, section B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_checksum_of_known_data(data, crc):
    assert event_file.crc32c(data) == crc


def test_event_files_hold_the_numbers(tmp_path):
    with metrics.Writer(tmp_path, 0) as writer:
        writer.write(1, {"train/loss": 1.5, "train/lr": 0.1})
        writer.write(300, {"val/perplexity": 1e300, "val/" + "x" * 200: math.nan})
    first, start, *rest = events(tmp_path)
    assert first[3] == [b"brain.Event:2"]
    assert start[2] == [1] and message(start[7][0]) == {1: [1]}
    assert [event[2] for event in rest] == [[1], [300]]
    assert scalars(rest[0]) == {"train/loss": 1.5, "train/lr": np.float32(0.1)}
    large = scalars(rest[1])
    assert large["val/perplexity"] == math.inf and math.isnan(large["val/" + "x" * 200])
    assert all(1e9 < struct.unpack("<d", event[1][0])[0] < 1e10 for event in (first, start, *rest))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1] == {"step": 300, "val/perplexity": 1e300, "val/" + "x" * 200: None}


def test_a_run_that_goes_on_starts_a_new_session_after_its_checkpoint(tmp_path):
    for start in (0, 2):
        with metrics.Writer(tmp_path, start) as writer:
            for step in (start + 1, start + 2, start + 3):
                writer.write(step, {"train/loss": float(step)})
    starts = [event[2] for event in events(tmp_path) if 7 in event]
    assert starts == [[1], [3]] and len(list((tmp_path / "tensorboard").iterdir())) == 2
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_event_files_are_read_by_tensorboard(tmp_path):
    """By the message of tensorboardX, where it is installed."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    with metrics.Writer(tmp_path, 4) as writer:
        writer.write(5, {"train/loss": 1.5})
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in path.name
    version, start, numbers = (event_pb2.Event.FromString(data) for data in records(path))
    assert version.file_version == "brain.Event:2"
    assert start.step == 5 and start.session_log.status == event_pb2.SessionLog.START
    assert numbers.step == 5 and numbers.wall_time > 1e9
    (value,) = numbers.summary.value
    assert value.tag == "train/loss" and value.simple_value == 1.5


def test_what_is_written_between_two_steps_needs_neither_device_nor_disk(config, tmp_path, monkeypatch):
    """Six steps of two runs: one write a file, no wait for the disk, and nothing that a device computes."""
    run, _ = setup.prepare(config, tmp_path / "0")
    members = [run.members[0], metrics.Member(config, tmp_path / "1", run.members[0].rates)]
    (tmp_path / "1").mkdir()
    monkeypatch.setattr(os, "fsync", None)
    flushed = []
    monkeypatch.setattr(metrics.Writer, "flush", lambda writer: flushed.append(writer))
    with metrics.Record(members, 0, 3, image_runs, np.zeros(2, int)) as record, jax.transfer_guard("disallow"):
        flushed.clear()
        fetched = [(step, {"loss": np.array([1.0, 2.0]), "grad_norm": np.float32(1)}, np.arange(8)) for step in range(1, 7)]
        assert record.steps(fetched)[0] == 6
        assert len(flushed) == 2
        assert not (tmp_path / "0/metrics.jsonl").read_text()


@pytest.mark.parametrize(("schedule", "warmup"), [("epoch", 0), ("epoch", 1), ("step", 1), ("step", 0)])
def test_rates_on_the_host_are_those_of_the_optimizer(schedule, warmup, image_folder, tmp_path):
    config = tiny_config(image_folder, "linear")
    config.optimizer.schedule, config.warmup_epochs, config.epochs = schedule, warmup, 4
    rates, scheduled = setup.rates(config, 3), setup.schedule(config, 3)
    assert isinstance(rates, np.ndarray) and rates.shape == (12,)
    np.testing.assert_allclose(rates, [scheduled(step) for step in range(12)], rtol=1e-6, atol=1e-6 * config.optimizer.lr)


def test_nothing_of_pytorch_is_imported_at_start():
    code = "import sys, toast_jax.tasks.train as _; print({'torch', 'tensorflow', 'tensorboardX'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
