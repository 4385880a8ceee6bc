"""Draw maps over images, and panels with titles.

The color maps are safe for color-blind readers: viridis for maps from low to high (its order also survives in grayscale), and
ColorBrewer's PuOr, purple to orange, for signed differences.
"""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
_PURPLE_ORANGE = np.array([(94, 60, 153), (178, 171, 210), (247, 247, 247), (253, 184, 99), (230, 97, 1)])
_GAP = 4  # white pixels between panels
_LINE = 15  # pixels from one line of a title to the next


def coloured(values: np.ndarray) -> np.ndarray:
    """Color a map `[H, W]` from its smallest value, dark blue, to its largest, yellow: uint8 `[H, W, 3]`."""
    low, high = values.min(), values.max()
    return _at((values - low) / max(high - low, 1e-12), _VIRIDIS)


def coloured_difference(values: np.ndarray) -> np.ndarray:
    """Color a signed map `[H, W]`: zero white, positive orange, negative purple, on one symmetric scale."""
    return _at(0.5 + 0.5 * values / max(np.abs(values).max(), 1e-12), _PURPLE_ORANGE)


def _at(positions, colours):
    """Interpolate a list of colors at positions `[...]` from 0 to 1: uint8 `[..., 3]`."""
    anchors = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(positions, anchors, colours[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def interpolated(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a coarse map `[h, w]` to an image: float32 `[height, width]`, bilinear between cell centers."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))


def overlay(image: np.ndarray, values: np.ndarray, strength: float = 0.6, colours: Callable = coloured) -> np.ndarray:
    """Blend a coarse map `[h, w]` over an image.

    Args:
      image: uint8 `[H, W, 3]`.
      values: one number per patch, interpolated to the image.
      strength: 0 shows the image alone, 1 the map alone.
      colours: `coloured` or `coloured_difference`.

    Returns:
      uint8 `[H, W, 3]`.
    """
    fine = interpolated(values, *image.shape[:2])
    return ((1 - strength) * image + strength * colours(fine)).round().astype(np.uint8)


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Enlarge an image to at least `side` pixels wide, by repeating pixels."""
    times = -(-side // image.shape[1])
    return image.repeat(times, axis=0).repeat(times, axis=1)


def titled(panel: np.ndarray, title: str, lines: int = 2) -> np.ndarray:
    """Put a title of a fixed number of lines above a panel, black on white; text that does not fit is cut off."""
    width = panel.shape[1]
    strip = Image.new("RGB", (width, lines * _LINE + 2), "white")
    drawn, font = ImageDraw.Draw(strip), ImageFont.load_default(12)
    for letters in range(max(4, width // 4), 3, -1):  # the longest lines that fit
        wrapped = textwrap.wrap(title, letters, max_lines=lines, placeholder="...")
        if all(font.getlength(line) < width - 2 for line in wrapped):
            break
    for i, line in enumerate(wrapped, start=lines - len(wrapped)):  # the last line is next to the panel
        drawn.text((1, i * _LINE), line, fill="black", font=font)
    return np.concatenate([np.asarray(strip), panel])


def save(picture: np.ndarray, path: Path) -> None:
    """Write a picture uint8 `[H, W, 3]` as a PNG, by the fastest compression.

    Pillow's default takes most of the time of drawing many pictures; the files are about a tenth larger than by it.
    """
    Image.fromarray(picture).save(path, compress_level=1)


def side_by_side(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Place panels in a row with white gaps; shorter ones are padded with white."""
    return stacked([panel.transpose(1, 0, 2) for panel in panels]).transpose(1, 0, 2)


def stacked(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Place panels in a column with white gaps; narrower ones are padded with white."""
    widest = max(panel.shape[1] for panel in panels)
    gap = np.full((_GAP, widest, 3), 255, np.uint8)
    padded = [np.pad(panel, ((0, 0), (0, widest - panel.shape[1]), (0, 0)), constant_values=255) for panel in panels]
    return np.concatenate([part for panel in padded for part in (gap, panel)][1:])
