"""Table: what sweeps have found beside the published numbers.

    python main.py --config=configs/table.py:from=runs/vtab --workdir=tables/vtab
    python main.py --config=configs/table.py:from=runs/fgvc_toast+runs/fgvc_lora --workdir=tables/fgvc

from: folders of configs/sweep.py, joined by +; all of one table and one backbone. A sweep need not be finished: what is missing
is a dash, and is listed. It is written as Markdown, LaTeX, HTML and CSV.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(text: str | None = None):
    """`text` is what follows the colon of `--config`."""
    folders = common.arguments(text, **{"from": ""})["from"]
    return ConfigDict({"name": "table", "task": "table", "sweeps": common.joined(folders)})
