"""Tune a language model on conversations: ShareGPT's, the paper's Vicuna.

    python main.py --config=configs/vicuna.py:method=toast,backbone=llama1_7b --workdir=runs/vicuna_toast \\
        --config.data.splits.train=data/sharegpt.json --config.top_down=runs/pretune_llama1_7b/top_down.safetensors

The release's recipe: 2 epochs, 96 conversations per step, 1024 tokens per conversation, AdamW with a learning rate of 2e-5,
2 % of the conversations held out. The loss covers the assistant's turns only. Records are
`{"conversations": [{"from": "human" or "gpt", "value"}, ...]}` in a .json list. With --config.data.format=messages they are
`{"messages": [{"role", "content"}, ...]}`, rendered by --config.data.template. method: finetune, lora, toast, toast_lite.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.run_fields import language


def get_config(text: str | None = None):
    """Return the config of one method; `text` is the config arguments."""
    values = arguments(text, method="toast", backbone="llama1_7b")
    config = language(name=f"vicuna_{values['method']}_{values['backbone']}", **values)
    config.data.format = "conversations"
    config.data.splits.train = "data/sharegpt.json"
    config.data.length, config.data.held_out = 1024, 0.02
    config.batch_size = 96
    config.epochs, config.warmup_epochs = 2, 0.06
    return config
