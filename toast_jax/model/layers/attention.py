"""Softmax attention, computed by the kernel that suits the platform a program is compiled for.

Letters in shapes: B batch, M queries, N keys, H query heads, G key-value heads (H is a multiple), K channels of a head.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Float32

from toast_jax.model.layers.arrays import Array


@jax.custom_vjp
def attend(
    q: Float[Array, "B M H K"], k: Float[Array, "B N G K"], v: Float[Array, "B N G K"], mask: Bool[Array, "B M N"] | None = None
) -> Float[Array, "B M H K"]:
    """Compute `softmax(q k^T / sqrt(K)) v` for every head, without returning the weights.

    On NVIDIA GPUs with cuDNN the weights `[B, H, M, N]` are never in memory (see `fits_cudnn`). For the backward pass only the
    arguments are saved. Gradients are of reverse mode only.

    Args:
      q, k, v: queries, keys and values.
      mask: True where a query attends to a key; None: everywhere.
    """
    return _by_platform(lambda compute, *args: compute(*args), _cudnn, q, k, v, mask)


def attend_with_weights(
    q: Float[Array, "B M H K"], k: Float[Array, "B N H K"], v: Float[Array, "B N H K"]
) -> tuple[Float[Array, "B M H K"], Float32[Array, "B H M N"]]:
    """Compute `attend` without a mask, and the softmax weights."""
    # Heads before tokens: on CPUs the other order makes both products several times slower.
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    logits = jnp.einsum("bhmk,bhnk->bhmn", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5)
    mixed = jnp.einsum("bhmn,bhnk->bhmk", weights.astype(v.dtype), v)
    return mixed.transpose(0, 2, 1, 3), weights


def fits_cudnn(queries: int, keys: int, channels: int, dtype: DTypeLike, masked: bool) -> bool:
    """Check that cuDNN's flash attention takes these sizes, in the backward pass too, on any GPU since Ampere.

    It requires 16-bit floats, at most 128 channels per head in multiples of 8, and even lengths with a mask. A single query is
    excluded because its weights are small.
    """
    is_half = dtype in (jnp.bfloat16, jnp.float16)
    has_even_lengths = queries % 2 == keys % 2 == 0
    return is_half and channels % 8 == 0 and channels <= 128 and queries > 1 and (has_even_lengths or not masked)


def _has_cudnn() -> bool:
    """Whether this process has GPUs with cuDNN's flash attention.

    Without one JAX cannot trace it; with one, JAX cannot export a program for CUDA and another platform at once.
    """
    gpu = jax.local_devices()[0]
    return "cuda" in gpu.client.platform_version and float(gpu.compute_capability) >= 8.0


def _by_platform(run, cudnn, q, k, v, mask, *more):
    """Call `run(compute, q, k, v, [mask], *more)` with the implementation for the platform of the lowering."""
    args = (q, k, v, *([] if mask is None else [mask]), *more)
    cpu = _heads_first if mask is None and q.shape[2] == k.shape[2] else _xla
    branches: dict[str, Callable] = {"cpu": functools.partial(run, cpu)}
    if fits_cudnn(q.shape[1], k.shape[1], q.shape[-1], q.dtype, mask is not None) and _has_cudnn():
        branches["cuda"] = _folded(functools.partial(run, cudnn))
    if cpu is _xla and len(branches) == 1:
        return run(_xla, *args)
    return jax.lax.platform_dependent(*args, default=functools.partial(run, _xla), **branches)


def _heads_first(q, k, v):
    return attend_with_weights(q, k, v)[0]


def _xla(q, k, v, mask=None):
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")


def _cudnn(q, k, v, mask=None, **lengths):
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn", **lengths)


def _differentiable_cudnn(q, k, v, mask=None):
    # JAX refuses odd lengths in the backward pass, such as the 197 tokens of a ViT; the added tokens are masked by length.
    queries, keys = q.shape[1], k.shape[1]
    if queries % 2 == keys % 2 == 0:
        return _cudnn(q, k, v, mask)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    of_queries, of_keys = (jnp.full(len(q), count, jnp.int32) for count in (queries, keys))
    return _cudnn(q, k, v, query_seq_lengths=of_queries, key_value_seq_lengths=of_keys)[:, :queries]


def _folded(compute: Callable) -> Callable:
    """Make `vmap` fold its axis into the batch, as cuDNN's own rule fails where some arguments are not mapped."""
    folded = jax.custom_batching.custom_vmap(compute)

    @folded.def_vmap
    def rule(size, mapped, *args):
        args = [x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)) for x, is_mapped in zip(args, mapped, strict=True)]
        out = folded(*(x.reshape(-1, *x.shape[2:]) for x in args))
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda _: True, out)

    return folded


def _forward(q, k, v, mask=None):
    return attend(q, k, v, mask), (q, k, v, mask)


def _backward(saved, gradient):
    def run(compute, q, k, v, *rest):
        *mask, gradient = rest
        return jax.vjp(lambda q, k, v: compute(q, k, v, *mask), q, k, v)[1](gradient)

    return *_by_platform(run, _differentiable_cudnn, *saved, gradient), None


attend.defvjp(_forward, _backward)
