"""Table: the results of sweeps beside the published numbers.

    python main.py --config=configs/table.py:from=runs/vtab --workdir=tables/vtab
    python main.py --config=configs/table.py:from=runs/fgvc_toast+runs/fgvc_lora --workdir=tables/fgvc
    python main.py --config=configs/table.py:from=runs/fewshot+runs/fewshot_pretuned,reference=lora --workdir=tables/fewshot

from: folders of configs/sweep.py, joined by +, all with the same table and backbone. A sweep need not be finished: a missing
result is listed and shown as a dash. The table is written as Markdown, LaTeX, HTML and CSV. A few-shot table names its rows by
sweep and method if there are several sweeps; reference: a method, to compare all others in the same sweep with, or one row, as
in fewshot/lora. Its curves are in curves.svg.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.task_fields import config_of
from toast_jax.fields import joined


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    values = arguments(text, **{"from": "", "reference": ""})
    return config_of("table", sweeps=joined(values["from"]), reference=values["reference"])
