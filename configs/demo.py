"""The demo: seven ways to tune a small network, compared in three minutes.

    python main.py --config=configs/demo.py --workdir=runs/demo

The network in assets/ classifies the brightest digit of a scene. Each method tunes it to classify the green digit, on the same
scenes, for the same number of steps, with three seeds. Learning rates were chosen on the val split (seed 42) from three values
half a power of ten apart.
"""

from ml_collections import ConfigDict

from toast_jax.config import paper_recipes
from toast_jax.config.arguments import arguments
from toast_jax.config.run_fields import base
from toast_jax.config.task_fields import config_of

TOP_DOWN = "assets/vit_mini16_top_down.safetensors"

# Method, learning rate and top-down module of each row.
ROWS = {
    "linear": ("linear", 1e-1, ""),
    "finetune": ("finetune", 1e-3, ""),
    "vpt": ("vpt", 1e-1, ""),
    "lora": ("lora", 3e-2, ""),
    "toast_not_pretuned": ("toast", 1e-2, ""),
    "toast": ("toast", 1e-2, TOP_DOWN),
    "toast_lite": ("toast_lite", 3e-2, TOP_DOWN),
}


def get_config(text: str | None = None):
    """Return the config; there are no config arguments."""
    arguments(text)
    return config_of("demo", rows=tuple(ROWS), runs={row: run(*settings) for row, settings in ROWS.items()})


def run(method: str, lr: float, top_down: str) -> ConfigDict:
    """Return the run of a row, except for its seed."""
    config = base(name=f"demo_{method}", method=method, backbone="vit_mini16")
    paper_recipes.scenes(config, task="target", train=1_500, val=200, test=500)
    config.backbone.weights = "assets/vit_mini16.safetensors"
    config.backbone.drop_path = 0.0
    config.top_down = top_down
    config.head.start = "classifier"  # the classes are the same digits
    config.prompts.num = 8
    config.batch_size = 16
    config.epochs, config.warmup_epochs = 4, 0
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "step"
    config.optimizer.lr = lr
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip = 1.0
    config.eval_every = config.checkpoint_every = config.epochs
    return config
