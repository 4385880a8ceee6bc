"""Export a tuned network as plain weights for timm or transformers."""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from toast_jax import trees
from toast_jax.data.images import sources
from toast_jax.data.text import tokenizer
from toast_jax.errors import InputError, listed
from toast_jax.export import tokenizer_json
from toast_jax.export.folder import Files
from toast_jax.model import families, steered
from toast_jax.model.backbones.export_formats import Format, Preprocessing
from toast_jax.model.backbones.normalize import statistics_of
from toast_jax.train import text_runs
from toast_jax.train.saved_run import SavedRun
from toast_jax.weights import places
from toast_jax.weights.containers import Arrays, write
from toast_jax.weights.rename import in_layout, stacked_depth, unstack

log = logging.getLogger(__name__)

# Reasons why parameters cannot be merged, by the first part of their paths.
_REASONS = {
    "top_down": "a signal that depends on the input",
    "prompts": "prompts, which are added tokens",
    "probe": "a head that pools tokens by attention",
}
# Files beside a tokenizer that transformers reads too.
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


def files(run: SavedRun, kind: str) -> Files:
    """Return the files of a folder that timm ("timm") or transformers ("hf") loads strictly.

    Raises:
      InputError: the library has no such network, or the method cannot be merged into plain weights.
    """
    family = families.of_config(run.config)
    if kind not in family.plain:
        others = [*family.plain, *(["stablehlo"] if family.reads == "images" else []), "release"]
        raise InputError(f"as={kind} is not written for a {family.title}; write as={' or as='.join(others)}.")
    plain = family.plain[kind]
    layers = merged(run)
    preprocessing = preprocessing_of(run) if family.reads == "images" else None
    config = plain.config(run.model.backbone, run.classes if preprocessing else (), preprocessing)
    arrays = named(layers, plain, run.model.backbone)  # after the refusals of `config`: only such networks have these names
    header = {"format": "pt"}  # transformers asks for it
    out: Files = {"model.safetensors": lambda path: write(path, arrays, header)}
    if preprocessing is None:
        out |= _tokenizer(run, config)
    elif kind == "hf":
        out["preprocessor_config.json"] = text_of(_image_processor(preprocessing))
    return {**out, "config.json": text_of(config)}


def named(layers: Arrays, plain: Format, backbone: Any) -> Arrays:
    """Return arrays by the names of a library, from a path for every layer of backbone and head."""
    naming, layers = plain.naming(backbone), dict(layers)
    head = {name: layers.pop(f"head/{name}") for name in ("kernel", "bias") if f"head/{name}" in layers}
    layout, state = in_layout(layers, naming.layout)
    state = {f"{naming.prefix}{name}": array for name, array in state.items()}
    if not head:  # of a language model
        return state
    kernel = head["kernel"].T
    parts = [kernel if part == naming.part else np.zeros_like(kernel) for part in range(naming.parts)]
    return state | {f"{layout.classifier}.weight": np.concatenate(parts, axis=1), f"{layout.classifier}.bias": head["bias"]}


def merged(run: SavedRun) -> Arrays:
    """Return the weights of a run without its method's additions, with a path for every layer.

    Raises:
      InputError: some additions cannot be merged.
    """
    family = families.of_config(run.config)
    # On the host, where products of float32 are float32.
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), run.params)
    try:
        params = steered.merged(run.method, params)
    except InputError:  # the additions cannot be merged; the error below names them
        pass
    flat = trees.flat(params)
    if rest := dict.fromkeys(path.split("/")[0] for path in flat if not path.startswith(("backbone/", "head/"))):
        why = listed([_REASONS.get(name, f"parameters that a plain network lacks ({name})") for name in rest])
        other = {
            "images": "stablehlo, which exports the whole network",
            "text": "release, which the PyTorch release loads, and to=FILE.pth",
        }
        raise InputError(
            f"The run in {run.folder} cannot be merged into plain weights, as its method {run.config.method} has {why}; write "
            f"as={other[family.reads]}."
        )
    return unstack(flat, family, stacked_depth(flat, family))


def preprocessing_of(run: SavedRun) -> Preprocessing:
    """Return how a run sees images at evaluation."""
    data = run.config.data
    return Preprocessing(data.resize, data.image_size, statistics_of(data), sources.is_stretched(data))


def text_of(content: dict[str, Any]) -> str:
    """Format a JSON file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _image_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """Build `preprocessor_config.json` for the processor of BiT, which resizes the shorter side and crops, or stretches."""
    mean, std = preprocessing.statistics
    square = {"height": preprocessing.size, "width": preprocessing.size}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if preprocessing.stretched else {"shortest_edge": preprocessing.resize},
        "resample": Image.Resampling.BILINEAR.value,
        "do_center_crop": not preprocessing.stretched,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _tokenizer(run: SavedRun, config: dict[str, Any]) -> Files:
    """Return the files of the tokenizer and add its begin and end tokens to `config`; log why there is none.

    An answer ends with the token that the run has learned: that of its chat template, or of a document.
    """
    try:
        file = tokenizer.file_of(places.tokenizer(run.config.data.tokenizer))
        words = text_runs.open_tokenizer(run.config)
        template = text_runs.open_template(run.config, words)
    except InputError as error:
        log.warning("The tokenizer is left out: %s", error)
        return {}
    ends = list(dict.fromkeys([template.stop, words.end] if template else [words.end]))
    config |= {"bos_token_id": words.begin, "eos_token_id": ends if len(ends) > 1 else ends[0]}
    chat: Files = {"chat_template.jinja": template.source} if template else {}
    if file.suffix == ".bin":
        return {name: text_of(content) for name, content in tokenizer_json.converted(file).items()} | chat
    names = [file.name, *(name for name in _TOKENIZER_FILES if (file.parent / name).is_file())]
    out: Files = {name: _copied(file.parent / name) for name in names}
    if file.suffix == ".model":  # without this file, transformers would not put the begin token before a text
        special = {"bos_token": words.begin, "eos_token": words.end}
        named = {key: name for key, token in special.items() for name, number in words.special.items() if number == token}
        stated = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": words.begin is not None, **named}
        out.setdefault("tokenizer_config.json", text_of(stated))
    return out | chat


def _copied(source: Path):
    return lambda path: path.write_bytes(source.read_bytes())
