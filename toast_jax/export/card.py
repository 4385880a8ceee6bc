"""The model card of an exported folder, `README.md`, from the result of its run."""

import contextlib
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toast_jax import hub
from toast_jax.data.text import documents
from toast_jax.errors import listed
from toast_jax.fields import CUSTOM, flat_fields
from toast_jax.model import families
from toast_jax.train.saved_run import SavedRun
from toast_jax.weights import places
from toast_jax.weights.named import NAMED

_FILES = {
    "model.safetensors": "the weights, float32, with the method's additions merged",
    "config.json": "the architecture and, of a network of images, the labels",
    "preprocessor_config.json": "size, crop and normalization of images",
    "network.jax_export": "the network as a program (StableHLO), with normalization, for any number of images",
    "weights.npz": "its weights, float32",
    "network.json": "labels, and size, crop and normalization of images",
    "predict.py": "loads the network and classifies images, without the package that tuned it",
}
_COUNTED = {"images": "examples", "text": "tokens"}  # by the row "count" of result.json
_LIBRARIES = {"timm": "timm", "hf": "transformers", "stablehlo": "jax"}
_USE = {
    ("timm", "images"): """```python
import timm

network = timm.create_model("hf-hub:OWNER/{name}", pretrained=True).eval()  # or local-dir:FOLDER
view = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
labels = network.pretrained_cfg["label_names"]
```""",
    ("hf", "images"): """```python
from transformers import pipeline

classify = pipeline("image-classification", "OWNER/{name}")  # or the path of this folder
classify("image.jpg")
```""",
    ("hf", "text"): """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

network = AutoModelForCausalLM.from_pretrained("OWNER/{name}")  # or the path of this folder
tokenizer = AutoTokenizer.from_pretrained("OWNER/{name}")
```

{prompt}""",
    ("hf without a tokenizer", "text"): """```python
from transformers import AutoModelForCausalLM

network = AutoModelForCausalLM.from_pretrained("OWNER/{name}")  # or the path of this folder
```

The tokenizer is not in this folder; take the one that came with the weights of the backbone.

{prompt}""",
    ("stablehlo", "images"): """```
pip install jax flatbuffers numpy pillow
python predict.py image.jpg
```

or, from Python, with `predict.py` on the path:

```python
facts, logits = predict.load(folder)
logits(pixels)  # uint8 [B, {size}, {size}, 3], any B, see predict.view
```

## How long it can be read

`network.jax_export` was written by jax {jax} for CPUs, NVIDIA GPUs and TPUs. JAX
[promises](https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees) that versions up to 6 months newer and
up to 3 weeks older can run it. Later versions often can, without a promise. To keep a network for longer, keep this version of
JAX, or the run, from which this folder can be written again.""",
}


_CARD = """---
{front}
---

# {name}

A {backbone}, tuned on {data} with method `{method}` by toast_jax {version}.{labels}

## Use

{use}

## Results

{results}

## What is in it

{listing}

## Origin

- Backbone: {source}
- Licence of the backbone: {licence}. It applies to this network too; the licence of the data may as well.
- Data: {data}

<details><summary>Config of the run</summary>

```json
{config}
```

</details>

## Upload

In this folder, after `hf auth login`, with a name of your own for OWNER:

```
{upload}
```
"""


def card(run: SavedRun, result: Mapping[str, Any], kind: str, name: str, files: Sequence[str]) -> str:
    """Return the text of the card.

    Args:
      run: the exported run.
      result: its `result.json`; paths in its config are those of the time of tuning.
      kind: "timm", "hf" or "stablehlo".
      name: of the folder.
      files: names of the other files in the folder.
    """
    config, family = run.config, families.of_config(run.config)
    data = config.data.get("name") or Path(config.data.get("root") or config.data.splits.train).name
    licence, source = _licence(result)
    facts = {"name": name, "jax": result["versions"]["jax"], "size": str(config.data.get("image_size", ""))}
    facts["prompt"] = _prompt(config.data.format, files) if family.reads == "text" else ""
    lacks = family.reads == "text" and not any(file.startswith("tokenizer.") for file in files)
    how = _USE[f"{kind} without a tokenizer" if lacks else kind, family.reads]
    use = re.sub(r"{(name|jax|size|prompt)}", lambda match: facts[match[1]], how)
    return _CARD.format(
        front="\n".join(
            f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in _front(run, result, kind, name, data)
        ),
        name=name,
        backbone=_network(family, run),
        data=data,
        method=config.method,
        version=result["versions"]["toast_jax"],
        labels=f" {len(run.classes)} classes: {listed(run.classes, 20)}." if family.reads == "images" else "",
        use=use,
        results="\n".join(_results(run, result)),
        listing="\n".join(f"- `{file}`: {_FILES.get(file, 'a file of the tokenizer')}" for file in files),
        source=source,
        licence=licence or "not recorded; look it up where the weights come from",
        config=json.dumps(_public(result["config"]), indent=2, ensure_ascii=False),
        upload=upload(name, "."),
    )


def _network(family, run):
    """Name the network by its kind and size, or its numbers where the size has no name."""
    backbone, size = run.model.backbone, run.config.backbone.size
    of = size if size != CUSTOM else f"of width {backbone.width} and depth {backbone.depth}"
    return f"{family.kind_of(backbone) if family.kind_of else family.title} {of}"


def _prompt(form: str, files: Sequence[str]) -> str:
    """Return how a question becomes the prompt that a language model was tuned with."""
    if form == "messages":
        has_template = "chat_template.jinja" in files
        return "It was tuned with the chat template of this folder: `tokenizer.apply_chat_template`." * has_template
    return f"It was tuned with this prompt for QUESTION:\n\n```\n{documents.PROMPTS[form]('QUESTION', True)}\n```"


def _front(run, result, kind, name, data) -> Iterator[tuple[str, Any]]:
    """Yield the metadata of the Hub; JSON values are valid YAML."""
    config = run.config
    task = {"images": "image-classification", "text": "text-generation"}[families.of_config(config).reads]
    licence, _ = _licence(result)
    yield "library_name", _LIBRARIES[kind]
    yield "pipeline_tag", task
    yield "tags", ["toast_jax", config.method]
    if licence:  # the Hub's names are those of SPDX in lower case; all others are "other"
        yield "license", "other" if " " in licence else licence.lower()
    weights = result["config"]["backbone"]["weights"]
    if hub.is_place(weights):
        yield "base_model", hub.parse(weights).repository
    accuracy = result.get("test", {}).get("accuracy")
    if accuracy is not None:
        measured = {"type": "accuracy", "value": accuracy}
        dataset = {"name": data, "type": data, "split": "test"}
        yield "model-index", [{"name": name, "results": [{"task": {"type": task}, "dataset": dataset, "metrics": [measured]}]}]


def upload(name: str, folder: str | Path) -> str:
    """Return the command that uploads a folder to the Hugging Face Hub."""
    return f"hf upload OWNER/{name} {folder} ."


def _results(run, result) -> list[str]:
    """Format the metrics of each split as a table, and the mean over the seeds of a sweep."""
    splits = [split for split in ("val", "test") if isinstance(result.get(split), dict)]
    if not splits:
        return ["Not evaluated."]
    names = dict.fromkeys(name for split in splits for name in result[split])
    cells = [["", *splits], ["---", *["--:"] * len(splits)]]
    titles = {"count": _COUNTED[families.of_config(run.config).reads]}
    cells += [[titles.get(name, name), *(_number(result[split].get(name)) for split in splits)] for name in names]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines += ["", f"Seed {result['seed']}, {result['steps']:,} steps, {result['tuned_parameters']['all']:,} tuned parameters."]
    accuracies = _of_seeds(run.folder, result)
    if len(accuracies) > 1:
        mean, deviation = (100 * of(accuracies.values()) for of in (statistics.mean, statistics.stdev))
        seeds = ", ".join(map(str, sorted(accuracies)))
        lines += ["", f"Test accuracy over the seeds {seeds}: {mean:.1f} +- {deviation:.1f} %; these weights are of one seed."]
    return lines


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else f"{value:,}"


def _of_seeds(folder, result) -> dict[int, float]:
    """Read the test accuracy by seed of the runs `seed_*` beside this one, which differ from it in the seed alone."""
    accuracies, own = {}, _without_seed(result["config"])
    for file in Path(folder).expanduser().resolve().parent.glob("seed_*/result.json"):
        # Runs without a test result are skipped.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            other = json.loads(file.read_text())
            if _without_seed(other["config"]) == own:
                accuracies[other["seed"]] = other["test"]["accuracy"]
    return accuracies


def _without_seed(config: Mapping) -> dict[str, Any]:
    return {name: value for name, value in flat_fields(config).items() if name not in ("seed", "name")}


def _licence(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return the licence of the backbone, "" if it is not recorded, and where the backbone comes from."""
    weights = result["config"]["backbone"]["weights"]
    recorded = result.get("weights", {}).get("backbone.weights", {})
    if hub.is_place(weights):
        return recorded.get("licence", ""), f"[{weights}](https://huggingface.co/{hub.parse(weights).repository})"
    file = Path(weights).name
    # Only these files are known to have this licence.
    name = next((name for name, entry in NAMED.items() if weights == name or file == Path(entry.address).name), None)
    if name is None:
        return "", file
    return recorded.get("licence", NAMED[name].licence), f"{name}, <{recorded.get('url', NAMED[name].address)}>"


def _public(tree: Any) -> Any:
    """Shorten the paths in a config to their last part, to keep those of a private machine out of the card."""
    if isinstance(tree, dict):
        return {key: _public(value) for key, value in tree.items()}
    is_path = isinstance(tree, str) and "/" in tree and not places.is_remote(tree)
    return Path(tree).name if is_path else tree
