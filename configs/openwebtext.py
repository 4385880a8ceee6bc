"""Pre-tune the top-down module of a language model on plain text.

    python main.py --config=configs/openwebtext.py:backbone=llama1_7b --workdir=runs/pretune_llama1_7b \\
        --config.data.splits.train=data/openwebtext.jsonl

The release's recipe: the first 200,000 documents of OpenWebText, packed to 512 tokens, for one epoch. The loss is the
cross-entropy of the second look plus the variational loss; the feedback layers and the prior are tuned. Lines are
`{"text": ...}`; a .txt file is one document. A file of any size is tokenized once, by several processes, and cached
(docs/language.md). `--config.backbone.weights` and `--config.data.tokenizer` are the folder of a LLaMA of Hugging Face, by
default weights/BACKBONE. The run writes `top_down.safetensors` to its folder, for `--config.top_down=FILE` of a tuning run, and
the same as `module.safetensors`. method: toast, toast_lite, lora or finetune; all but toast write only the latter, for
`--config.module=FILE`. To measure the perplexity of a network that was not tuned:

    python main.py --config=configs/openwebtext.py:backbone=stories15m --config.method=finetune --config.stage=tune \\
        --config.task=evaluate --config.checkpoint=weights/stories15m/model.safetensors \\
        --config.data.splits.train=text.txt --config.data.splits.val=text.txt --config.data.length=256

A model that does not fit on a device in float32 may fit with --config.backbone.dtype=bfloat16 and
--config.backbone.remat=True.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.run_fields import language


def get_config(text: str | None = None):
    """Return the config of one backbone and method; `text` is the config arguments."""
    defaults = {"backbone": "llama1_7b", "method": "toast"}
    values = arguments(text, **defaults)
    name = "_".join(["pretune_openwebtext", values["backbone"], *{values["method"]} - {defaults["method"]}])
    config = language(name=name, **values, stage="pretune")
    config.data.splits.train = "data/openwebtext.jsonl"
    config.data.documents = 200_000
    config.optimizer.lr = 3e-5
    config.epochs, config.warmup_epochs = 1, 0.03
    return config
