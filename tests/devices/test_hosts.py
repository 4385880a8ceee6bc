"""Which errors of devices mean that another host is lost."""

import jax
import pytest

from toast_jax.devices import hosts

NCCL = "INTERNAL: external/xla/xla/service/gpu/nccl_utils.cc:216: NCCL operation"


def joined(monkeypatch, message):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: None)
    with hosts.joined():
        raise jax.errors.JaxRuntimeError(message)


@pytest.mark.parametrize(
    "message",
    [
        f"{NCCL} async_err failed: remote process exited or there was a network error",
        f"{NCCL} ncclCommInitRank(&comm, nranks, id, rank) failed: unhandled system error (run with NCCL_DEBUG=INFO)",
        "INTERNAL: Detected failure SLICE_FAILURE_CHIP_DRIVER_ERROR in session 1; Start failure handling",
        "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)",
    ],
)
def test_another_host_is_lost(message, monkeypatch):
    with pytest.raises(hosts.Lost, match="Another process of this run is gone, or cannot be reached"):
        joined(monkeypatch, message)


@pytest.mark.parametrize(
    "message",
    [
        f"{NCCL} ncclGetUniqueId(&id) failed: Unable to load NCCL library. Multi-GPU collectives will not work.",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1024 bytes.",
        "INTERNAL: Core halted unexpectedly",
    ],
)
def test_other_errors_are_raised_as_they_are(message, monkeypatch):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message.split("(")[0]):
        joined(monkeypatch, message)
