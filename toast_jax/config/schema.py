"""What the fields of a config may hold: one row a field. `check.py` has what fields may not hold together."""

import difflib
from collections.abc import Mapping
from typing import Any

from toast_jax.data.images import sources
from toast_jax.data.images.corruptions import CORRUPTIONS
from toast_jax.data.text import documents
from toast_jax.fields import COUNT, FLAG, SEED, SHARE, TEXT, Choice, Regex, Rule, Several, Text, real, whole
from toast_jax.model.backbones import convnext, llama, vit
from toast_jax.model.layers.dtypes import DTYPES
from toast_jax.model.methods import LANGUAGE_METHODS, METHODS
from toast_jax.model.steered import HEAD_STARTS

# Names of `train.optim`.
OPTIMIZERS, SCHEDULES = ("sgd", "adamw"), ("epoch", "step")

# Of every run, on images or on text. Bounds that nobody comes near are those beyond which memory ends.
_RUN = {
    "name": Text("mine"),
    "task": Choice(("train", "evaluate")),
    "stage": Choice(("tune", "pretune")),
    "seed": SEED,
    "resume": FLAG,
    "backbone.weights": Text("weights/vit_b16_in1k.pth"),
    "backbone.dtype": Choice(DTYPES),
    "backbone.remat": FLAG,
    "top_down": TEXT,
    "tune_transform": FLAG,
    "checkpoint": TEXT,
    "lora.rank": whole(1, 4096),
    "lora.alpha": real(above=0.0),
    "task_weight": real(0.0),
    "variational_weight": real(0.0),
    "data.splits.train": Text("train"),
    "data.splits.val": TEXT,
    "data.splits.test": TEXT,
    "data.workers": whole(0, 1024),
    "batch_size": COUNT,
    "epochs": whole(1, 1_000_000),
    "optimizer.name": Choice(OPTIMIZERS),
    "optimizer.lr": real(0.0),
    "optimizer.base_batch_size": whole(0),
    "optimizer.schedule": Choice(SCHEDULES),
    "optimizer.momentum": SHARE,
    "optimizer.weight_decay": real(0.0),
    "optimizer.no_decay": Several(Regex()),
    "optimizer.clip": real(0.0),
    "ema": SHARE,
    "skip_nonfinite": whole(0),
    "log_every": COUNT,
    "eval_every": COUNT,
    "checkpoint_every": COUNT,
}
_IMAGES = {
    **_RUN,
    "method": Choice(METHODS),
    "backbone.drop_path": SHARE,
    "tuned_blocks": COUNT,
    "head.start": Choice(HEAD_STARTS),
    "head.tune": FLAG,
    "prompts.num": whole(1, 100_000),
    "prompts.deep": FLAG,
    "prompts.dropout": SHARE,
    "data.format": Choice(sources.READERS),
    "data.root": TEXT,
    "data.image_dir": TEXT,
    "data.name": TEXT,
    "data.split_file": TEXT,
    "data.num_classes": whole(0),
    "data.labels": FLAG,
    "data.resize": whole(1, 16_384),
    "data.image_size": whole(1, 16_384),
    "data.views": whole(0, 1_000_000),
    "data.verify": FLAG,
    "data.skip_corrupt": FLAG,
    "augment.flip": FLAG,
    "augment.min_crop_area": real(0.01, 1.0),
    "augment.randaugment_ops": whole(0, 100),
    "augment.randaugment_magnitude": real(0.0, 10.0),
    "augment.erasing": real(0.0, 1.0),
    "augment.mixup": real(0.0),
    "augment.cutmix": real(0.0),
    "augment.label_smoothing": SHARE,
    "warmup_epochs": whole(0),
    "keep_known": FLAG,
    "confusion": FLAG,
}
_VIT = {
    **_IMAGES,
    "backbone.family": Choice(("vit",)),
    "backbone.size": Choice(vit.SIZES),
    "backbone.patch": whole(1, 16_384),
    "backbone.pool": Choice(("cls", "mean")),
}
_CONVNEXT = {**_IMAGES, "backbone.family": Choice(("convnext",)), "backbone.size": Choice(convnext.SIZES)}
_LLAMA = {
    **_RUN,
    "method": Choice(LANGUAGE_METHODS),
    "backbone.family": Choice(("llama",)),
    "backbone.size": Choice(llama.SIZES),
    "data.format": Choice(documents.FORMATS),
    "data.tokenizer": Text("weights/llama1_7b"),
    "data.end": Choice(("end", "begin")),
    "data.length": whole(2, 1_000_000),
    "data.documents": whole(0),
    "data.held_out": SHARE,
    "microbatches": COUNT,
    "fsdp": COUNT,
    "warmup_epochs": real(0.0),
}
FAMILIES = {"vit": _VIT, "convnext": _CONVNEXT, "llama": _LLAMA}

_TASK = {"name": Text("mine"), "task": TEXT}
_LOOKS = {**_TASK, "images": TEXT, "weights": TEXT, "batch_size": COUNT}
TASKS = {
    "predict": {**_LOOKS, "run": TEXT, "attention": FLAG},
    "visualize": {**_LOOKS, "runs": Several(TEXT), "most": COUNT},
    "attention_metrics": {
        **_LOOKS,
        "runs": Several(TEXT),
        "objects": TEXT,
        "only_annotated": FLAG,
        "threshold_split": Choice(("", "train", "val", "test")),
        "shares": Several(real(above=0.0, below=1.0)),
        "steps": COUNT,
        "most": whole(0),
        "seed": SEED,
    },
    "corruptions": {
        **_LOOKS,
        "runs": Several(TEXT),
        "kinds": Several(Choice(CORRUPTIONS), least=1),
        "severities": Several(whole(1, 5), least=1),
        "most": whole(0),
        "seed": SEED,
    },
    "generate": {
        **_TASK,
        "run": TEXT,
        "weights": TEXT,
        "tokenizer": TEXT,
        "prompt": TEXT,
        "file": TEXT,
        "format": Choice(("", *documents.FORMATS)),
        "most": COUNT,
        "temperature": real(0.0),
        "top_p": real(most=1.0, above=0.0),
        "seed": SEED,
        "batch_size": COUNT,
    },
    "convert": {**_TASK, "source": TEXT, "target": TEXT, "sha256": TEXT, "weights": TEXT},
    "table": {**_TASK, "sweeps": Several(TEXT)},
    "demo": {
        **_TASK,
        "seeds": Several(SEED, least=1),
        "rows": Several(TEXT, least=1),
        "attention_scenes": COUNT,
        "shown_scenes": COUNT,
    },
    "demo_language": {
        **_TASK,
        "seeds": Several(SEED, least=1),
        "rows": Several(TEXT, least=1),
        "weights": Text("weights/stories15m"),
        "tales.text": COUNT,
        "tales.train": COUNT,
        "tales.val": COUNT,
        "tales.test": COUNT,
        "shown": COUNT,
    },
    "prepare_data": {
        **_TASK,
        "datasets": Several(TEXT),
        "root": Text("data/tfds"),
        "manual": TEXT,
        "check_disk": FLAG,
    },
}
# Fields of tasks that hold configs of their own.
CONFIGS = {"generate": ("network",), "demo": ("runs",), "demo_language": ("pretune", "not_tuned", "speaker", "runs")}
# Beside the fields of its runs.
SWEEP = {"sweep.seeds": Several(SEED, least=1), "sweep.together": whole(0), "sweep.at_once": whole(0), "sweep.shard": TEXT}


def problems(fields: Mapping[str, Any], rows: Mapping[str, Rule]) -> dict[str, str]:
    """By name of a field, a sentence for each that is unknown, missing, or holds what its row refuses.

    Args:
      fields: of a config, by dotted name (`fields.flat_fields`).
      rows: what they may hold.
    """
    found = {}
    for name, value in fields.items():
        if name not in rows:
            near = difflib.get_close_matches(name, list(rows), n=3)
            found[name] = f"The config has no field {name}; the nearest are {', '.join(near or rows)}."
        elif refusal := rows[name].refusal(value):
            found[name] = f"config.{name} is {value!r}; {refusal}."
    for name in rows.keys() - fields.keys():
        found[name] = f"config.{name} is missing; start from a config of configs/, which has every field."
    return {name: found[name] for name in sorted(found, key=[*fields, *rows].index)}
