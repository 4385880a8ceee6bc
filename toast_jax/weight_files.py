"""Weights files of other frameworks, opened safely: a path in, a flat dict of arrays by PyTorch name out."""

import os
import re
from pathlib import Path

import numpy as np

from toast_jax.errors import InputError

Arrays = dict[str, np.ndarray]


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
        raise InputError(f"There is no weights file at {file}; correct --config.backbone.weights or the field that names it.")
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
    if not hasattr(torch.serialization, "safe_globals"):
        raise InputError(f"Reading {file} needs PyTorch 2.5 or newer; this is {torch.__version__}.")
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
