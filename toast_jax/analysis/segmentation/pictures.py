"""Pictures of segmentation: masks over images, and the masks and looks of several networks side by side."""

from collections.abc import Mapping, Sequence

import numpy as np

from toast_jax.analysis import drawing, maps, report
from toast_jax.analysis.segmentation.looks import Segmented
from toast_jax.train.segmentation import metrics

MASK, PREDICTION = "mask", "prediction"


def colors(count: int) -> np.ndarray:
    """Return distinct colors of labels, uint8 `[count, 3]`: those of VOC, whose bits come from the bits of the label."""
    labels = np.arange(count)
    channels = [sum(((labels >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def painted(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Blend the colors of labels `[H, W]` over an image uint8 `[H, W, 3]`; ignored labels leave it as it is."""
    counted = labels < len(palette)
    colored = palette[np.where(counted, labels, 0)]
    return np.where(counted[..., None], 0.4 * image + 0.6 * colored, image).round().astype(np.uint8)


def panels(image: np.ndarray, segmented: Segmented, palette: np.ndarray) -> dict[str, np.ndarray]:
    """Draw a network's prediction and maps over an image, by title."""
    drawn = {PREDICTION: painted(image, segmented.mask, palette)}
    return drawn | {name: drawing.overlay(image, segmented.maps[name]) for name in maps.ORDER if name in segmented.maps}


def agreement(labels: np.ndarray | None, mask: np.ndarray, count: int) -> float | None:
    """Return the mIoU of one image over the classes in its labels, None without any; `count` is the number of all classes."""
    if labels is None or not (labels < count).any():
        return None
    return metrics.scores(metrics.confusion(labels, mask, count), label_absent="nan")["mean_iou"]


def grid(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    truths: Sequence[np.ndarray | None],
    looked: Mapping[str, Sequence[Segmented]],
    palette: np.ndarray,
    side: int,
) -> str:
    """Render a table of pictures `side` to `2 * side` pixels wide: a row per image with its mask, and each network's panels.

    The first look stands once, before the networks, if all networks that look twice share it. With a mask, the mIoU of the
    image is below each prediction.
    """
    shared = _share_first_look(looked)
    rows = []
    for i, image in enumerate(images):
        sized, truth = _sized(image, side), truths[i]
        cells = {"image": report.picture(sized, captions[i])}
        if truth is not None:
            cells[MASK] = report.picture(painted(sized, _sized(truth, side), palette), alt=MASK)
        if shared:
            first = next(own[i].maps[maps.FIRST] for own in looked.values() if maps.FIRST in own[i].maps)
            cells[maps.FIRST] = report.picture(drawing.overlay(sized, first), alt=maps.FIRST)
        for network, own in looked.items():
            score = agreement(truth, own[i].mask, len(palette))
            below = "" if score is None else f"mIoU {score:.0%}"
            drawn = panels(sized, Segmented(_sized(own[i].mask, side), own[i].maps), palette)
            for name, picture in drawn.items():
                if not (shared and name == maps.FIRST):
                    caption = below if name == PREDICTION else ""
                    title = f"{network.replace('_', ' ')}: {name}"
                    cells[title] = report.picture(picture, caption, f"{name} of {network}")
        rows.append(cells)
    return report.pictures(list(rows[0]), [list(cells.values()) for cells in rows])


def _sized(values: np.ndarray, side: int) -> np.ndarray:
    """Leave out or repeat pixels of an image or a mask until it is `side` to `2 * side` pixels wide."""
    step = max(1, values.shape[1] // side)
    return drawing.enlarged(values[::step, ::step], side)


def _share_first_look(looked: Mapping[str, Sequence[Segmented]]) -> bool:
    firsts = [[own.maps[maps.FIRST] for own in by_image] for by_image in looked.values() if maps.FIRST in by_image[0].maps]
    same = lambda one, other: one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-6)  # noqa: E731
    return bool(firsts) and all(same(*pair) for others in firsts[1:] for pair in zip(firsts[0], others, strict=True))
