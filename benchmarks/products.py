"""Count the floating-point operations of matrix products in a step.

XLA's cost analysis counts the body of a loop once. `toast_jax.tables.costs.traced` counts in the jaxpr, on any platform.
`flops` and `listed` read the program that was optimized for CPUs, after the compiler has removed and merged operations; on GPUs
products become calls of libraries and on TPUs convolutions, so neither can be read there.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def flops(program: str) -> int:
    """Count the operations of all matrix products, two per multiply-add.

    Args:
      program: `compiled.as_text()`.

    Raises:
      ValueError: a loop with a matrix product has no known trip count.
    """
    return sum(product.flops * times for product, times in listed(program).items())


class Product(NamedTuple):
    """A kind of matrix product.

    Attributes:
      flops: operations of one product.
      numbers: elements of its two operands and its result.
      batched: whether it has batch dimensions, as in attention.
    """

    flops: int
    numbers: tuple[int, int, int]
    batched: bool


def listed(program: str) -> Counter[Product]:
    """Count the executions of each kind of matrix product; arguments and errors as in `flops`."""
    computations: dict[str, list[tuple[str, str, str, str]]] = {}
    entry = ""
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[1], [])
            entry = match[1] if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(line.strip()):
            name, kind, operation, rest = match.groups()
            current.append((name, kind, operation, rest))
    counted: dict[str, Counter[Product]] = {}

    def count(name):
        if name not in counted:
            shapes = {instruction: _shape(kind) for instruction, kind, _, _ in computations[name]}
            counted[name] = Counter()
            for parts in computations[name]:
                counted[name].update(called(*parts) if parts[2] != "dot" else [_product(*parts, shapes)])
        return counted[name]

    def called(instruction, kind, operation, rest):
        inside: Counter[Product] = sum((count(name) for name in _CALLED.findall(rest) if name in computations), Counter())
        if operation != "while" or not inside:
            return inside
        if not (trips := _TRIPS.search(rest)):
            raise ValueError(f"the loop {instruction} has matrix products and no known trip count")
        return Counter({product: times * int(trips[1]) for product, times in inside.items()})

    return count(entry)


def _shape(kind):
    match = re.match(r"\w+\[([\d,]*)\]", kind)
    return [int(size) for size in match[1].split(",") if size] if match else []


def _product(instruction, kind, operation, rest, shapes):
    left, right = (shapes[name] for name in re.findall(r"%([\w.-]+)", rest)[:2])
    (contracted,) = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    result = math.prod(_shape(kind))
    operations = 2 * result * math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
    return Product(operations, (math.prod(left), math.prod(right), result), "lhs_batch_dims" in rest)


def minimum(method: str, *, width: int, depth: int, tokens: int, classes: int, patch: int = 16) -> int | None:
    """Derive the least operations of a ViT's train step for one image; None for a method without a derivation.

    Multiply-adds of a block: 12 x tokens x width^2 (4 of attention, 8 of the MLP), and two products of tokens^2 x width. The
    last block of the classified look needs keys and values of all tokens, but the rest for the class token only. Backward, a
    block costs the same again for the gradient of its input, with twice the products of tokens^2 x width, and 12 x tokens x
    width^2 once more for the gradient of its kernels.
    """
    n, d = tokens, width
    block, attention = 12 * n * d * d, 2 * n * n * d
    last, last_attention = 2 * n * d * d + 10 * d * d, 2 * n * d
    embedding = (n - 1) * 3 * patch**2 * d
    forward = embedding + (depth - 1) * (block + attention) + last + last_attention + d * classes
    back = (depth - 1) * (block + 2 * attention) + last + 2 * last_attention + d * classes
    feedback = n * d * d  # one layer; each block has two, and the transform is one more
    if method == "linear":
        products = forward + d * classes
    elif method == "finetune":
        products = forward + back + (depth - 1) * block + last + d * classes + embedding
    elif method == "toast":
        first = depth * (block + attention)
        signal = (2 * depth + 1) * feedback
        # The first block's input is fixed and its signal enters through the values: queries and keys need no gradient.
        not_needed = 2 * n * d * d + 3 * n * n * d
        products = first + signal + forward + back - not_needed + signal + 2 * depth * feedback + d * classes
    else:
        return None
    return 2 * products
