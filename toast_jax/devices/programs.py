"""Compiled programs of this process: compiled before their first call, dropped after their last one.

XLA's compilers allocate hundreds of megabytes, which the C library keeps for this process when they are freed. The functions
here give them back to the system.
"""

import ctypes
import sys

import jax

from toast_jax.devices.protocol import Mapped


def compile_ahead(step: Mapped, *args) -> None:
    """Compile a step for arguments, or for their shapes; its first call with such arguments does not compile again.

    What the compiler leaves is then not in memory beside the arrays of that call.
    """
    step.lower(*args).compile()
    free_memory()


def drop_all() -> None:
    """Drop all compiled programs of this process, so that they do not add up over many runs.

    `jax.pmap` keeps every program that it has compiled (jax 0.10 to 0.12). On a CPU a run leaves hundreds of memory mappings
    behind; when a process has 65,530 of them, which is Linux's default limit, XLA crashes.
    """
    jax.clear_caches()
    free_memory()


def free_memory() -> None:
    """Give memory that is freed, but kept by the C library, back to the system, where the library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
