"""Count the memory and the collectives of a language model's step with FSDP, from shapes. Nothing is run or timed.

    python -m benchmarks.fsdp --backbone=llama1_7b --batch=144 --devices=8

The step is compiled for virtual CPU devices that form one group, as `config.fsdp` does, and the compiled program is read. A
collective in a loop over layers is listed once.
"""

import argparse
import collections
import functools
import re

import jax
import jax.numpy as jnp

from toast_jax import trees
from toast_jax.config.run_fields import language
from toast_jax.devices import fsdp
from toast_jax.model import families, methods, steered
from toast_jax.train import setup, text_runs
from toast_jax.train.step import init_state, train_step

_COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="llama1_7b")
    parser.add_argument("--method", default="toast")
    parser.add_argument("--stage", default="tune", choices=("tune", "pretune"))
    parser.add_argument("--batch", type=int, default=144, help="sequences over all devices")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--devices", type=int, default=8)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    program = compiled(args.backbone, args.method, args.batch, args.length, args.devices, args.stage)
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None and text is not None  # some platforms have neither; CPUs have both
    print(f"{args.stage} {args.backbone}, {args.method}: {args.batch} sequences of {args.length} tokens")
    print(f"on each of {args.devices} devices:")
    for name, size in (("arguments", memory.argument_size_in_bytes), ("temporaries", memory.temp_size_in_bytes)):
        print(f"{name} {size / 2**30:.1f} GiB")
    print("| collective | shape | number |\n|---|---|---|")
    for (kind, dtype, shape), count in sorted(collectives(text).items()):
        print(f"| {kind} | {dtype}{list(shape)} | {count} |")


def compiled(backbone: str, method: str, batch: int, length: int, size: int, stage: str = "tune") -> jax.stages.Compiled:
    """Compile a train step in bfloat16 with AdamW, for one or more groups of `size` devices."""
    config = language(name="benchmark", method=method, backbone=backbone, stage=stage)
    config.backbone.update({"dtype": "bfloat16", "remat": True})
    model, row = steered.build(config, 0)
    shapes = jax.eval_shape(lambda: steered.init(model, row, jax.random.key(0)))
    mask = methods.tuned_mask(shapes, row)
    tuned, frozen = trees.split(shapes, mask)
    frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.backbone.dtype), frozen)
    network = setup.Network(model, row, mask, tuned, frozen, loaded=frozenset())
    tx = setup.optimizer(config, lambda _: 1e-5, mask)
    zeros = functools.partial(jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype))
    state = jax.eval_shape(lambda: init_state(zeros(tuned), tx, seed=0))
    groups = jax.device_count() // size
    integers, floats = (jax.ShapeDtypeStruct((groups, batch // groups, length), dtype) for dtype in (jnp.int32, jnp.float32))
    examples = {"tokens": integers, "segments": integers, "label": integers, "weight": floats}
    examples["mask"] = jax.ShapeDtypeStruct((groups, batch // groups), jnp.float32)
    step = functools.partial(train_step, scores=setup.scores_of(config, network), tx=tx, augment=text_runs.by_token)
    devices = fsdp.Shared(size, families.of_config(config).partition)
    mapped = devices.replicate(step, num_replicated=2, donate=(0,))
    return mapped.lower(*map(devices.placed_shapes, (state, frozen)), devices.split_shapes(examples)).compile()


def collectives(program: str) -> collections.Counter[tuple[str, str, tuple[int, ...]]]:
    """Count the collectives of an optimized program that return arrays of `(kind, dtype, shape on a device)`."""
    counts: collections.Counter[tuple[str, str, tuple[int, ...]]] = collections.Counter()
    for types, kind in re.findall(rf"= (.*?) ({_COLLECTIVES})(?:-start)?\(", program):
        for dtype, sizes in set(re.findall(r"(\w+)\[([\d,]*)\]", types)):
            counts[kind, dtype, tuple(int(size) for size in sizes.split(",") if size)] += 1
    return counts


if __name__ == "__main__":
    main()
