"""Backbones of timm with random weights, timed on request; imports no JAX. A process of `benchmarks.beside_timm`."""

import json
import sys
import time

import numpy as np
import timm
import torch


def main() -> None:
    networks = {}
    for line in sys.stdin:
        command, *facts = json.loads(line)
        if command == "build":
            architecture, arguments, folder, batch, side = facts
            torch.manual_seed(0)
            network = timm.create_model(architecture, num_classes=0, **arguments).eval()
            timm.models.save_for_hf(network, folder, safe_serialization=True)
            images = np.random.default_rng(0).standard_normal((batch, 3, side, side), np.float32)
            networks = {"network": network, "images": torch.from_numpy(images)}
            answer = {"torch": torch.__version__, "timm": timm.__version__, "threads": torch.get_num_threads()}
        else:
            started = time.perf_counter()
            with torch.inference_mode():
                pooled = networks["network"](networks["images"])
            answer = time.perf_counter() - started
            if command == "outputs":
                answer = pooled.tolist()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
