"""A steered network that classifies pixels: it reads maps of several sites of the final look."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from toast_jax.errors import choose
from toast_jax.model import families, steered
from toast_jax.model.backbones.normalize import normalize
from toast_jax.model.layers.arrays import Array, Images, Inputs, Keys, Maps
from toast_jax.model.methods import Method
from toast_jax.model.segmentation.heads import LinearHead, UperNet
from toast_jax.model.steered import Steered, apply


class Segmenter(Steered):
    """Looks as `Steered` does; its head reads maps instead of a pooled vector.

    Attributes:
      map_sites: numbers of the sites (blocks; stages of a ConvNeXt) whose outputs the head reads, in order.
    """

    map_sites: tuple[int, ...] = ()

    def __call__(self, inputs: Inputs | None, rng: Keys | None = None, features: dict | None = None) -> Float[Array, "B h w C"]:
        """Compute the logits of the places of the head's map, float32; see `outputs`."""
        return self.outputs(inputs, rng)[0]

    def outputs(self, images: Any, rng: Keys | None = None) -> tuple[Float[Array, "B h w C"], Float[Array, "B _ _ C"] | None]:
        """Compute the logits and those of the auxiliary head, None without one; keys mean training."""
        keys = None if rng is None else jax.vmap(lambda key: jax.random.fold_in(key, 3))(rng)  # 0 to 2 are of the looks
        assert self.head is not None
        return self.head(self.maps(images, rng), keys)

    def maps(self, images: Any, rng: Keys | None = None) -> Maps:
        """Compute the maps that the head reads, of the final look; see `ImageBackbone.maps`."""
        _, out = self.looks(images, rng, maps=False)
        return self.maps_of(out)

    def maps_of(self, out: dict) -> Maps:
        """Return the maps among the intermediates of `looks`."""
        hidden = (*out["look"]["hidden"],)
        if self.steered_blocks:  # earlier sites are only in the first look
            hidden = (*out["first_look"]["hidden"][: -self.steered_blocks - 1], *hidden)
        return self.backbone.maps(hidden, self.map_sites)


def segment(
    model: Segmenter,
    method: Method,
    params: dict,
    images: Images,
    rng: Keys | None = None,
    size: Int[Array, "B 2"] | None = None,
    call: Any = "__call__",
) -> Any:
    """Apply a network to images of any sides, padded at bottom and right to whole patches.

    Args:
      params: as from `steered.init`. Position embeddings are resized to the images.
      images: uint8, or floats if already normalized.
      size: height and width of the part of each image that is not padding, which becomes 0, the mean color; None for all of it.
      call: method of `Segmenter`, or a function that takes one, images and keys.
    """
    family = families.of_backbone(model.backbone)
    multiple = family.image_multiple(model.backbone)
    rows, columns = ((0, -side % multiple) for side in images.shape[1:3])
    images = jnp.asarray(normalize(images, model.backbone.statistics))
    if size is not None:
        inside = [jnp.arange(side) < size[:, i, None] for i, side in enumerate(images.shape[1:3])]
        images = images * (inside[0][:, :, None] & inside[1][:, None])[..., None]
    images = jnp.pad(images, ((0, 0), rows, columns, (0, 0)))
    _, height, width, _ = images.shape
    backbone, own = family.of_side(model.backbone, params["backbone"], (height, width))
    model = dataclasses.replace(model, backbone=backbone)
    return apply(model, method, {**params, "backbone": own}, images, rng, call=call)


def build(config: ConfigDict, num_classes: int) -> tuple[Segmenter, Method]:
    """Build the network of a config of segmentation and the row of its method.

    Args:
      config: reads the section `segmentation` and the fields of `steered.build`.
      num_classes: C.

    Raises:
      InputError: as `steered.build`; an unknown head.
    """
    network, method = steered.build(config, num_classes)
    sites = families.of_config(config).sites(network.backbone)
    head = choose("config.segmentation.head", config.segmentation.head, HEADS)(config.segmentation, num_classes)
    parts = {field.name: getattr(network, field.name) for field in dataclasses.fields(Steered) if field.name not in _OWN}
    return Segmenter(**parts | {"head": head, "map_sites": tuple(config.segmentation.sites) or four_sites(sites)}), method


HEADS = {
    "linear": lambda fields, num_classes: LinearHead(num_classes),
    "upernet": lambda fields, num_classes: UperNet(
        num_classes, fields.channels, fields.auxiliary_channels, dropout=fields.dropout
    ),
}
_OWN = ("parent", "name")  # of flax


def four_sites(sites: int) -> tuple[int, ...]:
    """Return four sites at even distances that end with the last: 2, 5, 8, 11 of twelve."""
    return tuple(-(-sites * i // 4) - 1 for i in range(1, 5))


@functools.cache  # tracing a network takes a second, and every evaluation asks
def cell(model: Segmenter) -> int:
    """Return the pixels along the side of a place of the head's map."""
    logits = jax.eval_shape(lambda key: model.init_with_output(key, model.backbone.example)[0], jax.random.key(0))
    return model.backbone.example.shape[1] // logits.shape[1]
