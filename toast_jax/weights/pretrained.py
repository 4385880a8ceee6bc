"""Load the parameters of a network from a weights file, and check names and shapes."""

import logging
import re
from collections.abc import Callable, Sequence

import numpy as np

from toast_jax.config import peft_adapters
from toast_jax.errors import InputError, listed
from toast_jax.model.families import Family
from toast_jax.model.layers.patches import resize_positions
from toast_jax.weights.containers import read
from toast_jax.weights.other_projects import converted, other_network, unwrapped
from toast_jax.weights.rename import Arrays, depths_of, kind, kind_of_torch, layout_of, rename, stack, unstack

log = logging.getLogger(__name__)

# Further heads for the pre-training task; always dropped.
_OTHER_HEADS = r"head_dist\.(weight|bias)|pre_logits\..*"

# Fields for the user to check if a shape differs, by group of parameters.
_SIZED_BY = {
    "backbone": "config.backbone.size, and config.backbone.patch of a ViT",
    "head": "the number of classes of the data",
    "top_down": "config.backbone.size",
    "prompts": "config.prompts",
    "lora": "config.lora.rank",
    "ssf": "config.backbone.size",
    "adapter": "config.adapter.rank",
    "probe": "config.probe.queries and config.probe.reduction",
}


def load(
    path: str,
    shapes: dict,
    *,
    last_blocks: int,
    wanted: str,
    optional: Sequence[str] = (),
    identity: str = "",
    field: str = "backbone.weights",
    resize: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> Arrays:
    """Read the parameters of a network from a file, and log unused ones.

    Args:
      path: see `read`.
      shapes: parameters of the network by path, anything with a shape.
      last_blocks: see `from_torch`.
      wanted: regex of the paths to read; the file must have all of them.
      optional: regexes of further paths; if the file has any match of a regex, it must have all.
      identity: path of a matrix that is set to the identity if the file lacks it; "" for none.
      field: of the config that names the file.
      resize: fits position embeddings to a number of tokens; None: `resize_pos_embed`.

    Returns:
      arrays by path, shaped like `shapes`.

    Raises:
      InputError: a name is missing or unexpected, or a shape differs; all are listed.
    """
    # Compared layer by layer, so that errors show the names and layer numbers of the file.
    network = unstack({name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in shapes.items()})
    _, arrays, unknown = layers(path, field)
    if re.fullmatch(wanted, "head/bias") and "head/bias" not in arrays:
        # The classifier of a file becomes the head of a network for the same classes.
        arrays = {name.replace("classifier/", "head/"): array for name, array in arrays.items()}
    for regex in optional:
        if all(any(re.fullmatch(regex, name) for name in names) for names in (arrays, network)):
            wanted = f"{wanted}|{regex}"
    needed, present = ([name for name in names if re.fullmatch(wanted, name)] for names in (network, arrays))
    if present and kind(present) != kind(needed):
        raise InputError(
            f"{path} belongs to a {kind(present).title}, but the network of the config is a {kind(needed).title}; give a file "
            "of the backbone that the config names."
        )
    if depths_of(present) not in ((0,), depths_of(needed)):
        in_file, expected = ("-".join(map(str, depths_of(names))) for names in (present, needed))
        raise InputError(f"{path} has {in_file} layers, the network of the config has {expected}; check config.backbone.size.")
    present = _cut(path, present, needed)
    missing = sorted(set(needed) - set(present))
    if missing == [identity]:
        log.info("%s has no %s; it starts as the identity, as in the release.", path, identity)
        arrays[identity], missing = np.eye(len(network[identity]), dtype=np.float32), []
    if missing:
        if all(name.startswith("head/") for name in missing):
            raise _no_classifier(path)
        check = _deciding(needed, missing, "; check ")
        raise InputError(
            f"{path} lacks {listed(missing)}; it belongs to another kind or size of network than the config says{check}."
        )
    if surplus := sorted(set(present) - set(needed)):
        check = _deciding(needed, surplus, "") or "config.method"
        raise InputError(f"{path} has {listed(surplus)}, which the network of the config has not; check {check}.")
    chosen = {name: arrays[name] for name in needed}
    if (name := "backbone/pos_embed") in chosen:
        try:
            chosen[name] = (resize or resize_pos_embed)(chosen[name], network[name].shape[1])
        except ValueError as error:
            raise InputError(f"{path} cannot be used: {error}.") from error
    wrong = [
        f"{name} is {array.shape} in the file and {network[name].shape} in the network"
        for name, array in chosen.items()
        if array.shape != network[name].shape
    ]
    if wrong:
        fields = _SIZED_BY[wrong[0].split("/")[0]]
        raise InputError(f"{path} does not fit the network of the config: {listed(wrong, most=3)}; check {fields}.")
    if unused := sorted({name.split("/")[0] for name in set(arrays) - set(chosen)}):
        log.info("%s also holds %s, not used here.", path, ", ".join(unused))
    if unknown:
        log.info("%s also holds the classifier of its own task (%s), not used here.", path, ", ".join(unknown))
    return stack(chosen, last_blocks)


def _deciding(network, names, before):
    """Name the config fields that add these parameters, after the text `before`; "" if there are none."""
    rows = kind(network).decides.items()
    fields = dict.fromkeys(field for name in names for regex, field in rows if re.fullmatch(regex, name))
    return before + ", ".join(f"config.backbone.{field}" for field in fields) if fields else ""


def num_classes(path: str) -> int:
    """Return how many classes the classifier of a weights file has.

    Raises:
      InputError: the file has no classifier, or cannot be read; see `layers`.
    """
    _, arrays, _ = layers(path)
    for name in ("head/bias", "classifier/bias"):
        if name in arrays:
            return len(arrays[name])
    raise _no_classifier(path)


def _no_classifier(path):
    return InputError(f"{path} has no classifier to start from; set --config.head.start=random.")


def _cut(path, present, needed):
    """Drop the layers of a top-down module in the file that belong to blocks which the network does not steer."""
    in_file, steered = ({site for name in names if (site := _site(name)) is not None} for names in (present, needed))
    if in_file and in_file == {site for site in steered if site >= min(in_file)} < steered:
        raise InputError(
            f"{path} steers the last {len(in_file)} blocks, the network of the config {len(steered)}; name a module for as "
            f"many in --config.top_down, or tune with steered_blocks={len(in_file)}."
        )
    if steered and steered < in_file:
        log.info("%s steers the last %d blocks; only its layers of the last %d are used.", path, len(in_file), len(steered))
        return [name for name in present if _site(name) in {None, *steered}]
    return present


def _site(name) -> int | None:
    """Return the block or stage of a layer of a top-down module, or of its low-rank delta; None for other paths."""
    match = re.fullmatch(r"(?:lora/)?top_down/(?:back|out)[/_](\d+)(?:/.*)?", name)
    return int(match[1]) if match else None


def layers(path: str, field: str = "backbone.weights") -> tuple[Family, Arrays, list[str]]:
    """Read a weights file of any supported format, with a path for every layer (see `rename`); `field` as in `load`.

    Returns:
      the family (see `kind`), arrays by path, and the names of unusable classifiers of other tasks.

    Raises:
      InputError: the file is not one of weights, has names of another network, or values that are not finite.
    """
    return named(path, read(path, field))


def named(path: str, in_file: Arrays) -> tuple[Family, Arrays, list[str]]:
    """Rename the arrays of a file as `layers` does, by the PyTorch names that they have there."""
    peft_adapters.refuse_names(path, in_file)
    try:
        family, arrays, unknown = _renamed(in_file)
    except ValueError as error:
        raise InputError(f"{path} cannot be used: {error}.") from error
    if unexpected := [name for name in unknown if not re.fullmatch(_OTHER_HEADS, name)]:
        network, telling = other_network(unexpected)
        telling = [next((full for full in in_file if full.endswith(f".{name}")), name) for name in telling]
        raise InputError(f"{path} belongs to {network}, which cannot be used: no network here has {listed(telling)}.")
    if damaged := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise InputError(f"{path} has numbers that are not finite in {listed(damaged)}; copy or download it again.")
    return family, arrays, unknown


def _renamed(state):
    """Rename by the layout of a file, or else convert other projects' names and rename by the family's table."""
    dropped: list[str] = []
    state = unwrapped(state, dropped)
    if (match := layout_of(state)) is None:
        state = converted(state, dropped)
        return kind_of_torch(state), *rename(state)
    family, layout = match
    if reason := layout.refusal(state):
        raise ValueError(reason)
    unused = rf"{layout.unused}|{re.escape(layout.classifier)}\..+"
    if dropped := sorted({*dropped, *(name for name in state if re.fullmatch(unused, name))}):
        log.info("The weights file also holds %s, not used here.", listed(dropped))
    return family, *rename({name: array for name, array in state.items() if name not in dropped}, layout.table)


def resize_pos_embed(
    embed: np.ndarray, num_tokens: int, grid: tuple[int, int] | None = None, antialias: bool = False
) -> np.ndarray:
    """Interpolate position embeddings bicubically from `[1, s + g*g, D]` to `[1, num_tokens, D]`, where s is 0 or 1.

    A class token, s = 1, keeps its embedding. Without antialias, the kernel is that of PyTorch's `F.interpolate(mode="bicubic",
    align_corners=False)`, as in DeiT's and MAE's fine-tuning; with it, that of `antialias=True`.

    Args:
      embed: as in a file.
      num_tokens: of the network.
      grid: rows and columns of patches; None for a square and a class token.
      antialias: see `vit.features.Features`.

    Raises:
      ValueError: the tokens are not a square of patches, after a class token if the network has one.
    """
    is_square = grid is None or grid[0] == grid[1]
    if embed.shape[1:2] == (num_tokens,) and is_square:
        return embed
    if embed.ndim != 3:
        raise ValueError(f"position embeddings are {embed.shape}, not [1, tokens, width]")
    new = grid or (round((num_tokens - 1) ** 0.5),) * 2
    special = num_tokens - new[0] * new[1]
    old = round(max(0, embed.shape[1] - special) ** 0.5)
    if old**2 + special != embed.shape[1] or special not in (0, 1):
        token = "one class token and " if special else ""
        raise ValueError(f"position embeddings of {embed.shape[1]} tokens are not {token}a square of patches")
    log.info("Interpolating position embeddings from %dx%d to %dx%d patches.", old, old, *new)
    return np.asarray(resize_positions(embed, (old, old), new, antialias))
