"""Times a train and an evaluation step of the PyTorch release and of ours, side by side: same weights, batch and threads.

    python -m benchmarks.against_release --release=TOAST/visual_classification --methods toast toast_lite linear --rounds=5

Needs a checkout of the release and what it imports (torch, timm 0.6, loralib, simplejson, termcolor, iopath). Both sides
compute in float32 with as many threads and flush denormal numbers. Logits are compared first; then the sides take turns, one
step each a round, and the table has medians. Peak memory is that of a process that makes a few steps of one side alone.
"""

import argparse
import functools
import importlib
import importlib.abc
import importlib.machinery
import os
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.steps import CLASSES, DECAY, MOMENTUM, RATE, timed
from toast_jax import known, losses, model, parallel, rename, trees, workdir
from toast_jax.backbones import vit
from toast_jax.evaluation import eval_step
from toast_jax.train import init_state

TRANSFER_TYPES = {"toast": "toast", "toast_lite": "toast-lite", "linear": "linear", "lora": "lora", "finetune": "end2end"}
SIZES = {"vit_b16": "base", "vit_l16": "large"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", type=Path, required=True, help="folder visual_classification of a checkout")
    parser.add_argument("--backbone", default="vit_b16", choices=SIZES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=["toast", "toast_lite", "linear"], choices=TRANSFER_TYPES)
    parser.add_argument("--out", type=Path, help="JSON file with every time")
    parser.add_argument("--alone", choices=("release", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(_peak_memory(args))
        return
    rows = {name: _compared(args, name) for name in args.methods}
    rates = _product_rates(args)
    print(f"\n{args.backbone}, batch {args.batch}, float32, {os.cpu_count()} threads, medians of {args.rounds} rounds")
    print("| method | | release, s | ours, s | times as fast |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        for what, (theirs, ours) in row["medians"].items():
            print(f"| {name} | {what} | {theirs:.3f} | {ours:.3f} | {theirs / ours:.2f} |")
        theirs, ours = row["memory"]
        print(f"| {name} | peak memory, MB | {theirs >> 20} | {ours >> 20} | {ours / theirs:.2f} of it |")
    print(f"A product of an MLP: {rates[0]:.0f} GFLOP/s by PyTorch, {rates[1]:.0f} by XLA.")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        versions = {name: importlib.import_module(name).__version__ for name in ("torch", "timm")}
        facts = {"release": "", "out": str(args.out), **versions, **workdir.circumstances()}
        workdir.write_json(args.out, {**vars(args), **facts, "rows": rows, "product_gflops_per_second": rates})


def _compared(args, method: str) -> dict:
    ours, images, labels = _Ours(args, method), *_batch(args.batch)
    theirs = _Release(args, method, ours.state_dict())
    difference = np.abs(theirs.logits(images) - ours.logits(images)).max() / np.abs(ours.logits(images)).max()
    print(f"{method}: logits differ by {difference:.1e}", flush=True)
    assert difference < 1e-4
    sides = {"train step": (theirs.train, ours.train), "evaluation": (theirs.evaluate, ours.evaluate)}
    if ours.known:
        sides["train step, fixed views"] = (theirs.train, ours.train_fixed)
    seconds = {what: ([], []) for what in sides}
    for i in range(args.rounds + 1):
        for what, both in sides.items():
            for place, step in enumerate(both):
                started = time.perf_counter()
                step(images, labels)
                if i:  # the first round is a warm-up
                    seconds[what][place].append(time.perf_counter() - started)
    medians = {what: tuple(map(statistics.median, both)) for what, both in seconds.items()}
    return {
        "medians": medians,
        "seconds": seconds,
        "logits_differ_by": float(difference),
        "memory": [_memory_alone(method, side) for side in ("release", "ours")],
    }


def _product_rates(args) -> tuple[float, float]:
    """What both sides make of the largest product of a block, which bounds their steps: medians, GFLOP/s."""
    import torch

    rng, width = np.random.default_rng(0), vit.SIZES[SIZES[args.backbone][0].upper()].width
    x, kernel = (rng.normal(size=size).astype(np.float32) for size in ((197 * args.batch, width), (width, 4 * width)))
    x_torch, kernel_torch, x_jax, kernel_jax = (
        torch.from_numpy(x),
        torch.from_numpy(kernel.T.copy()),
        *map(jnp.asarray, (x, kernel)),
    )
    product = jax.jit(jnp.matmul)
    sides = (
        lambda: torch.nn.functional.linear(x_torch, kernel_torch),
        lambda: product(x_jax, kernel_jax).block_until_ready(),
    )
    seconds = ([], [])
    for i in range(21):
        for place, side in enumerate(sides):
            started = time.perf_counter()
            side()
            if i:
                seconds[place].append(time.perf_counter() - started)
    return tuple(2e-9 * x.size * kernel.shape[1] / statistics.median(one) for one in seconds)


def _memory_alone(method: str, side: str) -> int:
    command = [sys.executable, "-m", "benchmarks.against_release", *sys.argv[1:], "--methods", method, "--alone", side]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(output.splitlines()[-1])


def _peak_memory(args) -> int:
    """Bytes that a process takes that makes some steps of one side."""
    (method,), (images, labels) = args.methods, _batch(args.batch)
    side = _Ours(args, method) if args.alone == "ours" else _Release(args, method, None)
    for _ in range(3):
        side.train(images, labels)
    # Of this process alone: what getrusage tells can be the parent's.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


def _batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(size, 224, 224, 3)).astype(np.float32), rng.integers(0, CLASSES, size).astype(np.int32)


class _Ours:
    def __init__(self, args, method: str):
        network, row, mask, tx, step = timed(method, args.backbone)
        tuned, frozen = trees.split(jax.jit(lambda: model.init(network, row, jax.random.key(0)))(), mask)
        self.frozen, self.state = parallel.place(frozen), parallel.place(init_state(tuned, tx, seed=0))
        self.step = parallel.replicate(step, num_replicated=2, donate=(0,))
        self.eval_step = parallel.replicate(functools.partial(eval_step, scores=losses.tune(network, row)), num_replicated=2)
        self.apply = jax.jit(functools.partial(model.apply, network, row))
        find = known.known_of(network, row)
        self.known = find and jax.jit(find)

    def state_dict(self) -> dict:
        state = rename.to_torch({path: np.array(leaf) for path, leaf in trees.flat(self._params()).items()})
        return {name if name.startswith("head.") else f"enc.{name}": array for name, array in state.items()}

    def logits(self, images):
        return np.asarray(self.apply(self._params(), images))

    def _params(self):
        return trees.merge(self.state.tuned, self.frozen)

    def train(self, images, labels):
        self._train({"image": images, "label": labels})

    def train_fixed(self, images, labels):
        """With what is known of the images kept, as it is where views are fixed; drop-path is off in the first look then."""
        if not hasattr(self, "kept"):
            self.kept = jax.tree.map(np.asarray, self.known(self.frozen, {"image": images}, None))
        batch = {"image": images, "label": labels, "known": self.kept}
        self._train({name: value for name, value in batch.items() if name != "image" or "pooled" not in self.kept})

    def _train(self, batch):
        self.state, metrics = self.step(self.state, self.frozen, parallel.shard(batch))
        jax.block_until_ready((self.state, metrics))

    def evaluate(self, images, labels):
        batch = {"image": images, "label": labels, "mask": np.ones(len(labels), np.float32)}
        jax.block_until_ready(self.eval_step(self.state.tuned, self.frozen, parallel.shard(batch)))


class _Release:
    """The release's network, loss and optimizer, as its trainer puts them together."""

    def __init__(self, args, method: str, state: dict | None):
        import torch

        _stand_in_for_torchvision()
        sys.path.insert(0, str(args.release))
        networks = importlib.import_module("src.models.vit_models")
        torch.set_num_threads(os.cpu_count())
        torch.set_flush_denormal(True)
        spaces = types.SimpleNamespace
        of_model = spaces(TRANSFER_TYPE=TRANSFER_TYPES[method], SIZE=SIZES[args.backbone], MLP_NUM=0)
        config = spaces(MODEL=of_model, DATA=spaces(NUMBER_CLASSES=CLASSES), RETURN_VISUALIZATION=False)
        top_down = method.startswith("toast")
        network = networks.Topdown_ViTClass if top_down else networks.Bottomup_ViTClass
        self.torch, self.network = torch, network(config, load_pretrain=False)
        if state is not None:
            missing = self.network.load_state_dict({name: torch.tensor(array) for name, array in state.items()}, strict=False)
            # Its own classifier, and what is of ImageNet.
            left = [name for name in missing.missing_keys if not name.startswith(("enc.head.", "enc.fc_norm"))]
            assert not left and not missing.unexpected_keys, (left, missing.unexpected_keys)
        groups = [
            {"params": [p], "weight_decay": 0.0 if name == "head.last_layer.bias" else DECAY}
            for name, p in self.network.named_parameters()
            if p.requires_grad
        ]
        self.optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)

    def logits(self, images):
        self.network.eval()
        with self.torch.no_grad():
            return self.network(self._tensor(images))[0].numpy()

    def train(self, images, labels):
        self.network.train()
        logits, _ = self.network(self._tensor(images))
        loss = self.torch.nn.functional.cross_entropy(logits, self.torch.from_numpy(labels).long())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def evaluate(self, images, labels):
        return self.logits(images)

    def _tensor(self, images):
        return self.torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _stand_in_for_torchvision() -> None:
    """The release and timm import it, but the networks here use nothing of it; where there is no build of it, this will do."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        sys.meta_path.append(_Torchvision())


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds empty modules, of which every name is an empty class."""

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def exec_module(self, module):
        def empty(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return _Empty(name, (), {})

        module.__getattr__ = empty


class _Empty(type):
    """Of classes that have every attribute: its name."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


if __name__ == "__main__":
    main()
