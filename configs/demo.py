"""The demo: seven ways to tune a small network, compared in three minutes.

    python main.py --config=configs/demo.py --workdir=runs/demo

The network of assets/ names the brightest digit of a scene; every method tunes it to name the green one, on the same scenes,
for as many steps, with three seeds. Learning rates were chosen on the val split (seed 42), of three half powers of ten.
"""

from ml_collections import ConfigDict

from configs import common, pretrain

TOP_DOWN = "assets/vit_mini16_top_down.safetensors"

# Method, learning rate and top-down module of every row.
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
    """`text` is what follows the colon of `--config`; there is nothing to choose."""
    common.arguments(text)
    return ConfigDict(
        {
            "name": "demo",
            "task": "demo",
            "seeds": (42, 44, 82),
            "attention_scenes": 200,  # of the test split
            "shown_scenes": 6,  # of them in the report
            "rows": tuple(ROWS),
            "runs": {row: run(*facts) for row, facts in ROWS.items()},
        }
    )


def run(method: str, lr: float, top_down: str) -> ConfigDict:
    """A row's run, but for its seed."""
    config = common.base(name=f"demo_{method}", method=method, backbone="vit_mini16")
    pretrain.scenes(config, task="target", train=1_500, val=200, test=500)
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
