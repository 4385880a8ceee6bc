"""Answer a prompt, a file of prompts, or typed text with a language model.

    python main.py --config=configs/generate.py:run=runs/vicuna_toast
    python main.py --config=configs/generate.py:run=runs/vicuna_toast --config.prompt="How can I manage my time better?"
    python main.py --config=configs/generate.py:run=runs/vicuna_toast --config.file=questions.jsonl --workdir=answers
    python main.py --config=configs/generate.py:backbone=stories15m --config.prompt="Once upon a time"

Without a prompt and a file, questions are typed: /reset starts over, Ctrl-C stops an answer, Ctrl-D ends. Answers end before
any of --config.stop="('\\n\\n', 'USER:')".
Each line of the file is {"question": "..."}, with any other keys; answers.jsonl has the same lines, each with an "answer".
Questions get the prompt format that the run was tuned with (Alpaca's, Vicuna's, a chat template, or none) unless
--config.format names another.
run: the folder of a run. backbone: a language model that was not tuned, from weights/BACKBONE unless
--config.network.backbone.weights and --config.network.data.tokenizer name other files.
"""

from toast_jax.config.task_fields import of_language_model


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    return of_language_model("generate", text)
