"""Pre-tune the top-down module of a language model on plain text.

    python main.py --config=configs/openwebtext.py:backbone=llama1_7b --workdir=runs/pretune_llama1_7b \\
        --config.data.splits.train=data/openwebtext.jsonl

The release's recipe: the first 200,000 documents of OpenWebText, packed to 512 tokens, one epoch; the loss is the cross-entropy
of the second look plus the variational loss, and feedback layers and prior learn. Lines are `{"text": ...}`; a .txt file is one
document. `--config.backbone.weights` is the folder of a LLaMA of Hugging Face, by default weights/BACKBONE, and
`--config.data.tokenizer` the same. The run leaves `top_down.safetensors` in its folder, for `--config.top_down=FILE` of a run
that tunes. The perplexity of a network as it is, on a text:

    python main.py --config=configs/openwebtext.py:backbone=stories15m --config.method=finetune --config.stage=tune \\
        --config.task=evaluate --config.checkpoint=weights/stories15m/model.safetensors \\
        --config.data.splits.train=text.txt --config.data.splits.val=text.txt --config.data.length=256

A model that does not fit on a device in float32 may do with --config.backbone.dtype=bfloat16 and
--config.backbone.remat=True.
"""

from configs import common


def get_config(text: str | None = None):
    """The config of one backbone; `text` is what follows the colon of `--config`."""
    given = common.arguments(text, backbone="llama1_7b")
    name = f"pretune_openwebtext_{given['backbone']}"
    config = common.language(name=name, method="toast", backbone=given["backbone"], stage="pretune")
    config.data.splits.train = "data/openwebtext.jsonl"
    config.data.documents = 200_000
    config.optimizer.lr = 3e-5
    config.epochs, config.warmup_epochs = 1, 0.03
    return config
