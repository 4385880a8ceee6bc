"""Let a language model answer a prompt, a file of them, or what you type.

    python main.py --config=configs/generate.py:run=runs/vicuna_toast
    python main.py --config=configs/generate.py:run=runs/vicuna_toast --config.prompt="How can I manage my time better?"
    python main.py --config=configs/generate.py:run=runs/vicuna_toast --config.file=questions.jsonl --workdir=answers
    python main.py --config=configs/generate.py:backbone=stories15m --config.prompt="Once upon a time"

A line of the file is {"question": "..."}, with anything beside it; answers.jsonl has the same lines with an "answer" each, for
whoever judges them. A question is put as the run was tuned: in Alpaca's words, in Vicuna's, or as it is (--config.format).
backbone: a language model as it is, of weights/BACKBONE unless --config.network.backbone.weights and
--config.network.data.tokenizer say otherwise.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(text: str | None = None):
    """The config; `text` is what follows the colon of `--config`."""
    given = common.arguments(text, run="", backbone="")
    config = ConfigDict()
    config.name = "generate"
    config.task = "generate"
    config.run = given["run"]  # --workdir of a run that tuned
    config.weights = ""  # of its backbone, if the file has moved
    config.tokenizer = ""  # likewise
    config.network = ConfigDict()  # or a backbone that was not tuned
    if given["backbone"]:
        config.network = common.language(name="generate", method="finetune", backbone=given["backbone"])
    config.prompt = ""
    config.file = ""  # .jsonl of questions
    config.format = ""  # how questions are put: text, instructions, prompts, conversations; "" as the run was tuned
    config.most = 128  # new tokens of an answer
    config.temperature = 0.7  # as in the release; 0: the likeliest token
    config.top_p = 1.0  # only the likeliest tokens that have this probability together
    config.seed = 42
    config.batch_size = 8  # questions of a file at once
    return config
