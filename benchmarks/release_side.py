"""The side of the PyTorch release in `against_release`; imports no JAX."""

import importlib
import importlib.abc
import importlib.machinery
import statistics
import sys
import time
import types

import numpy as np
import torch

from benchmarks import against_release
from benchmarks.recipe import CLASSES, DECAY, MOMENTUM, RATE

TRANSFER_TYPES = {"toast": "toast", "toast_lite": "toast-lite", "linear": "linear", "lora": "lora", "finetune": "end2end"}
SIZES = {"vit_b16": "base", "vit_l16": "large"}


class Release:
    """The release's network, loss and optimizer, assembled as in its trainer; each step returns its seconds."""

    def __init__(self, *, method: str, steered_blocks: int, backbone: str, batch: int, folder: str, release: str):
        _stand_in_for_torchvision()
        sys.path.insert(0, release)
        networks = importlib.import_module("src.models.vit_models")
        torch.set_num_threads(against_release.THREADS)
        torch.set_flush_denormal(True)
        spaces = types.SimpleNamespace
        of_model = spaces(TRANSFER_TYPE=TRANSFER_TYPES[method], SIZE=SIZES[backbone], MLP_NUM=0)
        config = spaces(MODEL=of_model, DATA=spaces(NUMBER_CLASSES=CLASSES), RETURN_VISUALIZATION=False)
        network = networks.Topdown_ViTClass if method.startswith("toast") else networks.Bottomup_ViTClass
        self.network = network(config, load_pretrain=False)
        with np.load(f"{folder}/weights.npz") as state:
            missing = self.network.load_state_dict({name: torch.from_numpy(state[name]) for name in state.files}, strict=False)
        # All but the backbone's own ImageNet classifier has to be loaded.
        unused = ("enc.head.", "enc.fc_norm", *(("enc.decoders.",) if steered_blocks else ()))
        left = [name for name in missing.missing_keys if not name.startswith(unused)]
        assert not left and not missing.unexpected_keys, (left, missing.unexpected_keys)
        groups = [
            {"params": [p], "weight_decay": 0.0 if name == "head.last_layer.bias" else DECAY}
            for name, p in self.network.named_parameters()
            if p.requires_grad
        ]
        self.optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)
        images, labels = against_release.batch(batch)
        self.operands = against_release.operands(backbone, batch)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.from_numpy(labels).long()
        np.save(f"{folder}/release.npy", self._logits().numpy())

    def _logits(self):
        self.network.eval()
        with torch.no_grad():
            return self.network(self.images)[0]

    def train(self) -> float:
        """Time a train step."""
        started = time.perf_counter()
        self.network.train()
        logits, _ = self.network(self.images)
        loss = torch.nn.functional.cross_entropy(logits, self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()
        return time.perf_counter() - started

    def evaluate(self) -> float:
        """Time an evaluation step."""
        started = time.perf_counter()
        self._logits()
        return time.perf_counter() - started

    def product_rate(self) -> float:
        """Measure the GFLOP/s of one matrix product alone, an upper bound for a step."""
        x, kernel = self.operands
        x, kernel, seconds = torch.from_numpy(x), torch.from_numpy(kernel.T.copy()), []
        for _ in range(50):
            started = time.perf_counter()
            torch.nn.functional.linear(x, kernel)
            seconds.append(time.perf_counter() - started)
        return 2e-9 * x.nelement() * len(kernel) / statistics.median(seconds)

    def peak_memory(self) -> int:
        """Read the peak memory of this process in bytes."""
        return against_release.peak_memory()

    def versions(self) -> dict:
        """Return the versions of the libraries."""
        return {name: importlib.import_module(name).__version__ for name in ("torch", "timm")}


def _stand_in_for_torchvision() -> None:
    """Install a stub if torchvision is missing: the release and timm import it, but these networks do not use it."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        sys.meta_path.append(_Torchvision())


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports empty modules of torchvision, in which every name is an empty class."""

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def exec_module(self, module):
        def empty(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return _Empty(name, (), {})

        module.__getattr__ = empty


class _Empty(type):
    """Metaclass whose classes return the name of any attribute as its value."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


if __name__ == "__main__":
    against_release.serve(Release)
