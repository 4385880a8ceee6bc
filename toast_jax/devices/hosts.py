"""Multi-host runs: joining the hosts, and stopping soon after one is lost."""

import contextlib
import re
from collections.abc import Iterator

import jax

from toast_jax.errors import InputError

SILENCE = 40  # seconds without a heartbeat before JAX declares a process dead and stops the others

# What JAX reports when another process is lost: its own service, gloo (CPUs), NCCL (GPUs) and the runtime of TPU slices. Other
# errors of devices are raised as they are, such as NCCL's about a library or memory.
_LOST = (
    r"UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|(?i:gloo|connection|peer|heartbeat|coordination)|"
    r"remote process exited|network error|unhandled system error|ncclRemoteError|ncclSystemError|SLICE_FAILURE"
)


class Lost(InputError):
    """Another process of the run is lost, and all processes must be restarted."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other hosts of the run for the duration of the block.

    Raises:
      InputError: no other hosts are found or reached.
      Lost: another host is lost during the block.
    """
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=SILENCE)
    except ValueError as error:
        raise InputError(
            f"--distributed finds no other hosts ({_first_line(error)}); it knows TPU pod slices, Slurm, Open MPI and "
            "Kubernetes; leave it out on a single host."
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"The other hosts cannot be reached ({_first_line(error)}); start the same command on each."
        ) from error
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # ValueError comes from `pmap` on CPUs
        if not re.search(_LOST, str(error)):
            raise
        raise Lost(
            f"Another process of this run is gone, or cannot be reached ({_first_line(error)}): see what it has said, and give "
            "the same command again on every host, which goes on from the last checkpoint."
        ) from error


def _first_line(error):
    return str(error).splitlines()[0][:200].rstrip(".")
