"""Run as a script: one of several processes that train a tiny language model, with FSDP or from a large text.

Its arguments are `FOLDER PORT HOSTS STAGE METHOD FSDP NUMBER`; with `large` for FSDP, the text of the folder counts as large.
"""

import sys
from pathlib import Path

import jax

from configs import alpaca, openwebtext
from tests.train import test_text_runs
from toast_jax.data.text import token_cache, token_parts, tokenizer
from toast_jax.model.backbones.llama import network as llama
from toast_jax.train import loop


def main(folder, port, hosts, stage, method, size, number):
    if hosts != "1":
        jax.distributed.initialize(f"127.0.0.1:{port}", int(hosts), int(number))
    words = test_text_runs.Words()
    tokenizer.load = lambda path: words
    llama.SIZES["stories260k"] = test_text_runs.SIZE
    config = test_text_runs.of(openwebtext if stage == "pretune" and size == "large" else alpaca, Path(folder), method=method)
    config.stage = stage
    if size == "large":
        token_cache.MIN_BYTES, token_parts.PART = 1, 2048
        config.data.workers, config.data.tokenizer = 2, folder
        config.data.splits.train = f"{folder}/train.jsonl"
        config.data.format = {"pretune": "text", "tune": "prompts"}[stage]
    else:
        config.data.format, config.data.held_out, config.fsdp = "prompts", 0.2, int(size)
    loop.fit(config, Path(folder) / hosts)


if __name__ == "__main__":
    main(*sys.argv[1:])
