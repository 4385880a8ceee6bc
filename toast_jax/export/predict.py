"""Classify images with the network beside this file: `python predict.py IMAGE ...`. Needs jax, flatbuffers, numpy, pillow."""

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
    """Read an image upright, in RGB; of more than 8 bits of gray the upper 8, where Pillow would clip them to white."""
    file = Image.open(path)
    image, tags = ImageOps.exif_transpose(file), getattr(file, "tag_v2", {})
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
        gray = (np.asarray(image) >> (4 if tags.get(258) in (12, (12,)) else 8)).astype(np.uint8)  # bits a pixel
        image = Image.fromarray(255 - gray if tags.get(262) == 0 else gray)  # 0: white is zero
    elif file.mode in ("I", "F"):
        sys.exit(f"{path} has 32 bits a pixel, whose brightness is not defined; save it with 8 or 16 bits.")
    return image.convert("RGB")


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
