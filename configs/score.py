"""Score a language model: perplexity, multiple choice, exact match and F1.

    python main.py --config=configs/score.py:run=runs/alpaca_toast --config.choices=hellaswag.jsonl --workdir=scores
    python main.py --config=configs/score.py:run=runs/alpaca_toast --config.questions=questions.jsonl --workdir=scores
    python main.py --config=configs/score.py:backbone=stories15m --config.text=stories.txt --workdir=scores

Lines of choices are {"context": "...", "choices": ["...", ...], "answer": 0}: which choice is the most likely to follow, of
all its tokens or by character? Lines of questions are {"question": "...", "answer": "..."}, or with a list of right answers;
they get the prompts that the run was tuned with. Text is read in the format of the run. All may be given at once.
run: the folder of a run. backbone: a language model that was not tuned, from weights/BACKBONE unless
--config.network.backbone.weights and --config.network.data.tokenizer name other files.
"""

from toast_jax.config.task_fields import of_language_model


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    return of_language_model("score", text)
