"""Small sets of images with masks, on disk."""

import json

import numpy as np
from PIL import Image

CLASSES = ("ground", "square", "disc")


def scene(rng, sides):
    """An image whose colors show its labels: a square and a disc on noise."""
    rows, columns = np.indices(sides)
    labels = np.zeros(sides, np.uint8)
    top, left = (int(rng.integers(0, side // 2)) for side in sides)
    labels[top : top + sides[0] // 2, left : left + sides[1] // 2] = 1
    center = [rng.uniform(0.2, 0.8) * side for side in sides]
    labels[(rows - center[0]) ** 2 + (columns - center[1]) ** 2 < (min(sides) / 4) ** 2] = 2
    image = rng.integers(0, 60, (*sides, 3))
    for label in (1, 2):
        image[labels == label, label] += 150
    return image.astype(np.uint8), labels


def write(root, counts, sides=((24, 32), (32, 24), (20, 20))):
    """Write a folder of images, masks, lists and classes; return it."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        names = [f"{split}_{i}" for i in range(count)]
        for i, name in enumerate(names):
            image, labels = scene(rng, sides[i % len(sides)])
            labels[0] = 255
            Image.fromarray(image).save(root / "images" / f"{name}.png")
            Image.fromarray(labels).save(root / "masks" / f"{name}.png")
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root
