"""The 15 corruptions of Hendrycks & Dietterich (arXiv 1903.12261), written from their descriptions.

They are not the pictures of ImageNet-C. Strengths are the published ones for images of 224 pixels, with lengths scaled to the
image, except: frost is crystals from noise, as the photographs of frost are not ours to ship, and has strengths of its own; a
cloud of fog is noise with the spectrum that diamond-square gives (of severity 4 it is rougher than of 3, not thicker, as
published); elastic deformation grows steadily over its severities, where theirs are of two kinds.
A corruption starts from the same random state at every severity: the same accident, only worse.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

SEVERITIES = (1, 2, 3, 4, 5)
_SIDE = 224  # of the images that the published strengths are for


def corrupt(image: np.ndarray, name: str, severity: int, seed: int, index: int) -> np.ndarray:
    """Corrupts an image, always in the same way.

    Args:
      image: uint8 `[S, S, 3]`.
      name: of a corruption in `CORRUPTIONS`.
      severity: 1 to 5.
      seed, index: of the run and of the image; with the name they decide all random numbers.

    Returns:
      uint8 `[S, S, 3]`.
    """
    rng = np.random.default_rng((seed, list(CORRUPTIONS).index(name), index))
    worse = CORRUPTIONS[name](image / 255, severity - 1, rng)
    return np.round(np.clip(worse, 0, 1) * 255).astype(np.uint8)


# Each takes an image with values from 0 to 1, the severity from 0 to 4 and a generator.


def gaussian_noise(image, level, rng):
    return image + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * rng.standard_normal(image.shape)


def shot_noise(image, level, rng):
    """Photons: the fewer, the larger their relative fluctuation."""
    photons = (60, 25, 12, 5, 3)[level]
    return rng.poisson(image * photons) / photons


def impulse_noise(image, level, rng):
    """Values that are 0 or 1 whatever they were."""
    hit, white = rng.random(image.shape), rng.random(image.shape) < 0.5
    return np.where(hit < (0.03, 0.06, 0.09, 0.17, 0.27)[level], white, image)


def defocus_blur(image, level, rng):
    """A point becomes a disk."""
    radius = _scaled((3, 4, 6, 8, 10)[level], image)
    return _filtered(image, _disk(radius))


def glass_blur(image, level, rng):
    """Pixels change places with near ones, between two slight blurs."""
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    sigma, reach = _scaled(sigma, image), max(1, round(_scaled(reach, image)))
    rows, columns = np.indices(image.shape[:2])
    worse = _smooth(image, sigma)
    for _ in range(times):
        down, along = rng.integers(-reach, reach, (2, *image.shape[:2]), endpoint=True)
        worse = worse[np.clip(rows + down, 0, len(rows) - 1), np.clip(columns + along, 0, len(columns) - 1)]
    return _smooth(worse, sigma)


def motion_blur(image, level, rng):
    """A point becomes a line that fades, in a direction that is drawn."""
    length, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _filtered(image, _streak(_scaled(length, image), _scaled(sigma, image), rng.uniform(-45, 45)))


def zoom_blur(image, level, rng):
    """The mean over enlargements about the centre."""
    largest, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.33, 0.03))[level]
    zooms = np.arange(1, largest, step)
    return (image + sum(_zoomed(image, zoom) for zoom in zooms)) / (len(zooms) + 1)


def snow(image, level, rng):
    """Flakes that fall along a line, on a scene that is paler and greyer."""
    mean, spread, size, least, length, sigma, kept = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    flakes = _zoomed(mean + spread * rng.standard_normal(image.shape[:2]), max(1, _scaled(size, image)))
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    streak = _streak(_scaled(length, image), _scaled(sigma, image), rng.uniform(-135, -45))
    flakes = _filtered(flakes[..., None], streak)
    pale = np.maximum(image, image.mean(axis=-1, keepdims=True) * 1.5 + 0.5)
    return kept * image + (1 - kept) * pale + flakes + flakes[::-1, ::-1]


def frost(image, level, rng):
    """Crystals from noise: thin bright lines where smooth noise of several scales passes through zero, thicker to one side."""
    kept, strength = ((1.0, 0.4), (0.9, 0.55), (0.8, 0.65), (0.7, 0.75), (0.6, 0.85))[level]
    side, ice = image.shape[0], np.zeros(image.shape[:2])
    for cells, weight in ((4, 0.35), (8, 0.3), (16, 0.2), (32, 0.15)):
        noise = _smooth(rng.standard_normal((side, side)), side / cells / 4)
        ice += weight * np.exp(-np.abs(noise) / (0.15 * noise.std()))
    ice *= 0.5 + _fractal(side, rng, power=3.0)
    colours = (ice / ice.max())[..., None] ** (0.8, 0.7, 0.6)
    return kept * image + strength * colours


def fog(image, level, rng):
    """A cloud on top, after which the largest value is what it was."""
    thick, roughness = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    cloud = _fractal(image.shape[0], rng, power=2 + 2 * np.log2(roughness))[..., None]
    return (image + thick * cloud) * image.max() / (image.max() + thick)


def brightness(image, level, rng):
    """More of the value of HSV, so the colour stays."""
    highest = image.max(axis=-1, keepdims=True)
    more = np.clip(highest + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 0, 1)
    return np.where(highest > 0, image * more / np.maximum(highest, 1e-12), more)


def contrast(image, level, rng):
    """Nearer to the mean of each channel."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[level] * (image - mean)


def elastic_transform(image, level, rng):
    """Pixels move along a smooth random field."""
    side = image.shape[0]
    fields = np.stack([_smooth(rng.uniform(-1, 1, (side, side)), 0.03 * side) for _ in range(2)])
    moves = fields / fields.std() * (0.004, 0.007, 0.01, 0.014, 0.018)[level] * side
    places = np.indices((side, side)) + moves
    return np.stack([ndimage.map_coordinates(image[..., c], places, order=1, mode="reflect") for c in range(3)], axis=-1)


def pixelate(image, level, rng):
    """Shrunk, and enlarged without smoothing."""
    side = image.shape[0]
    small = max(1, int(side * (0.6, 0.5, 0.4, 0.3, 0.25)[level]))
    picture = _picture(image).resize((small, small), Image.Resampling.BOX)
    return np.asarray(picture.resize((side, side), Image.Resampling.NEAREST)) / 255


def jpeg_compression(image, level, rng):
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return np.asarray(Image.open(file)) / 255


CORRUPTIONS: dict[str, Callable] = {
    one.__name__: one
    for one in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}


def _scaled(length, image):
    """A length in pixels of an image of 224, in pixels of this one."""
    return length * image.shape[0] / _SIDE


def _picture(image):
    return Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))


def _smooth(image, sigma):
    """A Gaussian over rows and columns, of each channel by itself."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0)[: image.ndim], mode="reflect")


def _filtered(image, kernel):
    return np.stack([ndimage.convolve(image[..., c], kernel, mode="reflect") for c in range(image.shape[-1])], axis=-1)


def _disk(radius):
    """A kernel of equal weights within a radius; a pixel at its edge counts with the share that is inside."""
    reach, fine = int(np.ceil(radius)), 8
    at = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = at[:, None] ** 2 + at**2 <= radius**2
    kernel = inside.reshape(2 * reach + 1, fine, -1, fine).mean(axis=(1, 3))
    return kernel / kernel.sum()


def _streak(length, sigma, degrees):
    """A kernel along half a line, its weights a Gaussian of the distance from the start."""
    reach = int(np.ceil(length))
    kernel = np.zeros((2 * reach + 1,) * 2)
    direction = np.array([np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])
    for distance in np.arange(0, length + 1e-9, 0.25):
        row, column = np.round(reach + distance * direction).astype(int)
        kernel[row, column] += np.exp(-0.5 * (distance / sigma) ** 2)
    return kernel / kernel.sum()


def _zoomed(image, zoom):
    """Enlarged about the centre and cut to the same size."""
    side = image.shape[0]
    at = (np.arange(side) - (side - 1) / 2) / zoom + (side - 1) / 2
    low = np.clip(np.floor(at).astype(int), 0, side - 2)
    share = (at - low).reshape(-1, *[1] * (image.ndim - 1))
    rows = image[low] * (1 - share) + image[low + 1] * share
    share = share.reshape(1, -1, *[1] * (image.ndim - 2))
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def _fractal(side, rng, power):
    """A cloud from 0 to 1: noise whose amplitude falls with the frequency f as f^(-power / 2)."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = np.inf
    cloud = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * frequency ** (-power / 2)).real
    return (cloud - cloud.min()) / np.ptp(cloud)
