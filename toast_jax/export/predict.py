"""Classify images with the network beside this file: `python predict.py IMAGE ...`. Needs jax, flatbuffers, numpy, pillow."""

import io
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export
from PIL import Image, ImageOps


def load(folder):
    """Return the facts in network.json and a function from pixels, uint8 [B, S, S, 3], to logits [B, classes]."""
    facts, weights = json.loads((folder / "network.json").read_text(encoding="utf-8")), dict(np.load(folder / "weights.npz"))
    network = jax.jit(export.deserialize(bytearray((folder / "network.jax_export").read_bytes())).call)
    return facts, lambda pixels: network(weights, pixels)


def rgb(path):
    """Read an image upright, in RGB; of 16 bits of gray the upper 8, of floats 0 to 1, where Pillow would clip them."""
    image = Image.open(io.BytesIO(Path(path).read_bytes()))  # by its path, Pillow mixes up the rows of a turned TIFF
    image.load()
    upright, tags = ImageOps.exif_transpose(image), getattr(image, "tag_v2", {})  # of TIFF: bits, and whether 0 is white
    if image.mode[0] in "IF":
        values = np.asarray(upright)
        if image.mode == "F":
            is_known, gray = values.min() >= 0 and values.max() <= 1, np.rint(values * 255)
        else:
            is_known = image.mode != "I" or image.format in ("PNG", "PPM")
            gray = values >> (4 if tags.get(258) in (12, (12,)) else 8)
        if not is_known:
            sys.exit(f"{path}: only 8 bits, 16 bits and floats from 0 to 1 have a defined brightness; save it with 8 bits.")
        upright = Image.fromarray((255 - gray if tags.get(262) == 0 else gray).astype(np.uint8))
    return upright.convert("RGB")


def view(path, resize, size, crop="center"):
    """Read an image as the network sees it: shorter side to `resize`, then the central square of `size`; or stretched."""
    image = rgb(path)
    if crop == "none":
        square = jax.image.resize(np.asarray(image, np.float32), (size, size, 3), "bilinear", antialias=False)
        return np.rint(square).astype(np.uint8)
    width, height = (int(resize * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))[top : top + size, left : left + size]


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    facts, logits = load(Path(__file__).parent)
    images = np.stack([view(path, facts["resize"], facts["size"], facts["crop"]) for path in sys.argv[1:]])
    for path, row in zip(sys.argv[1:], np.asarray(jax.nn.softmax(logits(images))), strict=True):
        print(f"{row.max():.4f}  {facts['classes'][row.argmax()]}  {path}")
