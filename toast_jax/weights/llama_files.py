"""Weights of a LLaMA of any kind, read tensor by tensor so that the host holds one stacked parameter at a time.

Reads files of Hugging Face (`.safetensors` or PyTorch's `.bin`, single or sharded with an index, beside a `config.json`) and of
llama2.c (`.bin`, https://github.com/karpathy/llama2.c).
"""

import functools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax.config import peft_adapters
from toast_jax.errors import InputError, listed
from toast_jax.model.backbones.llama.config_json import entries, kind_of, stated
from toast_jax.model.backbones.llama.kinds import LLAMA
from toast_jax.model.backbones.llama.network import LLaMA
from toast_jax.model.backbones.llama.torch_names import NAMES
from toast_jax.model.backbones.rename_rules import Unusable
from toast_jax.weights.containers import TORCH, open_safetensors, read_tensors, shards
from toast_jax.weights.other_projects import known_names

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
_TORCH_INDEX = "pytorch_model.bin.index.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_FLOATS = ("F32", "F16", "BF16", "F64")


class Tensor(NamedTuple):
    """Holds the shape of an array in a file, and reads it on demand."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def load(path: str, shapes: dict, model: LLaMA, dtypes: dict, put: Callable) -> dict[str, jax.Array]:
    """Read the backbone.

    Args:
      path: a folder or a file.
      shapes: parameters of the network by path, anything with a shape; those of the backbone are read.
      model: the backbone, whose sizes must agree with a `config.json` beside the weights.
      dtypes: dtype to store each parameter in, by path.
      put: `(path, array) -> array`, places a parameter on its devices.

    Returns:
      arrays by path.

    Raises:
      InputError: a file is missing, damaged or of another network; names or shapes are listed.
    """
    in_file, needed = _fitting(path, shapes, model)
    loaded = {}
    for name, (names, turned) in needed.items():
        array = np.empty((len(names), *in_file[names[0]].shape[:: -1 if turned else 1]), dtypes[name])
        for layer, tensor in zip(array, names, strict=True):
            values = in_file[tensor].read()
            layer[...] = values.T if turned else values
        loaded[name] = put(name, array.reshape(shapes[name].shape))
        if not jnp.isfinite(loaded[name]).all():
            raise InputError(f"{path} has numbers that are not finite in {names[0]} or its like; copy or download it again.")
    return loaded


def _fitting(path: str, shapes: dict, model: LLaMA) -> tuple[dict[str, Tensor], dict[str, tuple[list[str], bool]]]:
    """Check the names and shapes in a file by its header; arguments and errors as in `load`.

    Returns:
      the tensors of the file by name; and for each parameter the names of its layers' tensors, and whether they are transposed.
    """
    place = Path(path).expanduser()
    if place.is_dir() or place.suffix in (".safetensors", ".json"):
        _check_config(place if place.is_dir() else place.parent, model)
    in_file, kind = tensors(place), f"{model.kind.title} of config.backbone.size {_of(model)}"
    needed = {name: _torch_names(name, leaf.shape) for name, leaf in shapes.items() if name.startswith("backbone/")}
    wanted = {name for names, _ in needed.values() for name in names}
    if missing := sorted(wanted - set(in_file)):
        raise InputError(
            f"{path} lacks {listed(missing, 3)}; it is of another kind or size of network than config.backbone.size."
        )
    if model.tied and {_EMBEDDING, _HEAD} <= set(in_file):
        embedding, head = in_file[_EMBEDDING], in_file.pop(_HEAD)
        if embedding.shape != head.shape or not np.array_equal(embedding.read(), head.read()):
            raise InputError(
                f"{path} has a {_HEAD} that differs from {_EMBEDDING}, but a {kind} uses one array "
                "for both; give weights of that size, or merge what tuned them."
            )
    if surplus := sorted(set(in_file) - wanted):
        raise InputError(f"{path} has {listed(surplus, 3)}, which no {kind} has.")
    for name, (names, turned) in needed.items():
        expected = shapes[name].shape[1:] if len(names) > 1 or "/blocks/" in name else shapes[name].shape
        for tensor in names:
            if in_file[tensor].shape != (expected[::-1] if turned else expected):
                remedy = f"; {_with_tokens(in_file[tensor].shape[0])}" if tensor == _EMBEDDING else "."
                raise InputError(
                    f"{path} does not fit config.backbone.size {_of(model)}: {tensor} is {in_file[tensor].shape} in the file, "
                    f"and {name} {tuple(shapes[name].shape)} in the network{remedy}"
                )
    return in_file, needed


def tensors(path: Path) -> dict[str, Tensor]:
    """List all tensors of a folder or a file, by Hugging Face's names."""
    path = file_in(path) or path
    if not path.is_file():
        peft_adapters.refuse_folder(path)
        raise InputError(
            f"There is no model.safetensors, no {INDEX} and no single .bin at {path}; correct --config.backbone.weights."
        )
    in_file = stored(path)
    peft_adapters.refuse_names(path, in_file)
    try:
        return known_names(in_file)
    except ValueError as error:
        raise InputError(f"{path} cannot be used: {error}.") from error


def stored(path: Path) -> dict[str, Tensor]:
    """List all tensors of a file, or of the shards that it names, by the names that they have there."""
    if is_llama2c(path):
        return _of_llama2c(path)
    return shards(path, _of_file) if path.suffix == ".json" else _of_file(path)


def file_in(folder: Path) -> Path | None:
    """Return the weights file in a folder, or the index of its shards; None without one, or with several `.bin`."""
    files = [file for name in (INDEX, "model.safetensors", _TORCH_INDEX) if (file := folder / name).is_file()][:1]
    files = files or [file for file in folder.glob("*.bin") if not file.name.startswith("tok")]
    return files[0] if len(files) == 1 else None


def is_llama2c(path: Path) -> bool:
    """Return whether a file is one of llama2.c, by its name and first bytes."""
    return path.suffix == ".bin" and path.is_file() and not _is_torch(path)


def _of_file(path: Path) -> dict[str, Tensor]:
    return _of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path)


def _as_float32(tensor) -> np.ndarray:
    return tensor.float().numpy()


def _of_torch(path: Path) -> dict[str, Tensor]:
    if not path.name.endswith(TORCH):
        raise InputError(f"Weights file {path} has an unknown ending; give a .safetensors, .bin or .pth file.")
    tensors = read_tensors(path, mmap=True)
    return {name: Tensor(tuple(array.shape), functools.partial(_as_float32, array)) for name, array in tensors.items()}


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    file = open_safetensors(path)
    out = {}
    for name in file.keys():  # noqa: SIM118 (not a dict)
        tensor = file.get_slice(name)
        if tensor.get_dtype() not in _FLOATS:
            raise InputError(f"{path} holds {name} as {tensor.get_dtype()}; give weights as float32, float16 or bfloat16.")
        out[name] = Tensor(tuple(tensor.get_shape()), functools.partial(file.get_tensor, name))
    return out


def _is_torch(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def _of_llama2c(path: Path) -> dict[str, Tensor]:
    """Read version 0: seven integers, then float32 arrays in this order, each for all layers."""
    numbers = np.fromfile(path, np.int32, count=7).astype(np.int64)
    if len(numbers) < 7 or (np.delete(numbers, 5) < 1).any() or numbers[0] % (2 * numbers[3]) or numbers[3] % numbers[4]:
        raise InputError(f"{path} is neither a PyTorch file nor one of llama2.c (version 0); give it as .safetensors.")
    width, hidden, depth, heads, kv_heads, vocabulary, length = map(int, numbers)
    head, kv = width // heads, width // heads * kv_heads
    of_layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "mlp.up_proj": (hidden, width),
    }
    outside = {"model.embed_tokens": (abs(vocabulary), width), "model.norm": (width,), "rotations": (length, head)}
    if vocabulary < 0:  # the head is not tied to the embedding
        outside["lm_head"] = (abs(vocabulary), width)
    count = sum(map(math.prod, outside.values())) + depth * sum(map(math.prod, of_layer.values()))
    size, expected = path.stat().st_size, 4 * (7 + count)
    if size != expected:
        raise InputError(f"{path} has {size:,} bytes where its header asks for {expected:,}; copy it again.")
    shapes = {"model.embed_tokens": outside.pop("model.embed_tokens")}
    shapes |= {f"model.layers.{i}.{part}": shape for part, shape in of_layer.items() for i in range(depth)} | outside
    out, data, start = {}, np.memmap(path, np.float32, "r", offset=28), 0
    for name, shape in shapes.items():
        array, start = data[start : start + math.prod(shape)].reshape(shape), start + math.prod(shape)
        turn = functools.partial(_halved, head=head) if name.endswith(("q_proj", "k_proj")) else np.asarray
        out[f"{name}.weight"] = Tensor(shape, functools.partial(turn, array))
    del out["rotations.weight"]
    return out


def _halved(weight: np.ndarray, head: int) -> np.ndarray:
    """Reorder the rows of a head from pairs 2i, 2i + 1 to pairs i, i + K / 2 (see `llama.rotate`)."""
    rows, width = weight.shape
    return weight.reshape(rows // head, head // 2, 2, width).transpose(0, 2, 1, 3).reshape(rows, width)


def _torch_names(name: str, shape: tuple[int, ...]) -> tuple[list[str], bool]:
    """Return the PyTorch names of a parameter's layers, and whether they are transposed."""
    pattern = name.replace("backbone/blocks/", "backbone/blocks/{i}/")
    row = next(row for row in NAMES.table if row.paths == (pattern,))
    turned = row.forward(np.empty((1, 2)))[0].shape == (2, 1)
    return [row.torch[0].format(i=i) for i in range(shape[0] if pattern != name else 1)], turned


def _of(model: LLaMA) -> str:
    return f"({model.depth} layers of width {model.width})"


def _check_config(folder: Path, model: LLaMA) -> None:
    """Check Hugging Face's `config.json` in a folder, if there is one, against the model.

    Raises:
      InputError: they differ, or the file is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        return
    try:
        content = {"model_type": LLAMA.model_type, **json.loads(file.read_text())}
        if kind_of(content) is not model.kind:
            raise InputError(f"{file} is of a {content['model_type']}, which is not a {model.kind.title}; give weights of one.")
        in_file, expected = stated(content, model.kind), entries(model)
    except Unusable as error:
        raise InputError(f"{file.parent} cannot be used: {error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is no config.json of a LLaMA ({error!r}); download it again.") from error
    for name, value in in_file.items():
        if value != expected[name]:
            remedy = _with_tokens(value) if name == "vocab_size" else "give weights of that size."
            raise InputError(f"{file} says {name} {value}, and config.backbone.size {expected[name]}; {remedy}")


def _with_tokens(vocabulary: int) -> str:
    """Return the remedy for a vocabulary of another size, often due to tokens that tuning added."""
    return (
        f"give weights of that size or, if tokens were added, set --config.backbone.vocabulary={vocabulary} and give the "
        "tokenizer of these weights in --config.data.tokenizer."
    )
