"""Time the train and the evaluation step of every method.

    python -m benchmarks.steps --backbone=vit_ti16 --batch=32 --rounds=10 --out=benchmarks/results/steps_vit_ti16.json
    python -m benchmarks.steps --backbone=vit_ti16 --batch=8 --methods linear toast --heads linear upernet

With `--heads`, each method also segments images of the same size, and the last column is the share of the train step that is
not in that of classification: the head, the loss of every pixel, and all tokens of the last block.
Weights are random and inputs are noise (images, or sequences of 256 tokens); neither changes the time. All methods are compiled
first, without a compilation cache. Then they take turns, one window of `--window` consecutive steps per round, so that a slow
minute of the machine hits all of them; the table has medians. The host waits for the device at the end of a window only.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import machine, products
from benchmarks.recipe import CLASSES, DECAY, MOMENTUM, RATE
from configs import fgvc, segment
from toast_jax import trees
from toast_jax.config.run_fields import language
from toast_jax.devices import parallel
from toast_jax.devices.protocol import Mapped
from toast_jax.model import losses, methods, steered
from toast_jax.model.backbones.llama import network as llama
from toast_jax.model.backbones.vit import network as vit
from toast_jax.model.segmentation import losses as pixel_losses
from toast_jax.model.segmentation import segmenter
from toast_jax.tables import costs
from toast_jax.train import optim
from toast_jax.train.augment import by_token
from toast_jax.train.evaluation import eval_step
from toast_jax.train.step import init_state, train_step

TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_ti16", help="any backbone, such as convnext_t or stories15m")
    parser.add_argument("--batch", type=int, default=32, help="images or sequences per step, over all devices")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--window", type=int, default=1, help="consecutive steps per round; 10 or more on an accelerator")
    parser.add_argument("--methods", nargs="*", help="all methods of the backbone by default")
    parser.add_argument(
        "--heads", nargs="*", default=[], choices=segmenter.HEADS, help="also time segmentation with these heads"
    )
    parser.add_argument("--out", type=Path, help="JSON file with every time")
    args = parser.parse_args()
    if args.batch % jax.device_count():
        parser.error(f"--batch is {args.batch}, which does not split over {jax.device_count()} devices")

    batch, unit = (texts(args.backbone, args.batch), "tokens") if _reads_text(args.backbone) else (images(args.batch), "images")
    cases = {name: Case(name, args.backbone, batch) for name in args.methods or _methods(args.backbone)}
    batches = dict.fromkeys(cases, batch)
    for name, head in itertools.product(list(cases) if args.heads else (), args.heads):
        batches[f"{name}, {head} head"] = masked = masks(batch)
        cases[f"{name}, {head} head"] = Case(name, args.backbone, masked, head=head)
    for _ in range(args.rounds):
        for name, case in cases.items():
            case.time_train(batches[name], args.window)
            case.time_evaluation(batches[name], args.window)
    rows = {name: case.row(batch["label"].size) for name, case in cases.items()}
    for name in rows.keys() - (args.methods or _methods(args.backbone)):
        rows[name]["share_of_head"] = 1 - rows[name]["train"] / rows[name.partition(",")[0]]["train"]
    print(f"\n{args.backbone}, batch {args.batch}, medians of {args.rounds} rounds")
    print(
        f"| method | tuned | train {unit}/s | evaluation {unit}/s | compiled in, s | memory, MB | GFLOP | over minimum | head |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        least = _minimum(name, args.backbone) if "share_of_head" not in row else None
        head = f"{row['share_of_head']:.1%}" if "share_of_head" in row else "-"
        over = f"{row['flops'] / args.batch / least - 1:.1%}" if least else "-"
        print(
            f"| {name} | {row['tuned']:,} | {row['train']:.1f} | {row['evaluation']:.1f} | {row['compile_seconds']:.1f} "
            f"| {row['temporary_bytes'] / 2**20:.0f} | {row['flops'] / 1e9:,.0f} | {over} | {head} |"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        machine.write_json(args.out, {**vars(args), "out": str(args.out), "rows": rows, **machine.facts()})
        print(json.dumps(machine.facts()))


class Case:
    """One method: its compiled steps, state and times, and the FLOPs of a train step on one device.

    Args:
      name, backbone, fields: see `timed`.
      batch: of `images`, `masks` or `texts`.
    """

    def __init__(self, name: str, backbone: str, batch: dict, **fields):
        size = {"image_size": batch["image"].shape[-2]} if "image" in batch else {}
        network, method, mask, tx, step = timed(name, backbone, **size, **fields)
        scores = step.keywords["scores"]
        tuned, frozen = trees.split(jax.jit(lambda: steered.init(network, method, jax.random.key(0)))(), mask)
        frozen = jax.tree.map(lambda leaf: leaf.astype(network.backbone.dtype), frozen)  # as when a run loads them
        self.tuned = trees.count(tuned)
        self.frozen, self.state = parallel.place(frozen), parallel.place(init_state(tuned, tx, seed=0))
        mapped = parallel.replicate(step, num_replicated=2, donate=(0,))
        self.flops = costs.traced(mapped, self.state, self.frozen, batch)
        self.train, self.compile_seconds, memory = compiled(mapped, self.state, self.frozen, batch)
        self.temporary, self.memory = memory.temp_size_in_bytes, planned_bytes(memory)
        evaluation = parallel.replicate(functools.partial(eval_step, scores=scores), num_replicated=2)
        self.evaluation, *_ = compiled(evaluation, self.state.tuned, self.frozen, batch)
        self.train_seconds: list[float] = []
        self.evaluation_seconds: list[float] = []
        print(f"compiled {name} in {self.compile_seconds:.1f} s", flush=True)

    def dispatch(self, batch: dict) -> dict:
        """Start a train step and return its metrics without waiting for it."""
        self.state, metrics = self.train(self.state, self.frozen, batch)
        return metrics

    def time_train(self, batch: dict, window: int = 1) -> None:
        """Time `window` consecutive train steps, in seconds per step."""
        started = time.perf_counter()
        for _ in range(window):
            metrics = self.dispatch(batch)
        jax.block_until_ready((self.state, metrics))
        self.train_seconds.append((time.perf_counter() - started) / window)

    def time_in_a_row(self, batch: dict, count: int) -> None:
        """Time `count` train steps one by one, after an uncounted one that warms the caches."""
        for _ in range(count + 1):
            self.time_train(batch)
        del self.train_seconds[-count - 1]

    def time_evaluation(self, batch: dict, window: int = 1) -> None:
        """Time `window` consecutive evaluation steps, in seconds per step."""
        started = time.perf_counter()
        jax.block_until_ready([self.evaluation(self.state.tuned, self.frozen, batch) for _ in range(window)])
        self.evaluation_seconds.append((time.perf_counter() - started) / window)

    def row(self, count: int) -> dict:
        """Summarize the times, for tables and files; `count` is the number of images or tokens in a step."""
        return {
            "tuned": self.tuned,
            "train": count / statistics.median(self.train_seconds),
            "evaluation": count / statistics.median(self.evaluation_seconds),
            "compile_seconds": self.compile_seconds,
            "temporary_bytes": self.temporary,
            "memory_bytes": self.memory,
            "flops": self.flops * jax.device_count(),
            "train_seconds": self.train_seconds,
            "evaluation_seconds": self.evaluation_seconds,
        }


def timed(
    name: str, backbone: str, image_size: int = 224, dtype: str = "float32", head: str = "", **fields
) -> tuple[steered.Steered, methods.Method, dict, optax.GradientTransformation, functools.partial]:
    """Build what all benchmarks time: network, method, mask of tuned parameters, optimizer and train step.

    Args:
      name: of a method.
      backbone: as `config.base` or `config.language` name it.
      image_size: side of the images in pixels; unused for text.
      dtype: of `config.backbone`.
      head: of `config.segmentation`; "" to classify images.
      fields: other fields of the config, such as `steered_blocks` or `backbone.unroll`.
    """
    no_decay, build = ("head/bias",), steered.build
    tune: Callable = losses.tune
    augment: Callable = lambda batch, rng: batch  # noqa: E731
    if _reads_text(backbone):
        config = language(name="timed", method=name, backbone=backbone)
        augment, no_decay = by_token, ()
    elif head:
        config = segment.get_config(f"method={name},backbone={backbone},head={head}")
        config.data.image_size, no_decay, build = image_size, (), segmenter.build
        tune = functools.partial(pixel_losses.tune, auxiliary_weight=config.segmentation.auxiliary_weight)
    else:
        config = fgvc.get_config(f"method={name},backbone={backbone}")
        config.data.image_size = image_size
    config.backbone.dtype = dtype
    config.update_from_flattened_dict(fields)
    network, method = build(config, CLASSES)
    mask = methods.tuned_mask(jax.eval_shape(lambda: steered.init(network, method, jax.random.key(0))), method)
    tx = optimizer(mask, no_decay)
    return network, method, mask, tx, functools.partial(train_step, scores=tune(network, method), tx=tx, augment=augment)


def optimizer(mask: dict, no_decay: tuple[str, ...], rate: float = RATE, decay: float = DECAY) -> optax.GradientTransformation:
    """Build the SGD of all timed steps."""
    return optim.optimizer(
        name="sgd", schedule=lambda _: rate, mask=mask, momentum=MOMENTUM, weight_decay=decay, no_decay=no_decay, clip=0.0
    )


def compiled(step: Mapped, *args) -> tuple[jax.stages.Compiled, float, Any]:
    """Compile a step; return it, the seconds this took and the compiler's plan of its memory."""
    started = time.perf_counter()
    program = step.lower(*args).compile()
    return program, time.perf_counter() - started, program.memory_analysis()


def planned_bytes(memory) -> int:
    """Sum the bytes that a program needs on a device, its arguments included."""
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return needed - memory.alias_size_in_bytes


def _reads_text(backbone):
    return not backbone.startswith(("vit", "convnext"))


def _methods(backbone):
    if _reads_text(backbone):
        return list(methods.LANGUAGE_METHODS)
    return [name for name in methods.METHODS if name != "vpt" or backbone.startswith("vit")]


def _minimum(method, backbone):
    if not backbone.startswith("vit"):
        return None
    config = fgvc.get_config(f"method={method},backbone={backbone}")
    size, patch = vit.SIZES[config.backbone.size], config.backbone.patch
    tokens = (config.data.image_size // patch) ** 2 + 1
    return products.minimum(method, width=size.width, depth=size.depth, tokens=tokens, classes=CLASSES, patch=patch)


def images(size: int, image_size: int = 224) -> dict:
    """Place a batch of noise images on the devices."""
    rng = np.random.default_rng(0)
    return parallel.shard(
        {
            "image": rng.integers(0, 256, (size, image_size, image_size, 3), dtype=np.uint8),
            "label": rng.integers(0, CLASSES, size).astype(np.int32),
            "mask": np.ones(size, np.float32),
        }
    )


def masks(batch: dict) -> dict:
    """Give the images of a batch noise masks in place of their labels."""
    shape = batch["image"].shape[:-1]  # with an axis of devices
    return {
        **batch,
        "label": jax.device_put(np.random.default_rng(1).integers(0, CLASSES, shape, np.uint8), batch["image"].sharding),
    }


def texts(backbone: str, size: int, length: int = TOKENS) -> dict:
    """Place a batch of noise sequences on the devices; every token is a target."""
    config = language(name="timed", method="toast", backbone=backbone)
    rng, vocabulary = np.random.default_rng(0), llama.SIZES[config.backbone.size].vocabulary
    tokens = rng.integers(0, vocabulary, (size, length + 1)).astype(np.int32)
    ones = np.ones((size, length), np.float32)
    batch = {"tokens": tokens[:, :-1], "label": tokens[:, 1:], "segments": ones.astype(np.int32), "weight": ones}
    return parallel.shard({**batch, "mask": np.ones(size, np.float32)})


if __name__ == "__main__":
    main()
