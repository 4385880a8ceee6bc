"""The demo of segmentation: mark the green digit of a scene, in five ways.

    python main.py --config=configs/demo_segment.py --workdir=runs/demo_segment

The scenes, the network in assets/ and its pre-tuned modules are those of configs/demo.py; the mask of a scene is the cell of
the green one of its four digits. Each method tunes the network on the same 128 scenes, for the same number of steps, with
three seeds. Learning rates were chosen on val; docs/segmentation.md lists what was tried.
"""

from ml_collections import ConfigDict

from toast_jax.config import paper_recipes
from toast_jax.config.arguments import arguments
from toast_jax.config.run_fields import masks
from toast_jax.config.task_fields import config_of

TOP_DOWN, LORA = "assets/vit_nano8_top_down.safetensors", "assets/vit_nano8_lora.safetensors"

# Method, learning rate, factor of the head's and the prior's, and pre-tuned module of each row.
ROWS = {
    "linear": ("linear", 1.0, 1, ""),
    "finetune": ("finetune", 1e-3, 10, ""),
    "lora": ("lora", 3e-2, 3, LORA),
    "toast": ("toast", 3e-3, 10, TOP_DOWN),
    "toast_lite": ("toast_lite", 1e-2, 10, TOP_DOWN),
}


def get_config(text: str | None = None):
    """Return the config; there are no config arguments."""
    arguments(text)
    return config_of("demo_segment", rows=tuple(ROWS), runs={row: run(*settings) for row, settings in ROWS.items()})


def run(method: str, lr: float, factor: float, module: str) -> ConfigDict:
    """Return the run of a row, except for its seed."""
    config = masks(name=f"demo_segment_{method}", method=method, backbone="vit_nano8")
    paper_recipes.masked_scenes(config, train=128, val=100, test=300)
    config.segmentation.head = "linear"
    config.backbone.weights = "assets/vit_nano8.safetensors"
    config.backbone.drop_path = 0.0
    config.module = module
    config.batch_size = 16
    config.steps, config.warmup_steps = 120, 16
    config.optimizer.lr, config.optimizer.schedule = lr, "step"
    config.optimizer.lr_scale, config.optimizer.lr_scaled = float(factor), ("head/.*|top_down/prior",)
    config.optimizer.clip = 1.0
    config.eval_every = config.checkpoint_every = config.steps
    config.log_every = 10
    return config
