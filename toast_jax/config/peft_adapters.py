"""Adapters of PEFT, which are no networks: refused wherever weights are named, with the way to merge them."""

import re
from collections.abc import Iterable
from pathlib import Path

from toast_jax.errors import InputError

FILE = "adapter_config.json"  # which PEFT writes beside an adapter
# What PEFT puts beside or around the layers of a network; without its prefix, low-rank names are also those of the release.
_NAME = re.compile(r"base_model\.model\..*\.(?:base_layer|lora_\w+|ia3_l|vera_lambda_\w+|hada_\w+|lokr_\w+|oft_\w+)(?:\.|$)")


def refusal(name: object) -> InputError:
    """Return the error for an adapter in a file, a folder or a repository."""
    return InputError(
        f"{name} is an adapter of PEFT, not a network; merge it into its network there (merge_and_unload, then "
        "save_pretrained), and give the folder of the result as backbone=FOLDER."
    )


def refuse_folder(path: str | Path) -> None:
    """Raise `refusal` for a folder with an adapter."""
    if (Path(path).expanduser() / FILE).is_file():
        raise refusal(path)


def refuse_names(path: object, names: Iterable[str]) -> None:
    """Raise `refusal` if the names in a file are those of an adapter, alone or with its network."""
    if any(_NAME.match(name) for name in names):
        raise refusal(path)
