"""Write TensorBoard's event files: records of serialized `Event` messages, with only the fields of scalars.

A record is the length of its data, a checksum of the length, the data, and a checksum of the data. In TensorFlow's source,
`core/lib/io/record_writer.h` defines records, and `core/util/event.proto` and `core/framework/summary.proto` define messages.
"""

import socket
import struct
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types of protobuf


def create(folder: Path, first_step: int) -> BinaryIO:
    """Create and open an event file; TensorBoard then drops steps from `first_step` on of older files."""
    folder.mkdir(exist_ok=True)
    file = (folder / f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}").open("xb")
    file.write(_record(_event(0, _field(3, _BYTES, b"brain.Event:2"))))
    file.write(_record(_event(first_step, _field(7, _BYTES, _field(1, _VARINT, 1)))))  # a session log: START
    return file


def scalars(step: int, numbers: dict[str, float]) -> bytes:
    """Return the record that holds the numbers of a step; a number too large for float32 becomes infinite."""
    with np.errstate(over="ignore"):
        values = [
            _field(1, _BYTES, name.encode()) + _field(2, _FLOAT, np.array(value, "<f4").tobytes())
            for name, value in numbers.items()
        ]
    return _record(_event(step, _field(5, _BYTES, b"".join(_field(1, _BYTES, value) for value in values))))


def _event(step, content):
    return _field(1, _DOUBLE, struct.pack("<d", time.time())) + _field(2, _VARINT, step) + content


def _field(number, wire_type, value):
    """Return a field of a protobuf message; `value` is an integer for a varint, else bytes."""
    key = _varint(number << 3 | wire_type)
    if wire_type == _VARINT:
        return key + _varint(value)
    return key + (_varint(len(value)) if wire_type == _BYTES else b"") + value


def _varint(value):
    """Encode an integer with seven bits per byte, lowest first; the eighth bit marks that more bytes follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def _record(data):
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data):
    """Compute the CRC-32C with the mask of the format."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Compute the CRC-32C (Castagnoli; RFC 3720, section 12.1)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _remainder(byte):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # the polynomial, its bits reversed
    return byte


_TABLE = [_remainder(byte) for byte in range(256)]
