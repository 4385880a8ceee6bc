"""One record for each family of backbones: all that is particular to it, and asked nowhere else."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from toast_jax.fields import Choice, Field, whole
from toast_jax.model.backbones import convnext, llama, vit
from toast_jax.model.methods import LANGUAGE_METHODS, METHODS, Method


@dataclasses.dataclass(frozen=True)
class Family:
    """What is particular to a family.

    Attributes:
      title: what to call it in a sentence, such as "ViT".
      reads: "images" or "text".
      sizes: by the value of `config.backbone.size`.
      fields: of `config.backbone`, beside those that every family has.
      methods: the rows of the methods that it supports.
      refused: why it refuses other methods, by name: the rest of a sentence that begins with "Method NAME".
      image_multiple: of a config's `backbone` section, what the side of an image has to be a multiple of.
      tunable_blocks: of a size, how many blocks method partial may tune.
      variational_weight: default of the field.
    """

    title: str
    reads: str
    sizes: Mapping[str, Any]
    methods: Mapping[str, Method]
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    image_multiple: Callable[[Any], int] = lambda backbone: 1
    tunable_blocks: Callable[[Any], int] = lambda size: 1
    variational_weight: float = 0.01


FAMILIES = {
    "vit": Family(
        title="ViT",
        reads="images",
        sizes=vit.SIZES,
        methods=METHODS,
        fields={
            "patch": Field(16, whole(1, 16_384), "side of a patch, in pixels"),
            "pool": Field("cls", Choice(("cls", "mean")), "what the head reads: the class token or the mean of the patches"),
        },
        image_multiple=lambda backbone: backbone.patch,
        tunable_blocks=lambda size: size.depth,
        variational_weight=0.1,
    ),
    "convnext": Family(
        title="ConvNeXt",
        reads="images",
        sizes=convnext.SIZES,
        methods={name: method for name, method in METHODS.items() if name != "vpt"},
        refused={"vpt": "adds prompt tokens, which a ConvNeXt has no place for"},
        image_multiple=lambda backbone: 32,
        tunable_blocks=lambda size: size.depths[-1],
    ),
    "llama": Family(
        title="LLaMA",
        reads="text",
        sizes=llama.SIZES,
        methods=LANGUAGE_METHODS,
    ),
}
