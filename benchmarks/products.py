"""Counts the multiplications and additions of matrix products in a compiled step.

XLA's own cost analysis counts the body of a loop once, so this reads the optimised program: what is computed in it, after what
the compiler has removed and merged, as many times as its loops run.
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
    """Floating-point operations of all matrix products, two for a multiplication and an addition.

    Args:
      program: `compiled.as_text()`.

    Raises:
      ValueError: a loop that has a product in it, and says not how often it runs.
    """
    return sum(product.flops * times for product, times in listed(program).items())


class Product(NamedTuple):
    """A kind of matrix product.

    Attributes:
      flops: operations of one.
      numbers: in its two operands and its result.
      batched: whether it is many products, as those of attention are.
    """

    flops: int
    numbers: tuple[int, int, int]
    batched: bool


def listed(program: str) -> Counter[Product]:
    """How often each kind of matrix product is computed; arguments and errors are those of `flops`."""
    computations, entry = {}, ""
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[1], [])
            entry = match[1] if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(line.strip()):
            current.append(match.groups())
    counted = {}

    def count(name):
        if name not in counted:
            shapes = {instruction: _shape(kind) for instruction, kind, _, _ in computations[name]}
            counted[name] = Counter()
            for one in computations[name]:
                counted[name].update(called(*one) if one[2] != "dot" else [_product(*one, shapes)])
        return counted[name]

    def called(instruction, kind, operation, rest):
        inside = sum((count(name) for name in _CALLED.findall(rest) if name in computations), Counter())
        if operation != "while" or not inside:
            return inside
        if not (trips := _TRIPS.search(rest)):
            raise ValueError(f"the loop {instruction} has products in it, and says not how often it runs")
        return Counter({product: times * int(trips[1]) for product, times in inside.items()})

    return count(entry)


def _shape(kind):
    match = re.match(r"\w+\[([\d,]*)\]", kind)
    return [int(size) for size in match[1].split(",") if size] if match else []


def _product(instruction, kind, operation, rest, shapes):
    left, right = (shapes[name] for name in re.findall(r"%([\w.-]+)", rest)[:2])
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)[1]
    result = math.prod(_shape(kind))
    made = 2 * result * math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
    return Product(made, (math.prod(left), math.prod(right), result), "lhs_batch_dims" in rest)


def minimum(method: str, *, width: int, depth: int, tokens: int, classes: int, patch: int = 16) -> int | None:
    """What a train step of a ViT cannot do without, in the same operations for one image; None for a method not worked out.

    Products are counted in units of tokens x width^2: 12 in a block (4 of attention, 8 of the MLP), beside two products of
    queries, keys and values that grow with tokens^2 x width. The last block of the look that is read needs keys and values of
    all tokens, and the rest of the class token alone. Backward, a block takes as much again for the gradient of its input, with
    twice the products of attention, and once more for that of its kernels.
    """
    n, d = tokens, width
    block, attention = 12 * n * d * d, 2 * n * n * d
    last, last_attention = 2 * n * d * d + 10 * d * d, 2 * n * d
    embedding = (n - 1) * 3 * patch**2 * d
    forward = embedding + (depth - 1) * (block + attention) + last + last_attention + d * classes
    back = (depth - 1) * (block + 2 * attention) + last + 2 * last_attention + d * classes
    feedback = n * d * d  # each of the two layers of a block, and the transform
    if method == "linear":
        products = forward + d * classes
    elif method == "finetune":
        products = forward + back + (depth - 1) * block + last + d * classes + embedding
    elif method == "toast":
        first = depth * (block + attention)
        signal = (2 * depth + 1) * feedback
        # The first block's input is fixed: its signal enters by the values, and no gradient is needed of queries and keys.
        not_needed = 2 * n * d * d + 3 * n * n * d
        products = first + signal + forward + back - not_needed + signal + 2 * depth * feedback + d * classes
    else:
        return None
    return 2 * products
