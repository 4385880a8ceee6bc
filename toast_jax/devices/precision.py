"""The precision of float32 matrix products, which is lower than float32 on GPUs and TPUs unless a run asks for more."""

import contextlib

import jax
from ml_collections import ConfigDict


def of_products(config: ConfigDict) -> contextlib.AbstractContextManager:
    """Trace and run the block at `config.precision`; the caller's precision is restored after it.

    A config of a version without the field has "default": full float32 on CPUs, TF32 on GPUs, one bfloat16 pass on TPUs.
    """
    precision = config.get("precision", "default")
    return jax.default_matmul_precision(None if precision == "default" else precision)
