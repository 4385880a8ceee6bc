"""Augment training batches on the device: erasing, mixup, CutMix, label smoothing, degradation; of text, token weights.

Order and noise are those of DeiT's training: normalise, erase, mix, smooth; a degraded view is made last. Every example has its
own random key and images are mixed with a neighbour, so the result does not depend on the number of devices.
"""

import functools

import jax
import jax.numpy as jnp

from toast_jax.data.images.statistics import IMAGENET
from toast_jax.devices import parallel
from toast_jax.model.backbones.normalize import Statistics, normalize


def augment(
    batch: dict,
    rng: jax.Array,
    *,
    num_classes: int,
    erasing: float,
    mixup: float,
    cutmix: float,
    smoothing: float,
    degradation: float = 0.0,
    statistics: Statistics = IMAGENET,
) -> dict:
    """Erase and mix the images of a batch, smooth its labels, and degrade a copy of its images.

    Args:
      batch: `image [B, S, S, 3]` and `label [B]`; mixing needs an even B.
      rng: `[B]` keys, one per example.
      num_classes: C.
      erasing: probability that a rectangle of an image is replaced by noise, see `erase`.
      mixup: alpha of mixup (Zhang et al., arXiv 1710.09412), 0 to disable.
      cutmix: alpha of CutMix (Yun et al., arXiv 1905.04899), 0 to disable. With both, each pair of images gets one
        of them with equal probability.
      smoothing: share of the label that is distributed evenly over all classes.
      degradation: strength of `degrade`, 0 to disable.
      statistics: mean and standard deviation to normalize pixels with.

    Returns:
      the batch. Erased, mixed or degraded images are normalised; mixed or smoothed labels are added as `target [B, C]`, and the
      images before degradation as `clean [B, S, S, 3]`.
    """
    if erasing:
        images = jnp.asarray(normalize(batch["image"], statistics))
        batch = {**batch, "image": jax.vmap(functools.partial(erase, probability=erasing))(images, _of_use(rng, 0))}
    if mixup or cutmix or smoothing:
        target = jax.nn.one_hot(batch["label"], num_classes) * (1 - smoothing) + smoothing / num_classes
        batch = {**batch, "target": target}
    if mixup or cutmix:
        # Pairs of neighbours [B / 2, 2, ...] are random pairs, as the data is shuffled. A pair uses the key of its first image.
        images, target = ((x.reshape(-1, 2, *x.shape[1:])) for x in (normalize(batch["image"], statistics), target))
        mixed = jax.vmap(functools.partial(_mix, mixup=mixup, cutmix=cutmix))(images, target, _of_use(rng, 1)[::2])
        image, target = (x.reshape(-1, *x.shape[2:]) for x in mixed)
        batch = {**batch, "image": image, "target": target}
    if degradation:
        images = jnp.asarray(normalize(batch["image"], statistics))
        degraded = jax.vmap(functools.partial(degrade, strength=degradation))(images, _of_use(rng, 2))
        batch = {**batch, "image": degraded, "clean": batch["image"]}
    return batch


def erase(image: jax.Array, rng: jax.Array, probability: float) -> jax.Array:
    """Replace a random rectangle by noise with some probability (Zhong et al., arXiv 1708.04896).

    The rectangle covers 2 to 33 percent of the image, with an aspect ratio between 0.3 and 1 / 0.3; it is clipped to the image.

    Args:
      image: `[H, W, 3]`, normalised, so the noise is standard normal.
      rng: a key.
      probability: of erasing at all.
    """
    whether, area, ratio, place, noise = jax.random.split(rng, 5)
    share = jax.random.uniform(area, (), minval=0.02, maxval=1 / 3)
    inside = _random_rectangle(image.shape, share, 0.3, ratio, place) & jax.random.bernoulli(whether, probability)
    return jnp.where(inside, jax.random.normal(noise, image.shape), image)


def degrade(image: jax.Array, rng: jax.Array, strength: float) -> jax.Array:
    """Lower an image's resolution and contrast, add noise, and hide everything outside a random rectangle.

    The amount of each is uniform between none and `strength` times the most: a quarter of the resolution (log-uniform), 40
    percent of the contrast, noise of half the standard deviation of pixels, a rectangle of a quarter of the area. Every pixel
    keeps its place, so that the tokens of the degraded and of the clean image correspond.

    Args:
      image: `[H, W, 3]`, normalised; what is hidden becomes 0, the mean color.
      rng: a key.
      strength: from 0, the image as it is, to 1.
    """
    amounts, ratio, place, noise = jax.random.split(rng, 4)
    detail, contrast, grain, hidden = strength * jax.random.uniform(amounts, (4,))
    rows, columns = (_blur(side, 4.0**-detail) for side in image.shape[:2])
    image = jnp.einsum("ih,jw,hwc->ijc", rows, columns, image)
    image = (1 - 0.6 * contrast) * image + 0.5 * grain * jax.random.normal(noise, image.shape)
    return jnp.where(_random_rectangle(image.shape, 1 - 0.75 * hidden, 0.75**hidden, ratio, place), image, 0.0)


def _blur(side, scale):
    """Return a matrix `[side, side]` that shrinks a row of pixels to a share of its length and enlarges it again."""

    def resize(rows, scale):
        return jax.image.scale_and_translate(rows, rows.shape, (0,), jnp.reshape(scale, 1), jnp.zeros(1), "linear")

    matrix = resize(resize(jnp.eye(side), scale), 1 / scale)
    return matrix / matrix.sum(axis=1, keepdims=True)  # the last pixels also average what is beyond the shrunken row


def _mix(images, targets, rng, *, mixup, cutmix):
    """Mix a pair of images `[2, H, W, 3]` and its targets `[2, C]`; both keep the same share."""
    which, amount, place = jax.random.split(rng, 3)
    cut = jax.random.bernoulli(which, 0.5) if mixup and cutmix else cutmix > 0
    alpha = jnp.where(cut, cutmix, mixup)
    share = jax.random.beta(amount, alpha, alpha)
    pasted, kept = _paste(images, share, place)
    blended = share * images + (1 - share) * images[::-1]
    share = jnp.where(cut, kept, share)
    return jnp.where(cut, pasted, blended), share * targets + (1 - share) * targets[::-1]


def _paste(images, share, rng):
    """Paste a box of the other image around a random center, clipped (CutMix); return the images and the share kept."""
    size = jnp.array(images.shape[1:3])
    centre = jax.random.randint(rng, (2,), 0, size)
    half = (size * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    start, stop = jnp.clip(centre - half, 0, size), jnp.clip(centre + half, 0, size)
    inside = _rectangle(images.shape[1:], start, stop - start)
    return jnp.where(inside, images[::-1], images), 1 - (stop - start).prod() / size.prod()


def _random_rectangle(shape, share, min_ratio, ratio, place):
    """Return a mask `[H, W, 1]` of a rectangle, from its share of the area, its smallest aspect ratio and two keys."""
    size = jnp.array(shape[:2])
    ratio = jnp.exp(jax.random.uniform(ratio, (), minval=jnp.log(min_ratio), maxval=-jnp.log(min_ratio)))
    sides = jnp.sqrt(share * size.prod()) * jnp.sqrt(jnp.stack([ratio, 1 / ratio]))
    sides = jnp.clip(jnp.round(sides).astype(jnp.int32), 1, size)
    return _rectangle(shape, jax.random.randint(place, (2,), 0, size - sides + 1), sides)


def _rectangle(shape, start, sides):
    """Return a mask `[H, W, 1]` that is True on the rectangle."""
    rows, columns = (jnp.arange(length) for length in shape[:2])
    row_in, column_in = ((at >= start[axis]) & (at < start[axis] + sides[axis]) for axis, at in enumerate((rows, columns)))
    return row_in[:, None, None] & column_in[None, :, None]


def _of_use(rng, index):
    """Derive independent keys for erasing (0), mixing (1) and degrading (2), which the network does not use either."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 100 + index))(rng)


def by_token(batch: dict, rng: jax.Array | None) -> dict:
    """Scale the weights of a batch `[B]` by the tokens that examples predict; over all devices they then add up to B."""
    share = batch["mask"] / jnp.maximum(jax.lax.pmean(batch["mask"].mean(), parallel.AXIS), 1e-6)
    return {**batch, "weight": batch["weight"] * share[:, None]}
