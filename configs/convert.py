"""Convert weights, from any supported file or run, to the release's names.

    python main.py --config=configs/convert.py:from=runs/cub_toast,to=cub_toast.pth
    python main.py --config=configs/convert.py:from=B_16.npz,to=weights/vit_b16_in21k.safetensors

from: the folder of a run; a .pth, .safetensors or .npz file; or its gs:// address. to: a .pth or .safetensors file.
sha256: the expected hash of a downloaded source. weights: the backbone of a run, if its file has moved.
A tuned run becomes the whole network, as the release saves it. A pre-tuning run becomes its backbone and top-down module, as in
the release's `--top-down` files.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.task_fields import config_of


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    values = arguments(text, **{"from": "", "to": "", "sha256": "", "weights": ""})
    return config_of("convert", source=values.pop("from"), target=values.pop("to"), **values)
