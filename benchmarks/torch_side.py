"""The same train and evaluation step in PyTorch, on the device that PyTorch finds; imports no JAX.

A process of `benchmarks.accelerator`: it reads one JSON argument and prints one JSON line.
"""

import importlib
import json
import statistics
import sys
import time

import numpy as np
import torch

from benchmarks.recipe import CLASSES, DECAY, MOMENTUM, RATE

TIMM = {"vit_mini16": "vit_tiny_patch16_224", "vit_b16": "vit_base_patch16_224", "vit_l16": "vit_large_patch16_224"}


def main() -> None:
    facts = json.loads(sys.argv[1])
    print(json.dumps(measured(**facts)), flush=True)


def measured(
    *, kind: str, method: str, backbone: str, batch: int, image_size: int, window: int, rounds: int, folder: str, release: str
) -> dict:
    """Time steps of one network under autocast to bfloat16, compiled by `torch.compile` except for the release.

    Args:
      kind: "timm", "peft" (LoRA on timm's network) or "release".
      method: of this package.
      folder: for the release, of weights.npz; its logits are written there.
      release: folder visual_classification of a checkout.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # for the logits, in float32
    network = _NETWORKS[kind](method, backbone, image_size, device, folder, release)
    network.train()
    tuned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(tuned, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(size=(batch, 3, image_size, image_size)).astype(np.float32)).to(device)
    labels = torch.from_numpy(rng.integers(0, CLASSES, batch)).long().to(device)
    # The release is timed as published; compiling it takes minutes.
    compiled = network if kind == "release" else torch.compile(network)

    def logits():
        with torch.autocast(device, dtype=torch.bfloat16):
            out = compiled(images)
        return out[0] if isinstance(out, tuple) else out

    def train():
        loss = torch.nn.functional.cross_entropy(logits().float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def evaluate():
        logits()

    row: dict[str, object] = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__}
    for name, step, training in (("train", train, True), ("evaluation", evaluate, False)):
        network.train(training)
        started = time.perf_counter()
        step()
        _wait(device)
        compile_seconds = time.perf_counter() - started
        seconds = [_window(step, window, device) for _ in range(rounds + 1)][1:]
        row |= {f"{name}": batch / statistics.median(seconds), f"{name}_seconds": seconds, f"{name}_compile": compile_seconds}
        if name == "train" and device == "cuda":
            row["memory_bytes"] = torch.cuda.max_memory_allocated()
    return row


def _window(step, count, device):
    started = time.perf_counter()
    for _ in range(count):
        step()
    _wait(device)
    return (time.perf_counter() - started) / count


def _wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def _timm(method, backbone, image_size, device, folder, release):
    timm = importlib.import_module("timm")
    network = timm.create_model(TIMM[backbone], num_classes=CLASSES, img_size=image_size).to(device)
    if method != "finetune":
        network.requires_grad_(False)
        network.head.requires_grad_(True)
    return network


def _peft(method, backbone, image_size, device, folder, release):
    peft = importlib.import_module("peft")
    network = _timm("linear", backbone, image_size, device, folder, release)
    config = peft.LoraConfig(r=4, lora_alpha=1, target_modules=["qkv"], modules_to_save=["head"])
    return peft.get_peft_model(network, config)


def _release(method, backbone, image_size, device, folder, release):
    # Its constructor loads the weights and writes the logits of eight images.
    release_side = importlib.import_module("benchmarks.release_side")
    side = release_side.Release(method=method, steered_blocks=0, backbone=backbone, batch=8, folder=folder, release=release)
    return side.network.to(device)


_NETWORKS = {"timm": _timm, "peft": _peft, "release": _release}


if __name__ == "__main__":
    main()
