"""The demo of language: a story teller learns to answer, in five ways.

    python main.py --config=configs/demo_language.py --workdir=runs/demo_language

It needs stories15M, a LLaMA of llama2.c, in weights/stories15m or in the folder of --config.weights; without it, it says where
to get it. Every method learns from the same made-up tales, for as many steps. The module of TOAST is pre-tuned on tales without
questions. Learning rates are half powers of ten, few of which were tried (docs/results.md).
"""

from ml_collections import ConfigDict

from configs import common, generate

TOP_DOWN = "pretune/top_down.safetensors"  # in the demo's folder, as are the tales

# Method, learning rate and top-down module of every row.
ROWS = {
    "finetune": ("finetune", 3e-4, ""),
    "lora": ("lora", 1e-2, ""),
    "toast_not_pretuned": ("toast", 1e-2, ""),
    "toast": ("toast", 3e-3, TOP_DOWN),
    "toast_lite": ("toast_lite", 3e-2, TOP_DOWN),
}


def get_config(text: str | None = None):
    """`text` is what follows the colon of `--config`; there is nothing to choose."""
    common.arguments(text)
    speaker = generate.get_config()
    speaker.most, speaker.temperature, speaker.batch_size = 12, 0.0, 50
    return ConfigDict(
        {
            "name": "demo_language",
            "task": "demo_language",
            "weights": "weights/stories15m",  # a folder with the language model and its tokenizer
            "seeds": (42,),
            "tales": {"text": 500, "train": 320, "val": 48, "test": 100},
            "shown": 8,  # of the test split in the report
            "speaker": speaker,
            "pretune": pretune(),
            "not_tuned": run("finetune", 0.0, ""),
            "rows": tuple(ROWS),
            "runs": {row: run(*facts) for row, facts in ROWS.items()},
        }
    )


def pretune() -> ConfigDict:
    """The run that makes the top-down module."""
    config = _short(common.language(name="demo_language_pretune", method="toast", backbone="stories15m", stage="pretune"))
    config.data.splits.train = "tales/text.jsonl"
    config.optimizer.lr = 3e-3
    return config


def run(method: str, lr: float, top_down: str) -> ConfigDict:
    """A row's run, but for its seed."""
    config = _short(common.language(name=f"demo_language_{method}", method=method, backbone="stories15m"))
    config.data.format = "prompts"
    config.data.splits.update({"train": "tales/train.jsonl", "test": "tales/test.jsonl"})
    config.top_down = top_down
    config.optimizer.lr = lr
    return config


def _short(config: ConfigDict) -> ConfigDict:
    config.data.length = 40
    config.data.end = "begin"
    config.batch_size = 8
    config.epochs, config.warmup_epochs = 1, 0.05
    config.log_every = 5
    return config
