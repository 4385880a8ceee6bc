"""Variants of layers that the package has chosen one of, to time on an accelerator.

Each variant is a stack of plain ViT blocks, or one depthwise convolution, built here: the package keeps the chosen form alone.
Letters in shapes: B batch, N tokens, D width, H heads, K = D / H, L blocks.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from toast_jax.model.backbones.convnext import depthwise
from toast_jax.model.layers.gelu import gelu


@dataclasses.dataclass(frozen=True)
class Stack:
    """One variant of a stack of blocks; the defaults are the reference of the table.

    Attributes:
      heads_first: whether heads come before tokens in the products of attention; of `attention="einsum"` alone.
      attention: "einsum", or an implementation of `jax.nn.dot_product_attention`: "xla", or "cudnn" on NVIDIA GPUs.
      fused_qkv: whether queries, keys and values are one product.
      gelu: "erf" (the package's) or "erfc" (of `jax.nn.gelu`).
      unroll: blocks per iteration of the scan.
      merged: whether the compiler may merge what the backward pass recomputes with the forward pass, where both are in sight.
      saved: what the backward pass saves: "products", "everything" (no rematerialization) or "inputs" of blocks.
    """

    heads_first: bool = True
    attention: str = "einsum"
    fused_qkv: bool = False
    gelu: str = "erf"
    unroll: int = 1
    merged: bool = True
    saved: str = "products"


STACKS = {
    "reference": Stack(),
    "tokens before heads": Stack(heads_first=False),
    "attention by XLA's function": Stack(attention="xla"),
    "attention by cuDNN": Stack(attention="cudnn"),
    "q, k, v in one product": Stack(fused_qkv=True),
    "scan unrolled by 2": Stack(unroll=2),
    "scan unrolled by 12": Stack(unroll=12),
    "scan unrolled by 12, recomputing": Stack(unroll=12, merged=False),
    "no rematerialization": Stack(saved="everything"),
    "save inputs of blocks alone": Stack(saved="inputs"),
    "GELU by erfc": Stack(gelu="erfc"),
}
DEPTHWISE = {"convolution": depthwise.convolution, "sum of shifts": depthwise.sum_of_shifts}
_GELU = {"erf": gelu, "erfc": lambda x: jax.nn.gelu(x, approximate=False)}
_POLICY = {"products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "inputs": None}


def parameters(width: int, depth: int, dtype: DTypeLike) -> dict:
    """Draw the kernels of a stack, each `[L, in, out]`."""
    shapes = {"qkv": (width, 3 * width), "proj": (width, width), "fc1": (width, 4 * width), "fc2": (4 * width, width)}
    return {name: 0.02 * drawn((depth, *shape), dtype) for name, shape in shapes.items()}


def drawn(shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Draw normal numbers on the host, which compiles nothing."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32), dtype)


def gradient(stack: Stack, num_heads: int) -> Callable:
    """Return `(kernels, x [B, N, D]) -> gradients` of both, through a stack of blocks."""

    def block(x, kernels):
        y = x + _attention(stack, num_heads, _norm(x), kernels)
        return y + _GELU[stack.gelu](_norm(y) @ kernels["fc1"]) @ kernels["fc2"], None

    if stack.saved != "everything":
        block = jax.checkpoint(block, policy=_POLICY[stack.saved], prevent_cse=not stack.merged)

    def total(kernels, x):
        return jax.lax.scan(block, x, kernels, unroll=stack.unroll)[0].astype(jnp.float32).sum()

    return jax.grad(total, argnums=(0, 1))


def gradient_of_depthwise(convolve: Callable) -> Callable:
    """Return `(kernel [K, K, 1, D], x [B, h, w, D]) -> gradients` of both."""
    return jax.grad(lambda kernel, x: (convolve(x, kernel).astype(jnp.float32) ** 2).sum(), argnums=(0, 1))


def _norm(x):
    wide = x.astype(jnp.float32)
    centered = wide - wide.mean(axis=-1, keepdims=True)
    return (centered * jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


def _attention(stack, num_heads, x, kernels):
    kernel, shape = kernels["qkv"], (*x.shape[:2], num_heads, -1)
    qkv = jnp.split(x @ kernel, 3, axis=-1) if stack.fused_qkv else [x @ part for part in jnp.split(kernel, 3, axis=-1)]
    q, k, v = (array.reshape(shape) for array in qkv)
    if stack.attention != "einsum":
        return jax.nn.dot_product_attention(q, k, v, implementation=stack.attention).reshape(x.shape) @ kernels["proj"]
    heads = "bhnk" if stack.heads_first else "bnhk"
    if stack.heads_first:
        q, k, v = (array.swapaxes(1, 2) for array in (q, k, v))
    other = heads.replace("n", "m")
    logits = jnp.einsum(f"{other},{heads}->bhmn", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5).astype(x.dtype)
    mixed = jnp.einsum(f"bhmn,{heads}->{other}", weights, v)
    return (mixed.swapaxes(1, 2) if stack.heads_first else mixed).reshape(x.shape) @ kernels["proj"]
