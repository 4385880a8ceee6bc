"""A steered network that classifies pixels: it reads maps of several sites of the final look."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from toast_jax.model import families
from toast_jax.model.layers.arrays import Array, Images, Inputs, Keys, Maps
from toast_jax.model.layers.normalize import normalize
from toast_jax.model.methods import Method
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
        hidden = [*out["look"]["hidden"]]
        if self.steered_blocks:  # earlier sites are only in the first look
            hidden = [*out["first_look"]["hidden"][: -self.steered_blocks - 1], *hidden]
        return self.backbone.maps(hidden, self.map_sites)


def segment(
    model: Segmenter, method: Method, params: dict, images: Images, rng: Keys | None = None, call: Any = "__call__"
) -> Any:
    """Apply a network to images of any sides, padded at bottom and right to whole patches.

    Args:
      params: as from `steered.init`. Position embeddings are resized to the images.
      images: uint8, or floats if already normalized.
      call: method of `Segmenter`, or a function that takes one, images and keys.
    """
    family = families.of_backbone(model.backbone)
    multiple = family.image_multiple(model.backbone)
    rows, columns = ((0, -side % multiple) for side in images.shape[1:3])
    images = jnp.pad(normalize(images, model.backbone.statistics), ((0, 0), rows, columns, (0, 0)))
    _, height, width, _ = images.shape
    backbone, own = family.of_side(model.backbone, params["backbone"], (height, width))
    model = dataclasses.replace(model, backbone=backbone)
    return apply(model, method, {**params, "backbone": own}, images, rng, call=call)
