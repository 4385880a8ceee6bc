"""The demo: eight ways to tune a small network on few scenes.

    python main.py --config=configs/demo.py --workdir=runs/demo

The network in assets/ names the digit of a scene, and its color, among scrambled ones. Each method tunes it to name the green
one of four digits, on the same 128 scenes, for the same number of steps, with three seeds. TOAST and LoRA start from what they
learned when they named the brightest of four digits, and are also shown without. Learning rates, and the factor of the prior's,
were chosen on val; docs/demo.md lists what was tried.
"""

from ml_collections import ConfigDict

from toast_jax.config import paper_recipes
from toast_jax.config.arguments import arguments
from toast_jax.config.run_fields import base
from toast_jax.config.task_fields import config_of

TOP_DOWN, LORA = "assets/vit_nano8_top_down.safetensors", "assets/vit_nano8_lora.safetensors"

# Method, learning rate, factor of the prior's, and pre-tuned module of each row.
ROWS = {
    "linear": ("linear", 1e-2, 1, ""),
    "finetune": ("finetune", 3e-4, 1, ""),
    "vpt": ("vpt", 1e-2, 1, ""),
    "lora_not_pretuned": ("lora", 3e-3, 1, ""),
    "lora": ("lora", 1e-2, 1, LORA),
    "toast_not_pretuned": ("toast", 3e-3, 10, ""),
    "toast": ("toast", 3e-3, 10, TOP_DOWN),
    "toast_lite": ("toast_lite", 1e-2, 10, TOP_DOWN),
}


def get_config(text: str | None = None):
    """Return the config; there are no config arguments."""
    arguments(text)
    return config_of("demo", rows=tuple(ROWS), runs={row: run(*settings) for row, settings in ROWS.items()})


def run(method: str, lr: float, prior: float, module: str) -> ConfigDict:
    """Return the run of a row, except for its seed."""
    config = base(name=f"demo_{method}", method=method, backbone="vit_nano8")
    paper_recipes.scenes(config, task="green", train=128, val=600, test=1_000)
    config.backbone.weights = "assets/vit_nano8.safetensors"
    config.backbone.drop_path = 0.0
    config.module = module
    config.head.start = "classifier"  # the classes are the same, a color and a digit
    config.prompts.num = 8
    config.batch_size = 16
    config.epochs, config.warmup_epochs = 25, 2
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "step"
    config.optimizer.lr = lr
    if prior != 1:
        config.optimizer.lr_scale, config.optimizer.lr_scaled = float(prior), ("top_down/prior",)
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip = 1.0
    config.eval_every = config.checkpoint_every = config.epochs
    return config
