"""Peaks of known accelerators, by their vendors' sheets."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip: operations per second in dense bfloat16, and memory bytes per second."""

    flops: float
    bandwidth: float


# NVIDIA: data sheets of the A100, H100 and H200, "without sparsity". Google: cloud.google.com/tpu/docs, system architecture.
CHIPS = {
    "TPU v4": Chip(flops=275e12, bandwidth=1.2e12),
    "TPU v5e": Chip(flops=197e12, bandwidth=819e9),
    "TPU v5p": Chip(flops=459e12, bandwidth=2.765e12),
    "TPU v6e": Chip(flops=918e12, bandwidth=1.64e12),
    "A100": Chip(flops=312e12, bandwidth=2.039e12),
    "H100 SXM": Chip(flops=989e12, bandwidth=3.35e12),
    "H200": Chip(flops=989e12, bandwidth=4.8e12),
}
# The first regex found in JAX's `device_kind` names the chip. An H100 with PCIe or NVL is slower and has no row.
_KINDS = {
    "TPU v4": "TPU v4",
    "TPU v5( lite|e)": "TPU v5e",
    "TPU v5": "TPU v5p",
    "TPU v6( lite|e)": "TPU v6e",
    "A100": "A100",
    "H200": "H200",
    "H100(?!.*(PCIe|NVL))": "H100 SXM",
}


def of_kind(kind: str) -> Chip | None:
    """Return the chip that a `device_kind` of JAX names, or None."""
    return next((CHIPS[name] for regex, name in _KINDS.items() if re.search(regex, kind)), None)
