"""VTAB-1k: one run of one of its 19 tasks (the recipe of the release).

    python main.py --config=configs/vtab.py:task=cifar100,method=toast,backbone=vit_b16_in1k,split=selection \\
        --config.optimizer.lr=0.5 --config.optimizer.weight_decay=0.001 --workdir=runs/cifar100_0.5_0.001
    python main.py --config=configs/vtab.py:task=cifar100,method=toast,backbone=vit_b16_in1k,split=final \\
        --config.top_down=weights/vit_b16_in1k_top_down.pth

task: a row of toast_jax/data/images/vtab/tasks.py. method: as in configs/fgvc.py. split: final (train on train800val200, test)
or selection (train on train800, validate on val200; no test image is opened). configs/prepare.py prepares the data, once.
configs/sweep.py runs the whole protocol: it tries a grid of learning rates, meant for batches of 256, and weight decays
(toast_jax/config/paper_recipes.py), selects the best on val200, and trains it with five seeds. The defaults here are mid-grid.
recipe: toast (the release's), paper (that of the method's own paper: ssf, adapter_plus, ep, bias, ln) or fixed (Adapter+'s
for every task and method).
The paper's mean top-1 with ViT-B/16 (ImageNet-1k) for toast: natural 76.4, specialized 84.6, structured 56.2, all 69.6.
It is quoted from a public review of a later version of the paper.
"""

from toast_jax.config import paper_recipes
from toast_jax.config.arguments import arguments


def get_config(text: str | None = None):
    """Return the config of one task, method and split; `text` is the config arguments."""
    return paper_recipes.vtab(
        **arguments(text, task="cifar100", method="toast", backbone="vit_b16_in1k", split="final", recipe="toast")
    )
