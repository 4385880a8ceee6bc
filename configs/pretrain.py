"""Train the demo's backbone to classify the brightest digit of a scene.

    python main.py --config=configs/pretrain.py --workdir=runs/pretrain
    python main.py --config=configs/convert.py:from=runs/pretrain,to=assets/vit_mini16.safetensors

The second command writes the file in assets/, whose README reports its accuracy.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.paper_recipes import scenes
from toast_jax.config.run_fields import base


def get_config(text: str | None = None):
    """Return the config; there are no config arguments."""
    arguments(text)
    config = base(name="pretrain_vit_mini16", method="finetune", backbone="vit_mini16")
    scenes(config, task="salient", train=20_000, val=1_000, test=2_000)
    config.backbone.weights = "random"
    config.backbone.drop_path = 0.0
    config.batch_size = 128
    config.epochs, config.warmup_epochs = 8, 1
    config.eval_every = 2
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "step"
    config.optimizer.lr = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.no_decay = (".*/bias", ".*/scale", ".*(cls_token|pos_embed)")
    config.optimizer.clip = 1.0
    return config
