"""Read and write weights files safely, as a flat dict of arrays by PyTorch name."""

import json
import logging
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from toast_jax import package_files
from toast_jax.errors import InputError, listed

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
Value = TypeVar("Value")

# Suffixes of PyTorch files.
TORCH = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
# Keys of the dicts of tensors in PyTorch's files. Averaged weights come first, as in timm.
_KEYS = ("state_dict_ema", "model_ema", "model", "model_state_dict", "state_dict", "teacher")
_LARGE, _DENSE = 2**28, 20  # bytes, and the highest plausible ratio of compression


def check_exists(file: str | os.PathLike, field: str) -> None:
    """Raise InputError, which names the field of the config, unless there is such a file or folder."""
    if not (os.path.isfile(file) or os.path.isdir(file)):
        raise InputError(f"There is no weights file at {file}; correct --config.{field}.")


def check_is_file(file: str | os.PathLike, field: str) -> None:
    """Raise InputError, which names the field of the config, unless there is such a file."""
    if os.path.isdir(file):
        raise InputError(f"{file} is a folder; give the weights file itself in --config.{field}.")
    check_exists(file, field)


def read(path: str, field: str = "backbone.weights") -> Arrays:
    """Read a file of PyTorch (see `TORCH`), .safetensors or .npz, or the shards of an index, as a flat dict of float32 arrays.

    Wrapping dicts (`model`, `state_dict`, ...) and prefixes of wrapping modules are removed. If a file has raw and averaged
    weights (`model_ema`, `state_dict_ema`), the averaged ones are read and the choice is logged. Pickles are read with
    `torch.load(weights_only=True)`, which cannot run code.

    Args:
      path: of the file.
      field: of the config that names the file, for the error if the file is missing.

    Raises:
      InputError: the file is missing, unreadable, of an unknown format or names an array twice, or PyTorch is not installed.
    """
    file = package_files.find(path)
    check_is_file(file, field)
    state = shards(file, _read) if file.suffix == ".json" else _read(file)
    out = {}
    for name, array in state.items():
        bare = re.sub(r"^((module|_orig_mod|backbone|enc)\.)*", "", name)
        if bare in out:
            raise InputError(f"{file} holds {bare} twice, under different prefixes; save the weights of one network alone.")
        out[bare] = array
    return out


def shards(index: Path, read: Callable[[Path], dict[str, Value]]) -> dict[str, Value]:
    """Read the shards that an index names, such as `model.safetensors.index.json`, each by `read`.

    Raises:
      InputError: the index is damaged, a shard is missing, or it lacks an array that the index names.
    """
    try:
        shard_of = json.loads(index.read_text())["weight_map"]
        names = sorted(set(shard_of.values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} is no index of shards; download it again.") from error
    if outside:
        raise InputError(f"{index} names the shard {outside[0]!r}, which is not beside it; download it again.")
    out: dict[str, Value] = {}
    for name in names:
        if not (index.parent / name).is_file():
            raise InputError(f"{index} names the shard {name}, which is not beside it; download it.")
        out |= read(index.parent / name)
    if missing := sorted(set(shard_of) - set(out)):
        raise InputError(f"{index} names {listed(missing, 3)}, which its shards have not; download them again.")
    return out


def _read(file: Path) -> Arrays:
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.name.endswith(TORCH):
        return {name: tensor.float().numpy() for name, tensor in read_tensors(file).items()}
    if file.suffix == ".npz":
        return _read_npz(file)
    raise InputError(f"Weights file {file} has an unknown ending; give a .pth, .pt, .bin, .safetensors or .npz file.")


def open_safetensors(file: Path):
    """Open a .safetensors file for reading its arrays one by one; InputError if it is incomplete."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a complete safetensors file ({error}); copy or download it again.") from error


def _read_safetensors(file: Path) -> Arrays:
    content = open_safetensors(file)
    try:
        return {name: content.get_tensor(name).astype(np.float32) for name in content.keys()}  # noqa: SIM118 (not a dict)
    except AttributeError as error:  # safetensors asks NumPy for a dtype that it lacks
        raise InputError(f"{file} holds numbers of a type that cannot be read ({error}); convert it to float32.") from error


def _read_npz(file: Path) -> Arrays:
    incomplete = f"{file} is not a complete .npz file"
    if not zipfile.is_zipfile(file):  # NumPy would treat it as a pickle
        raise InputError(f"{incomplete} (its end is missing); copy or download it again.")
    try:
        _check_sizes(file)
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except InputError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        if "Object arrays" in str(error):
            raise InputError(
                f"{file} holds Python objects, not only arrays, and reading those could run code; "
                "save its arrays of floats alone."
            ) from error
        raise InputError(f"{incomplete} ({type(error).__name__}); copy or download it again.") from error
    if others := [name for name, array in arrays.items() if getattr(array, "dtype", np.dtype("V")).kind != "f"]:
        raise InputError(f"{file} holds {listed(others)}, which are no arrays of floats; save its arrays of floats alone.")
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _check_sizes(file: Path) -> None:
    """Raise InputError for a decompression bomb: a small file that unpacks to a size implausible for weights."""
    with zipfile.ZipFile(file) as content:
        packed, unpacked = file.stat().st_size, sum(entry.file_size for entry in content.infolist())
    if unpacked > _LARGE and unpacked > _DENSE * packed:
        raise InputError(
            f"{file} of {packed:,} bytes would unpack to {unpacked:,}, which no weights do; download it again, from a place "
            "you trust."
        )


def read_tensors(file: Path, mmap: bool = False) -> dict:
    """Read the dict of CPU tensors in a PyTorch file; `mmap` leaves their values in the file until they are used.

    Raises:
      InputError: the file is damaged or holds anything but tensors, or PyTorch is not installed.
    """
    import argparse

    torch = _torch(f"Reading {file}")
    try:
        is_zip = zipfile.is_zipfile(file)
        if is_zip:
            _check_sizes(file)
        # DeiT files include their training arguments, an argparse.Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
    except InputError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        # PyTorch's own messages suggest weights_only=False, which would run the code that was refused.
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{file} holds Python objects ({refused[1]}), not only tensors, and reading those could run code; "
                "save its dict of tensors alone, best as .safetensors."
            ) from error
        if "TorchScript" in str(error):
            raise InputError(
                f"{file} is a TorchScript program, not a dict of tensors; save its state_dict() alone, best as .safetensors."
            ) from error
        raise InputError(
            f"{file} is not a complete PyTorch file ({type(error).__name__}); copy or download it again."
        ) from error
    state = _chosen(file, state, torch.Tensor)
    try:
        if any(tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() for tensor in state.values()):
            raise TypeError("a few numbers, repeated")
        tensors = {str(name): tensor.detach() for name, tensor in state.items()}
        if any(tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided for tensor in tensors.values()):
            raise TypeError("no plain numbers")
    except (AttributeError, TypeError, RuntimeError) as error:  # not a dict, or not of dense tensors
        raise InputError(
            f"{file} holds no dict of plain tensors, alone or under model, model_state_dict, state_dict or teacher."
        ) from error
    return tensors


def _chosen(file, state, tensor_type):
    """Return the weights in a training checkpoint, and log the choice if it has several sets."""
    key = next((key for key in _KEYS if state.get(key) is not None), None) if isinstance(state, dict) else None
    if key is None:
        return state
    sets = {name: value.values() for name, value in state.items() if isinstance(value, dict) and name != key}
    if others := [str(name) for name, values in sets.items() if any(isinstance(value, tensor_type) for value in values)]:
        log.info("%s holds several sets of weights: %s is used, %s not.", file, key, listed(others))
    return state[key]


def _torch(purpose: str):
    """Import PyTorch; InputError names the `purpose` if it is missing or too old."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{purpose} needs PyTorch; `pip install torch` (the CPU build will do), or use a .safetensors file."
        ) from error
    if not hasattr(torch.serialization, "safe_globals"):
        raise InputError(f"{purpose} needs PyTorch 2.5 or newer; this is {torch.__version__}.")
    return torch


def read_header(path: str) -> dict[str, str]:
    """Return the metadata of a .safetensors file; {} for other files."""
    file = package_files.find(path)
    return open_safetensors(file).metadata() or {} if file.suffix == ".safetensors" else {}


def check_writable(path: str | Path) -> None:
    """Raise InputError unless `write` can write a file: its suffix, its folder, and PyTorch if needed."""
    path = Path(path).expanduser()
    if path.suffix not in (".pth", ".safetensors"):
        raise InputError(f"{path} has an ending that is not written here; name it .pth or .safetensors.")
    if path.suffix == ".pth":
        _torch(f"Writing {path}")
    if path.is_dir() or not can_create(path):
        raise InputError(f"{path} cannot be written; give a file in a folder that exists and is yours.")


def can_create(path: Path) -> bool:
    """Return whether a path can be created, its missing parents included."""
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def write(path: str | Path, arrays: Arrays, header: dict[str, str], key: str = "model") -> None:
    """Write a .safetensors or .pth file atomically, in a folder that is created if it is missing.

    Args:
      path: the file.
      arrays: by PyTorch name.
      header: metadata of a .safetensors file; a .pth file has none.
      key: key of the arrays in a .pth file, as in the release's files; "" for the bare dict.

    Raises:
      InputError: the disk is full or fails.
    """
    path = Path(path).expanduser()
    partial = path.with_name(path.name + ".partial")
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pth":
            torch = _torch(f"Writing {path}")
            tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
            torch.save({key: tensors} if key else tensors, partial)
        else:
            from safetensors.numpy import save

            partial.write_bytes(save(arrays, metadata=header))
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError on a full disk
        partial.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written ({error}); free some space, or give another place.") from error
