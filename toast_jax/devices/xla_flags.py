"""Flags of XLA that are set unless the user has set them. Imports no JAX, which reads them at its first computation."""

import importlib.metadata
import importlib.util
import os
import re

_YNN = "--xla_cpu_experimental_ynn_fusion_type"


def disable_ynnpack() -> None:
    """Switch off XLA's fusions with YNNPACK on CPUs, in `XLA_FLAGS`; without effect once JAX has computed something.

    They slow the steps and have known wrong results (jax issue 39103). An unknown flag would end the process, so it is set only
    between the first and the last jaxlib that was tried, and not for an accelerator's plugin.
    """
    jaxlib = tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("jaxlib"))[:3])
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if on_cpu and (0, 10, 2) <= jaxlib <= (0, 12, 0) and _YNN not in xla_flags:
        os.environ["XLA_FLAGS"] = f"{xla_flags} {_YNN}=".strip()
