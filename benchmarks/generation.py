"""Time greedy generation by this package and by Hugging Face transformers, with the same weights, device and dtype.

    python -m benchmarks.generation --size=stories15m --weights=weights/stories15m
    python -m benchmarks.generation --size=tinyllama_1b --dtype=bfloat16 --most=16 --python=VENV/bin/python
    python -m benchmarks.generation --size=tinyllama_1b --dtype=bfloat16 --most=64 --device=cuda

Needs torch and transformers, in this interpreter or in that of `--python`. Without `--weights` the network has random numbers.
Each side is a process; they take turns while the other waits, and the table has medians. The first token includes the prompt,
which is read at once. `streamed` has a result after every token, as transformers has; `16 at once` is how files are answered.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.process import Process
from toast_jax.cli import set_environment
from toast_jax.model.backbones.llama import config_json, kinds

THREADS = len(os.sched_getaffinity(0))  # XLA uses as many
ROWS = {
    "transformers": ("torch", "streamed"),
    "streamed": ("jax", "streamed"),
    "16 at once": ("jax", "at_once"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tinyllama_1b", help="a LLaMA of this package")
    parser.add_argument("--weights", help="its folder, in the format of transformers; default: random numbers")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of both sides")
    parser.add_argument("--prompt", type=int, default=60, help="tokens to read")
    parser.add_argument("--most", type=int, default=32, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=3, help="turns per side")
    parser.add_argument("--python", default=sys.executable, help="interpreter with torch and transformers")
    parser.add_argument("--out", type=Path, help="JSON file with every time")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = args.device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other side needs memory of the same card
    set_environment()
    with tempfile.TemporaryDirectory() as folder:
        results, facts = _measured(args, args.weights or folder)
    rows = {name: _summary(turns) for name, turns in results.items()}
    weights = "random" if not args.weights else "given"
    print(f"\n{args.size} ({weights} weights), {args.dtype}, {args.device}, prompt of {args.prompt} tokens, {THREADS} threads")
    print("| | first token, ms | then tokens/s | times as fast: first token | then |\n|---|---|---|---|---|")
    for name, (first, rate) in rows.items():
        other = rows["transformers"]
        print(f"| {name} | {1e3 * first:.1f} | {rate:.2f} | {other[0] / first:.2f} | {rate / other[1]:.2f} |")
    tokens = [turns[0]["tokens"] for turns in results.values()]
    alike = next((i for i, same in enumerate(zip(*tokens, strict=True)) if len(set(same)) > 1), args.most)
    print(f"The first {alike} of {args.most} tokens are the same. Medians of {args.rounds} turns.")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        settings = vars(args) | {"out": str(args.out), "weights": weights, "python": "", "threads": THREADS}
        machine.write_json(args.out, {**settings, **facts, **machine.processor(), "same_tokens": alike, "turns": results})


def _measured(args, folder: str) -> tuple[dict[str, list], dict]:
    prompt = np.random.default_rng(0).integers(3, 500, args.prompt).tolist()
    facts = {"folder": folder, "dtype": args.dtype, "prompt": prompt, "most": args.most}
    of_torch = facts | {"sizes": _sizes(args), "threads": THREADS, "device": args.device}
    torch = Process(args.python, "generation_torch", json.dumps(of_torch))
    torch.ask("versions")  # it has then written the random weights that the other side reads
    jax = Process(sys.executable, "generation_jax", json.dumps(facts | {"size": args.size}))
    jax.ask("versions")
    sides = {"torch": torch, "jax": jax}
    results: dict[str, list] = {name: [] for name in ROWS}
    for _ in range(args.rounds):
        for name, (side, method) in ROWS.items():
            time.sleep(0.5)  # idle threads of the other side spin for a while
            results[name].append(sides[side].ask(method))
    versions, where = torch.ask("versions") | jax.ask("versions"), jax.ask("where")
    for side in sides.values():
        side.close()
    return results, {"versions": versions, "hardware": where, "xla_flags": os.environ.get("XLA_FLAGS", "")}


def _sizes(args) -> dict | None:
    """Return the `config.json` of a random network."""
    if args.weights:
        return None
    size = kinds.SIZES[args.size]
    return {"model_type": size.kind.model_type, **config_json.written(size)}


def _summary(turns: list[dict]) -> tuple[float, float]:
    """Return the medians of the seconds to the first token and of the tokens per second after it."""
    firsts, rates = zip(*((s[0], (len(s) - 1) / (s[-1] - s[0])) for s in (turn["seconds"] for turn in turns)), strict=True)
    return statistics.median(firsts), statistics.median(rates)


if __name__ == "__main__":
    main()
