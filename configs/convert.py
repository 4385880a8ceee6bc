"""Weights, of any file that loads or of a run, to the release's names.

    python main.py --config=configs/convert.py:from=runs/cub_toast,to=cub_toast.pth
    python main.py --config=configs/convert.py:from=B_16.npz,to=weights/vit_b16_in21k.safetensors

from: a run's folder; a .pth, .safetensors or .npz file; or its gs:// address. to: a .pth or .safetensors file.
sha256: what the source has to hash to, for a file from elsewhere. weights: the backbone of a run, if its file has moved.
A tuned run becomes the whole network, as the release saves it; a pre-tuning run its backbone and top-down module, as the
release's `--top-down` files hold them.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(text: str | None = None):
    """`text` is what follows the colon of `--config`."""
    given = common.arguments(text, **{"from": "", "to": "", "sha256": "", "weights": ""})
    return ConfigDict(
        {
            "name": "convert",
            "task": "convert",
            "source": given["from"],
            "target": given["to"],
            "sha256": given["sha256"],
            "weights": given["weights"],
        }
    )
