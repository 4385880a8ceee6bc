"""The language demo: tune a small story model to answer, in six ways.

    python main.py --config=configs/demo_language.py --workdir=runs/demo_language

It needs stories15M, a LLaMA of llama2.c, in weights/stories15m or in the folder of --config.weights; without it, the error says
where to get it. Each method is tuned on the same synthetic tales, for the same number of steps. The top-down module of TOAST is
pre-tuned on tales without questions. Recipes were chosen on validation questions (docs/language.md).
"""

from ml_collections import ConfigDict

from toast_jax.config.arguments import arguments
from toast_jax.config.run_fields import language
from toast_jax.config.task_fields import config_of

TOP_DOWN = "pretune/top_down.safetensors"  # in the folder of the demo, like the tales

# Method, learning rate and top-down module of each row, and whether its layers A_l are tuned.
ROWS: dict[str, tuple[str, float, str, bool]] = {
    "finetune": ("finetune", 3e-4, "", False),
    "lora": ("lora", 1e-2, "", False),
    "toast": ("toast", 3e-3, TOP_DOWN, True),
    "toast_frozen_back": ("toast", 3e-3, TOP_DOWN, False),
    "toast_not_pretuned": ("toast", 3e-3, "", True),
    "toast_lite": ("toast_lite", 3e-2, TOP_DOWN, False),
}


def get_config(text: str | None = None):
    """Return the config; there are no config arguments."""
    arguments(text)
    return config_of(
        "demo_language",
        speaker=config_of("generate", network=ConfigDict(), most=12, temperature=0.0, batch_size=50),
        pretune=pretune(),
        not_tuned=run("finetune", 0.0),
        rows=tuple(ROWS),
        runs={row: run(*settings) for row, settings in ROWS.items()},
    )


def pretune() -> ConfigDict:
    """Return the run that pre-tunes the top-down module."""
    config = _short(language(name="demo_language_pretune", method="toast", backbone="stories15m", stage="pretune"))
    config.data.splits.train = "tales/text.jsonl"
    config.optimizer.lr = 3e-3
    return config


def run(method: str, lr: float, top_down: str = "", tune_back: bool = False) -> ConfigDict:
    """Return the run of a row, except for its seed."""
    config = _short(language(name=f"demo_language_{method}", method=method, backbone="stories15m"))
    config.data.format = "prompts"
    config.data.splits.update({"train": "tales/train.jsonl", "test": "tales/test.jsonl"})
    config.top_down, config.tune_back = top_down, tune_back
    config.optimizer.lr = lr
    return config


def _short(config: ConfigDict) -> ConfigDict:
    config.data.length = 40
    config.data.end = "begin"
    config.batch_size = 8
    config.epochs, config.warmup_epochs = 1, 0.05
    config.log_every = 5
    return config
