"""The fields of the tasks that are not a single run, one row each. Imports no JAX, as configs are read before it is loaded."""

from typing import Any

from ml_collections import ConfigDict

from toast_jax.config.arguments import arguments
from toast_jax.config.paper_recipes import SEEDS
from toast_jax.config.run_fields import TEMPLATES, language
from toast_jax.data.images.corruptions import CORRUPTIONS, SEVERITIES
from toast_jax.data.text.documents import FORMATS
from toast_jax.fields import COUNT, FLAG, SEED, TEXT, Choice, Field, Several, Text, nested, real, whole

_RUNS = Field((), Several(TEXT), "folders of runs to compare")
_IMAGES = Field("test", TEXT, "a split of the first run's data (train, val, test), or folders and images joined by +")
_WEIGHTS = Field("", TEXT, "weights of the backbone, if the file has moved since the run")
_MODULES = {
    "top_down": Field("", TEXT, "pre-tuned top-down module, if the file has moved since the run"),
    "module": Field("", TEXT, "pre-tuned module of the method, if the file has moved since the run"),
}
# Where the data of the first run is now.
_DATA = {
    f"data.{name}": Field("", TEXT, f"{what}, if it has moved since the run")
    for name, what in {
        "root": "folder of the data",
        "image_dir": "json, table: folder of the images under data.root",
        "class_names": "file of class names",
        "split_file": "vtab: published list of images",
        "splits.train": "training split",
        "splits.val": "validation split",
        "splits.test": "test split",
    }.items()
}
# Fields of a run by the names that tasks which read one have for them.
OF_SAVED = {"backbone.weights": "weights", "data.tokenizer": "tokenizer", "data.template": "template"}
_PROMPTED = {
    "tokenizer": Field("", TEXT, "tokenizer, if the file has moved since the run"),
    "format": Field("", Choice(("", *FORMATS)), "prompt format of a question; '' for the format of the run"),
    "template": Field("", Choice(("", *TEMPLATES)), "format messages: chat template; '' for that of the run"),
}
_BATCH_SIZE = Field(32, COUNT, "images per step, over all devices")
_SEVERAL_SEEDS = Several(SEED, least=1)
_ROWS = Field((), Several(TEXT, least=1), "names of the runs to compare")

EXPORTS = ("release", "timm", "hf", "stablehlo", "hub")

_FIELDS = {
    "predict": {
        "run": Field("", TEXT, "folder of the run"),
        "images": Field("", TEXT, "a folder, searched recursively; a table, a zip archive, or an image; -: paths from stdin"),
        "attention": Field(True, FLAG, "draw where the network looks"),
        "probabilities": Field(False, FLAG, "write the probability of every class, not only of the best"),
        "npz": Field(False, FLAG, "also write predictions.npz: images, probabilities and classes, as arrays"),
        "weights": _WEIGHTS,
        **_MODULES,
        "batch_size": _BATCH_SIZE,
    },
    "visualize": {
        "runs": _RUNS,
        "images": _IMAGES,
        "most": Field(12, COUNT, "maximum number of images, evenly spaced"),
        **_DATA,
        "weights": _WEIGHTS,
        **_MODULES,
        "batch_size": _BATCH_SIZE,
    },
    "attention_metrics": {
        "runs": _RUNS,
        "images": _IMAGES,
        "objects": Field("", TEXT, "JSON file of boxes, folder of masks, or TFDS feature; '' for deletion and insertion"),
        **_DATA,
        "weights": _WEIGHTS,
        **_MODULES,
        "only_annotated": Field(False, FLAG, "leave out images without a box or a mask"),
        "threshold_split": Field(
            "val", Choice(("", "train", "val", "test")), "split to pick the best threshold on; '' for the measured images"
        ),
        "shares": Field(
            (0.1, 0.25, 0.5),
            Several(real(above=0.0, below=1.0)),
            "measure the IoU of these shares of the pixels",
        ),
        "steps": Field(16, COUNT, "steps of deletion and insertion"),
        "most": Field(0, whole(0), "maximum number of images, evenly spaced; 0: all"),
        "seed": Field(0, SEED, "seed of the bootstrap and of the order of equal cells"),
        "batch_size": _BATCH_SIZE,
    },
    "corruptions": {
        "runs": _RUNS,
        "images": Field("test", TEXT, "a split of the first run's data: train, val or test"),
        "kinds": Field(tuple(CORRUPTIONS), Several(Choice(CORRUPTIONS), least=1), "corruptions"),
        "severities": Field(SEVERITIES, Several(whole(1, 5), least=1), "severities of each corruption"),
        **_DATA,
        "weights": _WEIGHTS,
        **_MODULES,
        "most": Field(0, whole(0), "maximum number of images, evenly spaced; 0: all"),
        "seed": Field(0, SEED, "seed of the corruptions and of the bootstrap"),
        "batch_size": _BATCH_SIZE,
    },
    "generate": {
        "run": Field("", TEXT, "folder of a run on text"),
        "weights": _WEIGHTS,
        **_MODULES,
        **_PROMPTED,
        "prompt": Field("", TEXT, "question to answer; '' to ask in the terminal"),
        "file": Field("", TEXT, "questions to answer: a .jsonl file"),
        "most": Field(128, COUNT, "maximum number of new tokens"),
        "temperature": Field(0.7, real(0.0), "temperature of sampling, 0.7 as in the release; 0: greedy"),
        "top_p": Field(1.0, real(most=1.0, above=0.0), "sample from the likeliest tokens with this total probability"),
        "seed": Field(42, SEED, "seed of sampling"),
        "batch_size": Field(8, COUNT, "questions of a file to answer at once"),
    },
    "score": {
        "run": Field("", TEXT, "folder of a run on text"),
        "choices": Field("", TEXT, "multiple choice: a .jsonl file of context, choices and answer"),
        "questions": Field("", TEXT, "exact match and F1 of generated answers: a .jsonl file of question and answer"),
        "text": Field("", TEXT, "perplexity: a file of text, in the format of the run"),
        "weights": _WEIGHTS,
        **_MODULES,
        **_PROMPTED,
        "length": Field(0, whole(0), "text: tokens of a sequence; 0: as in the run"),
        "most": Field(128, COUNT, "questions: maximum number of new tokens"),
        "seed": Field(0, SEED, "seed of the bootstrap"),
        "batch_size": Field(8, COUNT, "sequences at once, over all devices"),
    },
    "relevance": {
        "run": Field("", TEXT, "folder of a run on text"),
        "prompt": Field("", TEXT, "question to look at"),
        "answer": Field("", TEXT, "its answer; '' to generate one"),
        "file": Field("", TEXT, "questions to look at, with or without answers: a .jsonl file"),
        "weights": _WEIGHTS,
        **_MODULES,
        **_PROMPTED,
        "most": Field(128, COUNT, "maximum number of new tokens"),
    },
    "convert": {
        "source": Field("", TEXT, "folder of a run, file of weights, its name, or its gs:// address"),
        "target": Field("", TEXT, "what to write: a .pth or .safetensors file, or a folder that does not exist yet"),
        "format": Field("release", Choice(EXPORTS), "release: a file; timm, hf (transformers), stablehlo, hub: a folder"),
        "names": Field("", TEXT, "names of a backbone's arrays, such as dinov3_timm; '' for the release's"),
        "sha256": Field("", TEXT, "expected SHA-256 of the source; '' for no check"),
        "weights": _WEIGHTS,
        **_MODULES,
    },
    "table": {
        "sweeps": Field((), Several(TEXT), "folders of sweeps"),
        "reference": Field("", TEXT, "fewshot: method, or row, to compare the others with; '' for the first method"),
    },
    "demo": {
        "seeds": Field((42, 44, 82), _SEVERAL_SEEDS, "seeds of every run"),
        "attention_scenes": Field(200, COUNT, "test scenes to measure attention on"),
        "shown_scenes": Field(6, COUNT, "scenes in the report"),
        "rows": _ROWS,
    },
    "demo_segment": {
        "seeds": Field((42, 44, 82), _SEVERAL_SEEDS, "seeds of every run"),
        "attention_scenes": Field(50, COUNT, "test scenes to measure attention on"),
        "shown_scenes": Field(6, COUNT, "scenes in the report"),
        "rows": _ROWS,
    },
    "demo_language": {
        "weights": Field("weights/stories15m", Text("weights/stories15m"), "folder of a language model and its tokenizer"),
        "seeds": Field((42,), _SEVERAL_SEEDS, "seeds of every run"),
        "tales.text": Field(500, COUNT, "tales without questions, to pre-tune on"),
        "tales.train": Field(1280, COUNT, "tales to tune on"),
        "tales.val": Field(48, COUNT, "tales to validate on"),
        "tales.test": Field(100, COUNT, "tales to test on"),
        "shown": Field(8, COUNT, "test tales in the report"),
        "rows": _ROWS,
    },
    "prepare_data": {
        "datasets": Field((), Several(TEXT), "TFDS datasets to prepare"),
        "root": Field("data/tfds", Text("data/tfds"), "folder for the datasets"),
        "manual": Field("", TEXT, "folder of files downloaded by hand; '' for root/downloads/manual"),
        "check_disk": Field(True, FLAG, "refuse a dataset that does not fit on the disk"),
    },
}
_NAMES = {"prepare_data": "prepare"}  # default names, where they are not the task's
TASKS = {
    task: {
        "name": Field(_NAMES.get(task, task), Text("mine"), "name; without --workdir the folder is runs/NAME"),
        "task": Field(task, TEXT, "module of toast_jax/tasks/ to run"),
        **fields,
    }
    for task, fields in _FIELDS.items()
}
SWEEP = {
    "sweep.seeds": Field(SEEDS, _SEVERAL_SEEDS, "seeds of the tested runs"),
    "sweep.together": Field(0, whole(0), "points of a grid to train as one program; 0: all, 1: each by itself"),
    "sweep.at_once": Field(0, whole(0), "points of these to compute in parallel; 0: as many as fit in memory, on a CPU 1"),
    "sweep.shard": Field("0/1", TEXT, "share of the method-task pairs for this process: i/n, i from 0"),
}
# Sections that hold fields of other configs, by task.
SECTIONS = {
    "score": {"network": "a language model that was not tuned, as the config of a run on text"},
    "relevance": {"network": "a language model that was not tuned, as the config of a run on text"},
    "generate": {"network": "a language model that was not tuned, as the config of a run on text"},
    "demo": {"runs": "the config of every run on images, by row"},
    "demo_segment": {"runs": "the config of every run of segmentation, by row"},
    "demo_language": {
        "pretune": "the config of the run that pre-tunes the top-down module",
        "not_tuned": "the config of the network that is not tuned",
        "speaker": "the config of the task generate for the answers",
        "runs": "the config of every run on text, by row",
    },
    "sweep": {"sweep": "table, backbone, methods and tasks; recipes by task, grid by method, splits by phase"},
}


def config_of(task: str, **values: Any) -> ConfigDict:
    """Return the config of a task: its defaults, updated with `values` (fields by name, or whole sections)."""
    return ConfigDict(nested({name: field.default for name, field in TASKS[task].items()} | values))


def of_language_model(task: str, text: str | None) -> ConfigDict:
    """Return the config of a task on a language model; `text` names a run, as in run=RUN, or one not tuned, backbone=NAME."""
    values = arguments(text, run="", backbone="")
    network = ConfigDict()
    if values["backbone"]:
        network = language(name=task, method="finetune", backbone=values["backbone"])
    return config_of(task, run=values["run"], network=network)
