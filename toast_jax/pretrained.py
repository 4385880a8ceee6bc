"""Weights of other frameworks, by name: one table, read in both directions.

`read` opens a file, `from_torch` renames its arrays to our paths, `to_torch` renames ours back, `select` picks what a network
needs and is loud about everything else. Files of the PyTorch release, DeiT and timm use the same names, up to prefixes.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax.errors import InputError

Arrays = dict[str, np.ndarray]
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Rename:
    """One line of the table: `torch` names and `ours`, `{i}` standing for a layer, and how their arrays become each other."""

    torch: tuple[str, ...]
    ours: tuple[str, ...]
    forward: Callable = lambda *arrays: arrays
    backward: Callable = lambda *arrays: arrays


def _linear(torch: str, ours: str) -> Rename:
    return Rename((f"{torch}.weight",), (f"{ours}/kernel",), lambda w: (w.T,), lambda w: (w.T,))


def _bias(torch: str, ours: str) -> Rename:
    return Rename((f"{torch}.bias",), (f"{ours}/bias",))


def _norm(torch: str, ours: str) -> tuple[Rename, Rename]:
    return Rename((f"{torch}.weight",), (f"{ours}/scale",)), _bias(torch, ours)


def _thirds(w):
    return tuple(part.T for part in np.split(w, 3))


def _patches_to_kernel(w):
    return (w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),)


def _kernel_to_patches(w):
    side = round((w.shape[0] / 3) ** 0.5)
    return (w.reshape(side, side, 3, -1).transpose(3, 2, 0, 1),)


def _qkv(suffix: str, prefix: str = "") -> tuple[str, str, str]:
    return tuple(f"{prefix}backbone/blocks/{{i}}/attn/{part}/{suffix}" for part in "qkv")


def _low_rank(torch: str, ours: str) -> tuple[Rename, Rename]:
    return (
        Rename((f"{torch}.lora_A",), (f"{ours}/a",), lambda w: (w.T,), lambda w: (w.T,)),
        Rename((f"{torch}.lora_B",), (f"{ours}/b",), lambda w: (w.T,), lambda w: (w.T,)),
    )


def _joined(*parts):
    return (np.concatenate([part.T for part in parts]),)


_BLOCK, _OURS = "blocks.{i}", "backbone/blocks/{i}"
VIT = (
    Rename(("cls_token",), ("backbone/cls_token",)),
    Rename(("pos_embed",), ("backbone/pos_embed",)),
    Rename(("patch_embed.proj.weight",), ("backbone/patch_embed/kernel",), _patches_to_kernel, _kernel_to_patches),
    _bias("patch_embed.proj", "backbone/patch_embed"),
    *_norm(f"{_BLOCK}.norm1", f"{_OURS}/norm1"),
    Rename((f"{_BLOCK}.attn.qkv.weight",), _qkv("kernel"), _thirds, _joined),
    Rename((f"{_BLOCK}.attn.qkv.bias",), _qkv("bias"), _thirds, _joined),
    _linear(f"{_BLOCK}.attn.proj", f"{_OURS}/attn/proj"),
    _bias(f"{_BLOCK}.attn.proj", f"{_OURS}/attn/proj"),
    *_norm(f"{_BLOCK}.norm2", f"{_OURS}/norm2"),
    *(row(f"{_BLOCK}.mlp.{fc}", f"{_OURS}/mlp/{fc}") for fc in ("fc1", "fc2") for row in (_linear, _bias)),
    *_norm("norm", "backbone/norm"),
    Rename(("head.last_layer.weight",), ("head/kernel",), lambda w: (w.T,), lambda w: (w.T,)),
    Rename(("head.last_layer.bias",), ("head/bias",)),
    # The top-down module: prompt is the prior, decoders are the feedback layers.
    Rename(("prompt",), ("top_down/prior",)),
    Rename(("top_down_transform",), ("top_down/transform",)),
    Rename(("decoders.{i}.linear.weight",), ("top_down/back/{i}",), lambda w: (w.T,), lambda w: (w.T,)),
    Rename(("decoders.{i}.linear2.weight",), ("top_down/out/{i}",), lambda w: (w.T,), lambda w: (w.T,)),
    # Low-rank deltas: one A for the joint qkv kernel, and its B in three.
    Rename((f"{_BLOCK}.attn.qkv.lora_A",), (f"lora/{_OURS}/attn/a",), lambda w: (w.T,), lambda w: (w.T,)),
    Rename((f"{_BLOCK}.attn.qkv.lora_B",), _qkv("b", "lora/"), _thirds, _joined),
    *_low_rank("decoders.{i}.linear", "lora/top_down/back/{i}"),
    *_low_rank("decoders.{i}.linear2", "lora/top_down/out/{i}"),
    # Deep prompts are two parameters in the release: the first block's, and all others'.
    Rename(
        ("prompt_embeddings", "deep_prompt_embeddings"),
        ("prompts/tokens",),
        lambda first, others: (np.concatenate([first, others]),),
        lambda tokens: (tokens[:1], tokens[1:]),
    ),
    Rename(("prompt_embeddings",), ("prompts/tokens",)),
)

# Classifiers of the task a backbone was trained on: always replaced by a head of our own.
_OTHER_HEADS = r"head\.(weight|bias)|head_dist\.(weight|bias)|pre_logits\..*"

# Names that give away a network which looks like one of ours and is not.
_OTHER_NETWORKS = {"dist_token": "a distilled DeiT", "register_tokens": "a ViT with register tokens"}

# What a user has to look at when a shape of this group differs.
_SIZED_BY = {
    "backbone": "config.backbone.size and config.backbone.patch",
    "head": "the number of classes of the data",
    "top_down": "config.backbone.size",
    "prompts": "config.prompts",
    "lora": "config.lora.rank",
}


def read(path: str) -> Arrays:
    """Reads a PyTorch checkpoint (.pth, .pt, .bin) or a .safetensors file as a flat dict of float32 arrays.

    A wrapping `model`, `model_state_dict` or `state_dict` and the prefixes `module.` and `enc.` are taken off. Pickles are only
    read with `torch.load(weights_only=True)`, which cannot run code.

    Raises:
      InputError: no such file, an unreadable or unknown one, or PyTorch is needed and not installed.
    """
    file = Path(os.path.expanduser(path))
    if os.path.isdir(file):
        raise InputError(f"{file} is a folder; give the weights file itself in the config.")
    if not os.path.isfile(file):
        raise InputError(f"There is no weights file at {file}; check the path in the config.")
    if file.suffix == ".safetensors":
        state = _read_safetensors(file)
    elif file.suffix in (".pth", ".pt", ".bin"):
        state = _read_torch(file)
    else:
        raise InputError(f"Weights file {file} has an unknown ending; give a .pth, .pt, .bin or .safetensors file.")
    return {re.sub(r"^(module\.)?(enc\.)?", "", name): array for name, array in state.items()}


def _read_safetensors(file: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: array.astype(np.float32) for name, array in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a complete safetensors file ({error}); copy or download it again.") from error
    except AttributeError as error:  # safetensors asks NumPy for a type that NumPy does not have
        raise InputError(f"{file} holds numbers of a type that cannot be read ({error}); convert it to float32.") from error


def _read_torch(file: Path) -> Arrays:
    import argparse

    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"Reading {file} needs PyTorch; `pip install torch` (the CPU build will do), or convert it to .safetensors."
        ) from error
    try:
        # DeiT files carry their training arguments, an argparse.Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # nearly any, when bytes are damaged
        # PyTorch's own texts advise to read the file with weights_only=False, which would run what it refused.
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{file} holds Python objects ({refused[1]}), not only tensors, and reading those could run code; "
                "save its dict of tensors alone, best as .safetensors."
            ) from error
        raise InputError(
            f"{file} is not a complete PyTorch file ({type(error).__name__}); copy or download it again."
        ) from error
    for key in ("model", "model_state_dict", "state_dict"):
        if isinstance(state, dict) and key in state:
            state = state[key]
            break
    try:
        return {str(name): tensor.detach().float().numpy() for name, tensor in state.items()}
    except (AttributeError, TypeError, RuntimeError) as error:  # anything but a dict, anything in it but dense tensors
        raise InputError(
            f"{file} holds no dict of plain tensors, alone or under model, model_state_dict or state_dict."
        ) from error


def from_torch(state: Arrays, last_blocks: int) -> tuple[Arrays, list[str]]:
    """Renames PyTorch arrays to our "/"-joined paths.

    Args:
      state: arrays by PyTorch name, prefixes taken off.
      last_blocks: how many blocks stand outside the scanned stack (see `ViT.last_blocks`).

    Returns:
      our arrays by path, and the names that the table does not know.

    Raises:
      ValueError: an array has not the axes of its name, or layers do not stack.
    """
    ours, unknown = _rename(state)
    return _stack(ours, last_blocks), unknown


def _rename(state: Arrays) -> tuple[Arrays, list[str]]:
    """`from_torch` with every layer on its own: `backbone/blocks/3/x`."""
    left, ours = dict(state), {}
    for row in VIT:
        for i in _layers(row.torch[0], left):
            names = [name.format(i=i) for name in row.torch]
            if all(name in left for name in names):
                theirs = [left.pop(name) for name in names]
                try:
                    arrays = row.forward(*theirs)
                except (ValueError, IndexError) as error:
                    found = ", ".join(f"{name} is {array.shape}" for name, array in zip(names, theirs, strict=True))
                    raise ValueError(f"{found}, which no network here has") from error
                ours |= dict(zip((path.format(i=i) for path in row.ours), arrays, strict=True))
    return ours, sorted(left)


def to_torch(ours: Arrays) -> Arrays:
    """Undoes `from_torch`: arrays by the release's names, without its prefix `enc.`."""
    left, state = _unstack(ours), {}
    for row in VIT:
        for i in _layers(row.ours[0], left):
            paths = [path.format(i=i) for path in row.ours]
            if all(path in left for path in paths):
                arrays = row.backward(*(np.asarray(left.pop(path)) for path in paths))
                state |= dict(zip((name.format(i=i) for name in row.torch), arrays, strict=True))
    if left:
        raise ValueError(f"the rename table has no line for {sorted(left)}")
    return {name: array for name, array in state.items() if array.size}


def _layers(pattern: str, names: Iterable[str]) -> list[int]:
    """The layer numbers for which `pattern` names something; [0] for a pattern without a layer."""
    if "{i}" not in pattern:
        return [0]
    regex = re.escape(pattern).replace(r"\{i\}", r"(\d+)")
    return sorted({int(match[1]) for name in names if (match := re.fullmatch(regex, name))})


_STACKED = r"(?P<stack>(?:lora/)?(?:backbone/blocks|top_down/(?:back|out)))"


def _stack(arrays: Arrays, last_blocks: int) -> Arrays:
    """`backbone/blocks/3/x` -> layer 3 of `backbone/blocks/x`, or `backbone/last_0/x` for a block outside the stack."""
    stacks: dict[str, dict[int, np.ndarray]] = {}
    out = {}
    for path, array in arrays.items():
        if match := re.fullmatch(_STACKED + r"/(?P<i>\d+)(?P<rest>/.*)?", path):
            stacks.setdefault(match["stack"] + (match["rest"] or ""), {})[int(match["i"])] = array
        else:
            out[path] = array
    depth = 1 + max((i for layers in stacks.values() for i in layers), default=-1)
    for path, layers in stacks.items():
        if "backbone/blocks" in path:
            for i in [i for i in layers if i >= depth - last_blocks]:
                out[path.replace("/blocks/", f"/last_{i - depth + last_blocks}/")] = layers.pop(i)
        if layers:
            if missing := [i for i in range(len(layers)) if i not in layers]:
                raise ValueError(f"{path} has no layer {missing[0]}")
            out[path] = np.stack([layers[i] for i in sorted(layers)])
    return out


def _unstack(arrays: Arrays) -> Arrays:
    """Undoes `_stack`."""
    stacked = max((len(array) for path, array in arrays.items() if "backbone/blocks/" in path), default=0)
    out = {}
    for path, array in arrays.items():
        if match := re.fullmatch(_STACKED + r"(?P<rest>/.*)?", path):
            out |= {f"{match['stack']}/{i}{match['rest'] or ''}": layer for i, layer in enumerate(array)}
        elif match := re.search(r"/last_(\d+)/", path):
            out[path.replace(match[0], f"/blocks/{stacked + int(match[1])}/")] = array
        else:
            out[path] = array
    return out


def _depth(names: Iterable[str]) -> int:
    """How many layers paths with layer numbers belong to."""
    matches = (re.match(_STACKED + r"/(?P<i>\d+)", name) for name in names)
    return 1 + max((int(match["i"]) for match in matches if match), default=-1)


def load(path: str, shapes: dict, *, last_blocks: int, wanted: str, optional: str = "") -> Arrays:
    """Reads from a file what a network needs of it, and says what is left.

    Args:
      path: see `read`.
      shapes: the network's parameters by path, anything with a shape.
      last_blocks: see `from_torch`.
      wanted: regex of the paths that this file has to give, all of them and no others.
      optional: regex of the paths that are taken too if the file has them; it has to have all of them, then.

    Returns:
      arrays by path, shaped as `shapes` says.

    Raises:
      InputError: a name is missing or unexpected, or a shape differs; all are listed.
    """
    # Compared layer by layer: names and numbers of layers are then those of the file.
    network = _unstack({name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in shapes.items()})
    state = read(path)
    try:
        arrays, unknown = _rename(state)
    except ValueError as error:
        raise InputError(f"{path} cannot be used: {error}.") from error
    if unexpected := [name for name in unknown if not re.fullmatch(_OTHER_HEADS, name)]:
        kind = next((kind for name, kind in _OTHER_NETWORKS.items() if name in unexpected), "another kind of network")
        raise InputError(f"{path} belongs to {kind}, which cannot be used: no network here has {_listed(unexpected)}.")
    if optional and all(any(re.fullmatch(optional, name) for name in names) for names in (arrays, network)):
        wanted = f"{wanted}|{optional}"
    needed, given = ([name for name in names if re.fullmatch(wanted, name)] for names in (network, arrays))
    if _depth(given) not in (0, _depth(needed)):
        raise InputError(
            f"{path} has {_depth(given)} layers, the network of the config has {_depth(needed)}; check config.backbone.size."
        )
    if missing := sorted(set(needed) - set(given)):
        raise InputError(
            f"{path} lacks {_listed(missing)}; it belongs to another kind or size of network than the config says."
        )
    if surplus := sorted(set(given) - set(needed)):
        raise InputError(f"{path} has {_listed(surplus)}, which the network of the config has not; check config.method.")
    chosen = {name: arrays[name] for name in needed}
    if (name := "backbone/pos_embed") in chosen:
        try:
            chosen[name] = resize_pos_embed(chosen[name], network[name].shape[1])
        except ValueError as error:
            raise InputError(f"{path} cannot be used: {error}.") from error
    wrong = [
        f"{name} is {array.shape} in the file and {network[name].shape} in the network"
        for name, array in chosen.items()
        if array.shape != network[name].shape
    ]
    if wrong:
        fields = _SIZED_BY[wrong[0].split("/")[0]]
        raise InputError(f"{path} does not fit the network of the config: {_listed(wrong, most=3)}; check {fields}.")
    if unused := sorted({name.split("/")[0] for name in set(arrays) - set(chosen)}):
        log.info("%s also holds %s, not used here.", path, ", ".join(unused))
    if unknown:
        log.info("%s also holds the classifier of its own task (%s), not used here.", path, ", ".join(unknown))
    return _stack(chosen, last_blocks)


def _listed(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def resize_pos_embed(embed: np.ndarray, num_tokens: int) -> np.ndarray:
    """Interpolates a position embedding `[1, 1 + g*g, D]` bicubically to `[1, num_tokens, D]`, the class token's apart.

    The kernel is PyTorch's (`F.interpolate(mode="bicubic", align_corners=False)`), as DeiT's and MAE's fine-tuning use it.

    Raises:
      ValueError: the tokens are not one class token and a square of patches.
    """
    if embed.shape[1:2] == (num_tokens,):
        return embed
    if embed.ndim != 3:
        raise ValueError(f"position embeddings are {embed.shape}, not [1, tokens, width]")
    old, new = (round((n - 1) ** 0.5) for n in (embed.shape[1], num_tokens))
    if old**2 + 1 != embed.shape[1] or new**2 + 1 != num_tokens:
        raise ValueError(f"position embeddings of {embed.shape[1]} tokens are not one class token and a square of patches")
    log.info("Interpolating position embeddings from %dx%d to %dx%d patches.", old, old, new, new)
    width = embed.shape[-1]
    patches = jnp.asarray(embed[0, 1:]).reshape(old, old, width)
    method = jax.image.ResizeMethod.CUBIC_PYTORCH
    patches = jax.image.resize(patches, (new, new, width), method, antialias=False)
    return np.concatenate([embed[:, :1], np.asarray(patches).reshape(1, new * new, width)], axis=1)
