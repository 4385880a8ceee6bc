"""The small backbone of the demo: it names the brightest digit of a scene.

    python main.py --config=configs/pretrain.py --workdir=runs/pretrain
    python main.py --config=configs/convert.py:from=runs/pretrain,to=assets/vit_mini16.safetensors

The second command makes the file that is shipped in assets/, whose README says how well it does.
"""

from configs import common


def get_config(text: str | None = None):
    """`text` is what follows the colon of `--config`; there is nothing to choose."""
    common.arguments(text)
    config = common.base(name="pretrain_vit_mini16", method="finetune", backbone="vit_mini16")
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


def scenes(config, *, task: str, train: int, val: int, test: int) -> None:
    """Makes scenes the data of a config, for one of their tasks (see toast_jax/data/images/scenes.py)."""
    config.data.format, config.data.name = "scenes", task
    config.data.splits.update({"train": f"train[:{train}]", "val": f"val[:{val}]", "test": f"test[:{test}]"})
    config.data.resize = config.data.image_size = 48
    config.data.verify = False
    config.augment.flip = False
