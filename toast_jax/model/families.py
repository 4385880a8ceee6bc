"""One record per family of backbones; nothing else in the package asks which family a network belongs to."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from toast_jax.fields import Field
from toast_jax.model.backbones.convnext import export as convnext_export
from toast_jax.model.backbones.convnext import network as convnext
from toast_jax.model.backbones.convnext import torch_names as convnext_torch_names
from toast_jax.model.backbones.export_formats import Format
from toast_jax.model.backbones.llama import config_json as llama_config_json
from toast_jax.model.backbones.llama import export as llama_export
from toast_jax.model.backbones.llama import kinds as llama_kinds
from toast_jax.model.backbones.llama import network as llama
from toast_jax.model.backbones.llama import torch_names as llama_torch_names
from toast_jax.model.backbones.normalize import statistics_of
from toast_jax.model.backbones.rename_rules import Names
from toast_jax.model.backbones.vit import export as vit_export
from toast_jax.model.backbones.vit import kinds
from toast_jax.model.backbones.vit import network as vit
from toast_jax.model.backbones.vit import shapes as vit_shapes
from toast_jax.model.methods import LANGUAGE_METHODS, METHODS, Method, with_lora
from toast_jax.model.top_down import ConvTopDown, TopDown


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """Describes everything particular to a family of backbones.

    Attributes:
      title: its name in sentences, such as "ViT".
      reads: "images" or "text".
      module: class of its backbones (see `backbones.protocol`).
      build: `(config, last_blocks) -> backbone`, from a whole config.
      sized: `(arrays, head_width) -> backbone`, from the shapes of stacked parameters by path.
      sizes: its sizes, by value of `config.backbone.size`.
      size_of: `(backbone section of a config) -> size`; None for `sizes[section.size]`.
      names: PyTorch's names of its parameters, and which layers are stacked.
      described: `(config.json) -> fields` of `config.backbone` for a repository of the Hugging Face Hub, or None.
      methods: the row of every supported method, by name.
      fields: its own fields of `config.backbone`, besides those of every family.
      refused: reasons to refuse other methods, by name: the rest of a sentence that begins with "Method NAME".
      sites: `(backbone or size) -> int`, the number of blocks or stages with a top-down input.
      width: `(backbone or size) -> int`, the output width of the last site.
      top_down: `(backbone, k) -> module`, the top-down module for the last k sites.
      own_head: whether the backbone has its own head, `logits`.
      image_multiple: `(backbone section) -> int`; the side of an image must be a multiple of it.
      of_side: `(backbone, params, sides) -> (backbone, params)`, both fitted to images of these sides.
      tunable_blocks: `(size) -> int`, the most blocks that method partial may tune.
      positions: `(backbone) -> dict`, the arguments of `pretrained.resize_pos_embed` that fit learned positions to it.
      kind_of: `(backbone) -> str`, its name in sentences if the family has several kinds; None for `title`.
      shown: `(backbone) -> dict`, the sizes that the shapes of its parameters determine, by name.
      decides: regex of parameters that only some of its networks have -> the field of `config.backbone` that adds them.
      variational_weight: default of the field, and the release's weight.
      partition: how parameters are split over an axis "fsdp"; the first regex that matches the whole path decides.
      layer_files: whether its weights are large and read from files layer by layer. Its top-down modules are then stored
        without the backbone, as are its runs that left the backbone unchanged.
      plain: other libraries' formats for its plain weights, by value of `config.format`.
      export_key: key of the arrays in an exported .pth; "" if the file holds only the arrays.
    """

    title: str
    reads: str
    module: type[nn.Module]
    build: Callable[[ConfigDict, int], nn.Module]
    sized: Callable[[dict, int], nn.Module]
    sizes: Mapping[str, Any]
    names: Names
    methods: Mapping[str, Method]
    size_of: Callable[[Any], Any] | None = None
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    described: Callable[[Mapping[str, Any]], dict[str, Any] | None] | None = None
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sites: Callable[[Any], int] = lambda backbone: backbone.depth
    width: Callable[[Any], int] = lambda backbone: backbone.width
    top_down: Callable[[Any, int], nn.Module] = lambda backbone, k: TopDown(k, backbone.width, backbone.dtype)
    own_head: bool = False
    image_multiple: Callable[[Any], int] = lambda backbone: 1
    of_side: Callable[[Any, dict, tuple[int, int]], tuple[Any, dict]] = lambda backbone, params, sides: (backbone, params)
    tunable_blocks: Callable[[Any], int] = lambda size: 1
    positions: Callable[[Any], dict[str, Any]] = lambda backbone: {}
    kind_of: Callable[[Any], str] | None = None
    shown: Callable[[Any], dict[str, Any]] = lambda backbone: {}
    decides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    variational_weight: float = 0.01
    partition: tuple[tuple[str, PartitionSpec], ...] = ((".*", PartitionSpec()),)
    layer_files: bool = False
    plain: Mapping[str, Format] = dataclasses.field(default_factory=dict)
    export_key: str = "model"

    def size(self, section: Any) -> Any:
        """Return the size that a config's `backbone` section names."""
        return self.size_of(section) if self.size_of else self.sizes[section.size]


FAMILIES = {
    "vit": Family(
        title="ViT",
        reads="images",
        module=vit.ViT,
        build=lambda config, last_blocks: vit.build(
            config.backbone, config.data.image_size, last_blocks, statistics_of(config.data)
        ),
        sized=vit_shapes.sized,
        sizes=vit.SIZES,
        size_of=vit.size_of,
        names=kinds.NAMES,
        described=kinds.described,
        methods=with_lora(METHODS, vit.LORA_KERNELS),
        fields=kinds.FIELDS,
        image_multiple=lambda backbone: backbone.patch,
        of_side=vit.of_side,
        tunable_blocks=lambda size: size.depth,
        plain=vit_export.FORMATS,
        positions=lambda backbone: {"grid": backbone.shape, "antialias": backbone.features.antialias},
        kind_of=kinds.title,
        shown=vit_shapes.shown,
        decides=kinds.DECIDES,
        variational_weight=0.1,
    ),
    "convnext": Family(
        title="ConvNeXt",
        reads="images",
        module=convnext.ConvNeXt,
        build=lambda config, last_blocks: convnext.build(config.backbone, last_blocks, statistics_of(config.data)),
        sized=convnext_torch_names.sized,
        sizes=convnext.SIZES,
        names=convnext_torch_names.NAMES,
        described=convnext_torch_names.described,
        methods=with_lora({name: row for name, row in METHODS.items() if name != "vpt"}, convnext.LORA_KERNELS),
        refused={"vpt": "adds prompt tokens, which a ConvNeXt has no place for"},
        sites=lambda backbone: len(backbone.depths),
        shown=lambda backbone: {"depths": backbone.depths, "widths": backbone.widths},
        width=lambda backbone: backbone.widths[-1],
        top_down=lambda backbone, k: ConvTopDown((3, *backbone.widths), convnext.STRIDES, backbone.dtype, steered=k),
        image_multiple=lambda backbone: 32,
        tunable_blocks=lambda size: size.depths[-1],
        plain=convnext_export.FORMATS,
    ),
    "llama": Family(
        title="LLaMA",
        reads="text",
        module=llama.LLaMA,
        build=lambda config, last_blocks: llama.build(config.backbone),
        sized=llama_torch_names.sized,
        sizes=llama.SIZES,
        size_of=llama.size_of,
        names=llama_torch_names.NAMES,
        described=llama_config_json.described,
        methods=with_lora(LANGUAGE_METHODS, llama.LORA_KERNELS),
        fields=llama_kinds.FIELDS,
        own_head=True,
        kind_of=lambda backbone: backbone.kind.title,
        partition=llama.PARTITION,
        layer_files=True,
        plain=llama_export.FORMATS,
        export_key="",  # the release loads a bare dict, which may be a part of the network
    ),
}


def of_config(config: ConfigDict) -> Family:
    """Return the record that `config.backbone.family` names."""
    return FAMILIES[config.backbone.family]


def reads(config: ConfigDict) -> str:
    """Return what a run reads: "images", "masks" (images with a label for each pixel) or "text"."""
    return "masks" if "segmentation" in config else of_config(config).reads


def of_backbone(backbone: nn.Module) -> Family:
    """Return the record of a backbone."""
    return next(family for family in FAMILIES.values() if type(backbone) is family.module)
