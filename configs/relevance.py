"""Show which tokens of a question and its answer TOAST feeds back.

    python main.py --config=configs/relevance.py:run=runs/vicuna_toast --config.prompt="How can I manage my time better?" \\
        --workdir=relevance
    python main.py --config=configs/relevance.py:run=runs/vicuna_toast --config.file=questions.jsonl --workdir=relevance

The run answers the question with its most likely tokens unless --config.answer gives an answer to read instead. Each line of
the file is {"question": "..."}, or {"question": "...", "answer": "..."}, such as the answers.jsonl of configs/generate.py.
Writes relevance.html, a page that needs no other file, and the numbers as relevance.json.
run: the folder of a run on text by method toast or toast_lite. backbone: a language model that was not tuned, with
--config.network.method=toast and a pre-tuned module in --config.network.top_down.
"""

from toast_jax.config.task_fields import of_language_model


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    return of_language_model("relevance", text)
