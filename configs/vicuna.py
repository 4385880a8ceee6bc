"""Tune a language model on conversations: ShareGPT's, the paper's Vicuna.

    python main.py --config=configs/vicuna.py:method=toast,backbone=llama1_7b --workdir=runs/vicuna_toast \\
        --config.data.splits.train=data/sharegpt.json --config.top_down=runs/pretune_llama1_7b/top_down.safetensors

The release's recipe: 2 epochs of 96 conversations a step, 1024 tokens each, AdamW with a rate of 2e-5, two in a hundred
conversations held out. The loss is on the assistant's turns alone. Records are
`{"conversations": [{"from": "human" or "gpt", "value"}, ...]}` in a .json list. method: finetune, lora, toast, toast_lite.
"""

from configs import common


def get_config(text: str | None = None):
    """The config of one method; `text` is what follows the colon of `--config`."""
    given = common.arguments(text, method="toast", backbone="llama1_7b")
    config = common.language(name=f"vicuna_{given['method']}_{given['backbone']}", **given)
    config.data.format = "conversations"
    config.data.splits.train = "data/sharegpt.json"
    config.data.length, config.data.held_out = 1024, 0.02
    config.batch_size = 96
    config.epochs, config.warmup_epochs = 2, 0.06
    return config
