"""The 15 corruptions of Hendrycks & Dietterich (arXiv 1903.12261), written from their descriptions.

They do not reproduce the images of ImageNet-C. Strengths are those published for images of 224 pixels, with lengths scaled to
the image. Exceptions: frost is made of noise, because the original photographs of frost cannot be shipped, and has its own
strengths; fog is noise with the spectrum of diamond-square (severity 4 is rougher than severity 3, not thicker, as published);
elastic deformation grows steadily with severity, while the original switches between two kinds.
A corruption uses the same random numbers at every severity, so that severities differ only in strength.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

SEVERITIES = (1, 2, 3, 4, 5)
_SIDE = 224  # pixels of the images for which strengths are published


def corrupt(image: np.ndarray, name: str, severity: int, seed: int, index: int) -> np.ndarray:
    """Corrupt an image, deterministically.

    Args:
      image: uint8 `[S, S, 3]`.
      name: key of `CORRUPTIONS`.
      severity: 1 to 5.
      seed, index: seed of the run and index of the image; together with the name they seed the random numbers.

    Returns:
      uint8 `[S, S, 3]`.
    """
    rng = np.random.default_rng((seed, list(CORRUPTIONS).index(name), index))
    corrupted = CORRUPTIONS[name](image / 255, severity - 1, rng)
    return np.round(np.clip(corrupted, 0, 1) * 255).astype(np.uint8)


# Each corruption takes an image with values from 0 to 1, a level from 0 to 4 and a random generator.


def gaussian_noise(image, level, rng):
    return image + (0.08, 0.12, 0.18, 0.26, 0.38)[level] * rng.standard_normal(image.shape)


def shot_noise(image, level, rng):
    """Simulate photon counts, whose relative noise grows as they get fewer."""
    photons = (60, 25, 12, 5, 3)[level]
    return rng.poisson(image * photons) / photons


def impulse_noise(image, level, rng):
    """Replace random values by 0 or 1."""
    hit, white = rng.random(image.shape), rng.random(image.shape) < 0.5
    return np.where(hit < (0.03, 0.06, 0.09, 0.17, 0.27)[level], white, image)


def defocus_blur(image, level, rng):
    """Blur every point to a disk."""
    radius = _scaled((3, 4, 6, 8, 10)[level], image)
    return _filtered(image, _disk(radius))


def glass_blur(image, level, rng):
    """Displace pixels by random short distances, between two slight blurs."""
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    sigma, reach = _scaled(sigma, image), max(1, round(_scaled(reach, image)))
    rows, columns = np.indices(image.shape[:2])
    blurred = _smooth(image, sigma)
    for _ in range(times):
        down, along = rng.integers(-reach, reach, (2, *image.shape[:2]), endpoint=True)
        blurred = blurred[np.clip(rows + down, 0, len(rows) - 1), np.clip(columns + along, 0, len(columns) - 1)]
    return _smooth(blurred, sigma)


def motion_blur(image, level, rng):
    """Blur every point to a fading line in a random direction."""
    length, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _filtered(image, _streak(_scaled(length, image), _scaled(sigma, image), rng.uniform(-45, 45)))


def zoom_blur(image, level, rng):
    """Average enlargements about the center."""
    largest, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.33, 0.03))[level]
    zooms = np.arange(1, largest, step)
    return (image + sum(_zoomed(image, zoom) for zoom in zooms)) / (len(zooms) + 1)


def snow(image, level, rng):
    """Draw flakes with motion blur on a paler, grayer image."""
    mean, spread, size, least, length, sigma, share = (
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
    return share * image + (1 - share) * pale + flakes + flakes[::-1, ::-1]


def frost(image, level, rng):
    """Draw crystals: thin bright lines where smooth noise of several scales crosses zero, denser on one side."""
    share, strength = ((1.0, 0.4), (0.9, 0.55), (0.8, 0.65), (0.7, 0.75), (0.6, 0.85))[level]
    side, ice = image.shape[0], np.zeros(image.shape[:2])
    for cells, weight in ((4, 0.35), (8, 0.3), (16, 0.2), (32, 0.15)):
        noise = _smooth(rng.standard_normal((side, side)), side / cells / 4)
        ice += weight * np.exp(-np.abs(noise) / (0.15 * noise.std()))
    ice *= 0.5 + _fractal(side, rng, power=3.0)
    colors = (ice / ice.max())[..., None] ** (0.8, 0.7, 0.6)
    return share * image + strength * colors


def fog(image, level, rng):
    """Add a cloud, then rescale to the original maximum."""
    thick, roughness = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    cloud = _fractal(image.shape[0], rng, power=2 + 2 * np.log2(roughness))[..., None]
    return (image + thick * cloud) * image.max() / (image.max() + thick)


def brightness(image, level, rng):
    """Increase the value in HSV, which preserves hue and saturation."""
    highest = image.max(axis=-1, keepdims=True)
    more = np.clip(highest + (0.1, 0.2, 0.3, 0.4, 0.5)[level], 0, 1)
    return np.where(highest > 0, image * more / np.maximum(highest, 1e-12), more)


def contrast(image, level, rng):
    """Move values towards the mean of each channel."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[level] * (image - mean)


def elastic_transform(image, level, rng):
    """Displace pixels by a smooth random field."""
    side = image.shape[0]
    fields = np.stack([_smooth(rng.uniform(-1, 1, (side, side)), 0.03 * side) for _ in range(2)])
    moves = fields / fields.std() * (0.004, 0.007, 0.01, 0.014, 0.018)[level] * side
    places = np.indices((side, side)) + moves
    return np.stack([ndimage.map_coordinates(image[..., c], places, order=1, mode="reflect") for c in range(3)], axis=-1)


def pixelate(image, level, rng):
    """Shrink, then enlarge without smoothing."""
    side = image.shape[0]
    small = max(1, int(side * (0.6, 0.5, 0.4, 0.3, 0.25)[level]))
    picture = _picture(image).resize((small, small), Image.Resampling.BOX)
    return np.asarray(picture.resize((side, side), Image.Resampling.NEAREST)) / 255


def jpeg_compression(image, level, rng):
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return np.asarray(Image.open(file)) / 255


_NOISE = (gaussian_noise, shot_noise, impulse_noise)
_BLUR = (defocus_blur, glass_blur, motion_blur, zoom_blur)
_WEATHER = (snow, frost, fog, brightness)
_DIGITAL = (contrast, elastic_transform, pixelate, jpeg_compression)
CORRUPTIONS: dict[str, Callable] = {each.__name__: each for each in _NOISE + _BLUR + _WEATHER + _DIGITAL}


def _scaled(length, image):
    """Scale a length in pixels from images of 224 pixels to this image."""
    return length * image.shape[0] / _SIDE


def _picture(image):
    return Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))


def _smooth(image, sigma):
    """Smooth each channel with a Gaussian over rows and columns."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0)[: image.ndim], mode="reflect")


def _filtered(image, kernel):
    return ndimage.convolve(image, kernel[..., None], mode="reflect")


def _disk(radius):
    """Make a kernel of equal weights within a radius; a pixel at the edge counts by the fraction inside."""
    reach, fine = int(np.ceil(radius)), 8
    at = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = at[:, None] ** 2 + at**2 <= radius**2
    kernel = inside.reshape(2 * reach + 1, fine, -1, fine).mean(axis=(1, 3))
    return kernel / kernel.sum()


def _streak(length, sigma, degrees):
    """Make a kernel along a ray, with Gaussian weights in the distance from its start."""
    reach = int(np.ceil(length))
    kernel = np.zeros((2 * reach + 1,) * 2)
    direction = np.array([np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])
    for distance in np.arange(0, length + 1e-9, 0.25):
        row, column = np.round(reach + distance * direction).astype(int)
        kernel[row, column] += np.exp(-0.5 * (distance / sigma) ** 2)
    return kernel / kernel.sum()


def _zoomed(image, zoom):
    """Enlarge about the center and crop to the original size."""
    middle = (image.shape[0] - 1) / 2
    scale = np.array([1 / zoom, 1 / zoom, 1.0][: image.ndim])
    return ndimage.affine_transform(image, scale, middle * (1 - scale), order=1, mode="nearest")


def _fractal(side, rng, power):
    """Make a cloud from 0 to 1: noise with amplitude f^(-power / 2) at frequency f."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = np.inf
    cloud = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * frequency ** (-power / 2)).real
    return (cloud - cloud.min()) / np.ptp(cloud)
