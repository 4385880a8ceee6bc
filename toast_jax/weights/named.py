"""Weights by name: where they are, and under which licence their authors publish them."""

from typing import NamedTuple


class Named(NamedTuple):
    """Describes a file of weights: its address, https:// or hf:, its licence, and what is known of its SHA-256.

    `sha256` may be the first digits alone, which PyTorch's hub puts at the end of a file's name.
    """

    address: str
    licence: str
    sha256: str = ""


_BOX, _META = "https://berkeley.box.com/shared/static/", "https://dl.fbaipublicfiles.com/"
_RELEASE = "see https://github.com/bfshi/TOAST"

NAMED = {
    # The release's: backbones, and top-down modules that it pre-tuned.
    "vit_b16_in1k": Named(f"{_BOX}zblb4lfqoiyuiyo94a496h45qlqel6r8.pth", _RELEASE),
    "vit_b16_in1k_top_down": Named(f"{_BOX}ejf7a2vnzg8pmwty0ih4temm2vgw14u5.pth", _RELEASE),
    "vit_b16_in21k": Named(f"{_BOX}kbsnodpqvowtllze45lkuh90qwxtsxsu.pth", _RELEASE),
    "vit_b16_in21k_top_down": Named(f"{_BOX}u3w4ie6xww0o2w9kb4rukkkz6lx66ajr.pth", _RELEASE),
    "vit_l16_in21k": Named(f"{_BOX}ptz6d4nn5jd6gagw0c92b1qi2iaxbx4b.pth", _RELEASE),
    "vit_l16_in21k_top_down": Named(f"{_BOX}pl1ldyejj14nodumlmj2r3mi7stqy3v9.pth", _RELEASE),
    "convnext_b_in21k": Named(f"{_BOX}g629xskuq56rzo9qxrm8w7yi2rk1l07s.pth", _RELEASE),
    "convnext_b_in21k_top_down": Named(f"{_BOX}skzkydmvnch8jlpagd4ct6ru9ywyzc9v.pth", _RELEASE),
    "llama1_7b_top_down": Named(f"{_BOX}j4ulxk1cr56wih6lpu81x95uti65loqk.bin", _RELEASE),
    # Other authors'.
    "convnext_t_in1k": Named(f"{_META}convnext/convnext_tiny_1k_224_ema.pth", "MIT"),
    "convnext_b_in1k": Named(f"{_META}convnext/convnext_base_1k_224_ema.pth", "MIT"),
    "convnext_b_in21k_meta": Named(f"{_META}convnext/convnext_base_22k_224.pth", "MIT"),
    "vit_ti16_in1k_deit": Named(f"{_META}deit/deit_tiny_patch16_224-a1311bcf.pth", "Apache-2.0", "a1311bcf"),
    "vit_s16_in1k_deit": Named(f"{_META}deit/deit_small_patch16_224-cd65a155.pth", "Apache-2.0", "cd65a155"),
    "vit_b16_in1k_deit": Named(f"{_META}deit/deit_base_patch16_224-b5f2ef4d.pth", "Apache-2.0", "b5f2ef4d"),
    "vit_b16_in1k_mae": Named(f"{_META}mae/pretrain/mae_pretrain_vit_base.pth", "CC-BY-NC-4.0"),
    "vit_s16_in1k_dino": Named(f"{_META}dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth", "Apache-2.0"),
    "vit_b14_dinov2": Named(f"{_META}dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth", "Apache-2.0"),
    "vit_b16_in21k_google": Named("hf:google/vit-base-patch16-224-in21k/model.safetensors", "Apache-2.0"),
    "vit_l16_in21k_google": Named("hf:google/vit-large-patch16-224-in21k/pytorch_model.bin", "Apache-2.0"),
    "stories15m": Named("hf:karpathy/tinyllamas/stories15M.bin", "MIT"),
}
