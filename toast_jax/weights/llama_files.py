"""A LLaMA's own weights, read tensor by tensor: no more than one stacked parameter is on the host at a time.

Files of Hugging Face (`.safetensors`, alone or in shards with an index, in a folder with `config.json`), of llama2.c (`.bin`,
https://github.com/karpathy/llama2.c) and of PyTorch, of which the last is read whole.
"""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax.errors import InputError, listed
from toast_jax.model.backbones.llama import LLaMA, RopeScaling
from toast_jax.model.backbones.llama_names import NAMES
from toast_jax.weights.files import read
from toast_jax.weights.formats import known_names

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16", "F64")


class Tensor(NamedTuple):
    """An array that is still in its file."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def load(path: str, shapes: dict, model: LLaMA, dtypes: dict, put: Callable) -> dict[str, jax.Array]:
    """Reads the backbone.

    Args:
      path: a folder or a file.
      shapes: the network's parameters by path, anything with a shape; those of the backbone are read.
      model: the backbone, whose sizes a `config.json` beside the weights has to have.
      dtypes: by path, what each parameter is stored as.
      put: `(path, array) -> array`, puts a parameter where it is to be.

    Returns:
      arrays by path.

    Raises:
      InputError: a file is missing, damaged or of another network; names or shapes are listed.
    """
    place = Path(path).expanduser()
    if place.is_dir() or place.suffix in (".safetensors", ".json"):
        _check_config(place if place.is_dir() else place.parent, model)
    theirs = tensors(place)
    needed = {name: _theirs(name, leaf.shape) for name, leaf in shapes.items() if name.startswith("backbone/")}
    wanted = {name for names, _ in needed.values() for name in names}
    if missing := sorted(wanted - set(theirs)):
        raise InputError(
            f"{path} lacks {listed(missing, 3)}; it is of another kind or size of network than config.backbone.size."
        )
    if surplus := sorted(set(theirs) - wanted):
        raise InputError(f"{path} has {listed(surplus, 3)}, which no LLaMA of config.backbone.size {_of(model)} has.")
    for name, (names, turned) in needed.items():
        expected = shapes[name].shape[1:] if len(names) > 1 or "/blocks/" in name else shapes[name].shape
        for one in names:
            if theirs[one].shape != (expected[::-1] if turned else expected):
                raise InputError(
                    f"{path} does not fit config.backbone.size {_of(model)}: {one} is {theirs[one].shape} in the file, and "
                    f"{name} {tuple(shapes[name].shape)} in the network."
                )
    loaded = {}
    for name, (names, turned) in needed.items():
        array = np.empty((len(names), *theirs[names[0]].shape[:: -1 if turned else 1]), dtypes[name])
        for layer, one in zip(array, names, strict=True):
            tensor = theirs[one].read()
            layer[...] = tensor.T if turned else tensor
        loaded[name] = put(name, array.reshape(shapes[name].shape))
        if not jnp.isfinite(loaded[name]).all():
            raise InputError(f"{path} has numbers that are not finite in {names[0]} or its like; copy or download it again.")
    return loaded


def tensors(path: Path) -> dict[str, Tensor]:
    """Everything in a folder or a file, by the names of Hugging Face."""
    if path.is_dir():
        found = [one for name in (INDEX, "model.safetensors") if (one := path / name).is_file()][:1]
        found = found or [one for one in path.glob("*.bin") if not one.name.startswith("tok")]
        path = found[0] if len(found) == 1 else path
    if not path.is_file():
        raise InputError(
            f"There is no model.safetensors, no {INDEX} and no single .bin at {path}; correct --config.backbone.weights."
        )
    if path.suffix == ".json":
        return _of_shards(path)
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    if path.suffix == ".bin" and not _is_torch(path):
        return _of_llama2c(path)
    return {name: Tensor(array.shape, lambda a=array: a) for name, array in known_names(read(str(path))).items()}


def _of_shards(index: Path) -> dict[str, Tensor]:
    try:
        shard_of = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(shard_of.values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} is no index of shards; download it again.") from error
    if outside:
        raise InputError(f"{index} names the shard {outside[0]!r}, which is not beside it; download it again.")
    out = {}
    for shard in shards:
        if not (index.parent / shard).is_file():
            raise InputError(f"{index} names the shard {shard}, which is not beside it; download it.")
        out |= _of_safetensors(index.parent / shard)
    if missing := sorted(set(shard_of) - set(out)):
        raise InputError(f"{index} names {listed(missing, 3)}, which its shards have not; download them again.")
    return out


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a complete safetensors file ({error}); copy or download it again.") from error
    out = {}
    for name in file.keys():  # noqa: SIM118 (it is no dict)
        if name.endswith(".rotary_emb.inv_freq"):  # of old versions; computed here
            continue
        tensor = file.get_slice(name)
        if tensor.get_dtype() not in _FLOATS:
            raise InputError(f"{path} holds {name} as {tensor.get_dtype()}; give weights as float32, float16 or bfloat16.")
        out[name] = Tensor(tuple(tensor.get_shape()), lambda name=name: file.get_tensor(name))
    return out


def _is_torch(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def _of_llama2c(path: Path) -> dict[str, Tensor]:
    """Version 0: seven integers, then float32 arrays in this order, those of all layers together."""
    numbers = np.fromfile(path, np.int32, count=7).astype(np.int64)
    if len(numbers) < 7 or (np.delete(numbers, 5) < 1).any() or numbers[0] % (2 * numbers[3]) or numbers[3] % numbers[4]:
        raise InputError(f"{path} is neither a PyTorch file nor one of llama2.c (version 0); give it as .safetensors.")
    width, hidden, depth, heads, kv_heads, vocabulary, length = map(int, numbers)
    head, kv = width // heads, width // heads * kv_heads
    layer = "model.layers.{i}"
    shapes = {
        "model.embed_tokens": (abs(vocabulary), width),
        f"{layer}.input_layernorm": (depth, width),
        f"{layer}.self_attn.q_proj": (depth, width, width),
        f"{layer}.self_attn.k_proj": (depth, kv, width),
        f"{layer}.self_attn.v_proj": (depth, kv, width),
        f"{layer}.self_attn.o_proj": (depth, width, width),
        f"{layer}.post_attention_layernorm": (depth, width),
        f"{layer}.mlp.gate_proj": (depth, hidden, width),
        f"{layer}.mlp.down_proj": (depth, width, hidden),
        f"{layer}.mlp.up_proj": (depth, hidden, width),
        "model.norm": (width,),
        "rotations": (length, head),
        "lm_head": (abs(vocabulary), width),
    }
    if vocabulary > 0:  # the head is the embedding
        del shapes["lm_head"]
    size, sizes = path.stat().st_size, [math.prod(shape) for shape in shapes.values()]
    if size != 4 * (7 + sum(sizes)):
        raise InputError(f"{path} has {size:,} bytes where its header asks for {4 * (7 + sum(sizes)):,}; copy it again.")
    out, data, start = {}, np.memmap(path, np.float32, "r", offset=28), 0
    for (name, shape), count in zip(shapes.items(), sizes, strict=True):
        array, start = data[start : start + count].reshape(shape), start + count
        turn = name.endswith(("q_proj", "k_proj"))
        for i in range(depth if "{i}" in name else 1):
            one = array[i] if "{i}" in name else array
            out[f"{name.format(i=i)}.weight"] = Tensor(one.shape, lambda a=one, turn=turn: _halved(a, head) if turn else a)
    del out["rotations.weight"]
    return out


def _halved(weight: np.ndarray, head: int) -> np.ndarray:
    """Orders the rows of a head from pairs 2i, 2i + 1 to pairs i, i + K / 2 (see `llama.rotate`)."""
    rows, width = weight.shape
    return weight.reshape(rows // head, head // 2, 2, width).transpose(0, 2, 1, 3).reshape(rows, width)


def _theirs(name: str, shape: tuple[int, ...]) -> tuple[list[str], bool]:
    """The names of a parameter's layers, and whether a layer is turned around."""
    pattern = name.replace("backbone/blocks/", "backbone/blocks/{i}/")
    row = next(row for row in NAMES.table if row.ours == (pattern,))
    turned = row.forward(np.empty((1, 2)))[0].shape == (2, 1)
    return [row.torch[0].format(i=i) for i in range(shape[0] if pattern != name else 1)], turned


def _of(model: LLaMA) -> str:
    return f"({model.depth} layers of width {model.width})"


def _check_config(folder: Path, model: LLaMA) -> None:
    """Raises InputError unless the `config.json` of Hugging Face in a folder, if there is one, is of this model."""
    file = folder / "config.json"
    if not file.is_file():
        return
    try:
        theirs = json.loads(file.read_text())
        if (kind := theirs.get("model_type", "llama")) != "llama":
            raise InputError(f"{file} is of a {kind}, which is not a LLaMA; give weights of one.")
        heads = theirs["num_attention_heads"]
        rope = {**theirs, **(theirs.get("rope_scaling") or {}), **(theirs.get("rope_parameters") or {})}
        pairs = {
            "hidden_size": (theirs["hidden_size"], model.width),
            "num_hidden_layers": (theirs["num_hidden_layers"], model.depth),
            "num_attention_heads": (heads, model.num_heads),
            "num_key_value_heads": (theirs.get("num_key_value_heads") or heads, model.num_kv_heads),
            "intermediate_size": (theirs["intermediate_size"], model.hidden),
            "vocab_size": (theirs["vocab_size"], model.vocabulary),
            "rms_norm_eps": (theirs.get("rms_norm_eps", 1e-6), model.norm_eps),
            "rope_theta": (rope.get("rope_theta", 10_000.0), model.rope_theta),
            "rope_scaling": (_scaling(rope), model.rope_scaling),
            "tie_word_embeddings": (theirs.get("tie_word_embeddings", False), model.tied),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is no config.json of a LLaMA ({error!r}); download it again.") from error
    for name, (found, ours) in pairs.items():
        if found != ours:
            raise InputError(f"{file} says {name} {found}, and config.backbone.size {ours}; give weights of that size.")


def _scaling(rope: dict) -> RopeScaling | str | None:
    """What a `config.json` says of its rotations: how they are scaled, or the name of a way that is not known here."""
    kind = rope.get("rope_type", rope.get("type", "default" if "factor" not in rope else "linear"))
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return RopeScaling(*(rope[name] for name in names))
    return None if kind == "default" else kind
