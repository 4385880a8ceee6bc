"""Safe reading and writing of weights files: a flat dict of arrays by PyTorch name."""

import os
import re
import zipfile
from pathlib import Path

import numpy as np

from toast_jax import shipped
from toast_jax.errors import InputError, listed

Arrays = dict[str, np.ndarray]

_LARGE, _DENSE = 2**28, 20  # bytes, and the highest plausible ratio of compression


def read(path: str) -> Arrays:
    """Read a .pth, .pt, .bin, .safetensors or .npz file as a flat dict of float32 arrays.

    Dicts around the arrays (`model`, `model_state_dict`, `state_dict`, DINO's `teacher`) and the prefixes of modules around a
    backbone are removed. Pickles are read with `torch.load(weights_only=True)` alone, which cannot run code.

    Raises:
      InputError: the file is missing, unreadable, of an unknown format or names an array twice, or PyTorch is not installed.
    """
    file = shipped.find(path)
    if os.path.isdir(file):
        raise InputError(f"{file} is a folder; give the weights file itself in the config.")
    if not os.path.isfile(file):
        raise InputError(f"There is no weights file at {file}; correct --config.backbone.weights or the field that names it.")
    if file.suffix == ".safetensors":
        state = _read_safetensors(file)
    elif file.suffix in (".pth", ".pt", ".bin"):
        state = _read_torch(file)
    elif file.suffix == ".npz":
        state = _read_npz(file)
    else:
        raise InputError(f"Weights file {file} has an unknown ending; give a .pth, .pt, .bin, .safetensors or .npz file.")
    out = {}
    for name, array in state.items():
        bare = re.sub(r"^((module|_orig_mod|backbone|enc)\.)*", "", name)
        if bare in out:
            raise InputError(f"{file} holds {bare} twice, under different prefixes; save the weights of one network alone.")
        out[bare] = array
    return out


def _read_safetensors(file: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: array.astype(np.float32) for name, array in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a complete safetensors file ({error}); copy or download it again.") from error
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


def _read_torch(file: Path) -> Arrays:
    import argparse

    torch = _torch(f"Reading {file}")
    try:
        if zipfile.is_zipfile(file):
            _check_sizes(file)
        # DeiT files include their training arguments, an argparse.Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(file, map_location="cpu", weights_only=True)
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
    for key in ("model", "model_state_dict", "state_dict", "teacher"):
        if isinstance(state, dict) and key in state:
            state = state[key]
            break
    try:
        if any(tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() for tensor in state.values()):
            raise TypeError("a few numbers, repeated")
        return {str(name): tensor.detach().float().numpy() for name, tensor in state.items()}
    except (
        AttributeError,
        TypeError,
        RuntimeError,
        NotImplementedError,
    ) as error:  # not a dict, or not of dense tensors
        raise InputError(
            f"{file} holds no dict of plain tensors, alone or under model, model_state_dict, state_dict or teacher."
        ) from error


def _torch(purpose: str):
    """Import PyTorch, which only .pth files need."""
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
    from safetensors import safe_open

    file = shipped.find(path)
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata() or {}


def check_writable(path: str | Path) -> None:
    """Check that `write` can write a file: its ending, its folder, and PyTorch if needed.

    Raises:
      InputError: it cannot.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".pth", ".safetensors"):
        raise InputError(f"{path} has an ending that is not written here; name it .pth or .safetensors.")
    if path.suffix == ".pth":
        _torch(f"Writing {path}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written; give a file in a folder that exists and is yours.")


def write(path: str | Path, arrays: Arrays, header: dict[str, str], key: str = "model") -> None:
    """Write a .safetensors or .pth file atomically.

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
