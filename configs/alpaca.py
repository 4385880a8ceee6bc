"""Tune a language model to follow instructions, such as Alpaca's.

    python main.py --config=configs/alpaca.py:method=toast,backbone=llama1_7b --workdir=runs/alpaca_toast \\
        --config.data.splits.train=data/alpaca_data.json --config.top_down=runs/pretune_llama1_7b/top_down.safetensors

The release's recipe: 3 epochs, 144 sequences per step, 512 tokens per sequence, AdamW with a learning rate of 2e-5. The loss
covers the answers only. Records are `{"instruction", "input", "output"}`, in a .json list or one per line of a .jsonl file.
With --config.data.format=prompts they are `{"prompt", "response"}`, used unchanged. method: finetune, lora, toast, toast_lite.
--config.data.held_out=0.02 holds out 2 % of the records to report the perplexity on.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.run_fields import language


def get_config(text: str | None = None):
    """Return the config of one method; `text` is the config arguments."""
    values = arguments(text, method="toast", backbone="llama1_7b")
    config = language(name=f"alpaca_{values['method']}_{values['backbone']}", **values)
    config.data.format = "instructions"
    config.data.splits.train = "data/alpaca_data.json"
    return config
