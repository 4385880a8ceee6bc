"""Convert weights or a run for the release, timm, transformers or JAX.

    python main.py --config=configs/convert.py:from=runs/cub_toast,to=cub_toast.pth
    python main.py --config=configs/convert.py:from=B_16.npz,to=weights/vit_b16_in21k.safetensors
    python main.py --config=configs/convert.py:from=runs/cub_lora,to=cub_lora,as=timm

from: the folder of a run; a .pth, .safetensors or .npz file, or its gs:// address; a folder of weights, or a .bin of llama2.c.
to: a .pth or .safetensors file.
as: release (the default), or, for a finished run, a folder: timm or hf (plain weights that timm or transformers load),
stablehlo (a program that runs without this package), hub (the first of these that can hold the network, to upload).
names: of a backbone's arrays, such as dinov3_timm or siglip_transformers; the release's by default.
sha256: the expected hash of a downloaded source. weights: the backbone of a run, if its file has moved.
A tuned run becomes the whole network, as the release saves it. A pre-tuning run becomes its backbone and top-down module, as in
the release's `--top-down` files.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.task_fields import EXPORTS, config_of
from toast_jax.errors import choose


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    values = arguments(text, **{"from": "", "to": "", "as": "release", "names": "", "sha256": "", "weights": ""})
    kind = choose("The config argument as", values.pop("as"), {name: name for name in EXPORTS})
    return config_of("convert", source=values.pop("from"), target=values.pop("to"), format=kind, **values)
