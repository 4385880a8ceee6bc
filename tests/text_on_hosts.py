"""Run as a script, `FOLDER PORT HOSTS NUMBER`: one of several processes that tune a tiny language model with FSDP."""

import sys
from pathlib import Path

import jax

from configs import alpaca
from tests.train import test_text
from toast_jax.data.text import tokenizer
from toast_jax.model.backbones import llama
from toast_jax.train import loop


def main(folder, port, hosts, number):
    if hosts != "1":
        jax.distributed.initialize(f"127.0.0.1:{port}", int(hosts), int(number))
    words = test_text.Words()
    tokenizer.load = lambda path: words
    llama.SIZES["stories260k"] = test_text.SIZE
    config = test_text.of(alpaca, Path(folder), method="toast")
    config.data.format, config.data.held_out, config.fsdp = "prompts", 0.2, 2
    loop.fit(config, Path(folder) / hosts)


if __name__ == "__main__":
    main(*sys.argv[1:])
