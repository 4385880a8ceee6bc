"""Tune a language model to follow instructions, such as Alpaca's.

    python main.py --config=configs/alpaca.py:method=toast,backbone=llama1_7b --workdir=runs/alpaca_toast \\
        --config.data.splits.train=data/alpaca_data.json --config.top_down=runs/pretune_llama1_7b/top_down.safetensors

The release's recipe: 3 epochs of 144 sequences a step, 512 tokens each, AdamW with a rate of 2e-5. The loss is on the answers
alone. Records are `{"instruction", "input", "output"}`, in a .json list or one a line of a .jsonl; with
--config.data.format=prompts they are `{"prompt", "response"}`, taken as they are. method: finetune, lora, toast, toast_lite.
--config.data.held_out=0.02 keeps two in a hundred to tell the perplexity on.
"""

from configs import common


def get_config(text: str | None = None):
    """The config of one method; `text` is what follows the colon of `--config`."""
    given = common.arguments(text, method="toast", backbone="llama1_7b")
    config = common.language(name=f"alpaca_{given['method']}_{given['backbone']}", **given)
    config.data.format = "instructions"
    config.data.splits.train = "data/alpaca_data.json"
    return config
