"""Several hosts that train one run: they join, and none waits long for another that is gone."""

import contextlib
import re
from collections.abc import Iterator

import jax

from toast_jax.errors import InputError

SILENCE = 40  # seconds without a sign of life, after which JAX takes a process for dead and ends the others

# How JAX tells of others that are gone; what else goes wrong on a device is an error like any other.
_LOST = r"UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|(?i:gloo|connection|peer|heartbeat|coordination)"


class Lost(InputError):
    """Another process of the run is gone; all have to be started again."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other hosts for the block.

    Raises:
      InputError: there are none to be found.
      Lost: one of them is gone while the block is at work.
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
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # of `pmap` on CPUs it is the latter
        if not re.search(_LOST, str(error)):
            raise
        raise Lost(
            f"Another process of this run is gone, or cannot be reached ({_first_line(error)}): see what it has said, and give "
            "the same command again on every host, which goes on from the last checkpoint."
        ) from error


def _first_line(error):
    return str(error).splitlines()[0][:200].rstrip(".")
