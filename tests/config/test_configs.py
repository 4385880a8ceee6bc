"""Every config trains for a step with every method, and the recipes are the published ones."""

import importlib
import json
import re
import subprocess
import sys

import jax
import pytest

from configs import fgvc, folder, pretune, vtab
from tests import ROOT, small_tfds
from tests.conftest import METHODS, SOME_SLOW
from toast_jax import trees
from toast_jax.config.check import check
from toast_jax.config.run_fields import base
from toast_jax.data.images import batches
from toast_jax.data.images.vtab import tasks
from toast_jax.devices import parallel
from toast_jax.errors import InputError
from toast_jax.model import methods, steered
from toast_jax.python import keywords
from toast_jax.train import setup

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
LANGUAGE = ("alpaca", "demo_language", "generate", "openwebtext", "relevance", "score", "vicuna")
LOOKING = ("attention", "corrupt", "predict", "visualize")
OTHERS = ("segment", "convert", "demo", "demo_segment", "prepare", "pretune", "sweep", "table", *LOOKING, *LANGUAGE)
TUNING = [name for name in CONFIGS if name not in OTHERS]


def shrunk(config, root):
    """The same run with a small network on the small dataset, for which split files are written."""
    config.backbone.update({"size": "tiny", "patch": 8, "weights": "random"})
    config.data.update({"root": str(root), "image_dir": "", "image_size": 16, "resize": 18, "num_classes": 0})
    config.batch_size, config.probe.queries = 8, 4
    if config.data.format == "vtab":
        config.data.resize = 16
        return config
    for split in ("train", "val", "test"):
        listing = {str(path.relative_to(root)): path.parent.name for path in sorted((root / split).glob("*/*.jpg"))}
        (root / f"{split}.json").write_text(json.dumps(listing))
    return config


@pytest.fixture(scope="module")
def vtab_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("vtab")
    small_tfds.prepare("cifar100:3.0.2", root, {"train": 20, "test": 3})
    return root


# Other tests train every method to the end; these test the configs.
SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in METHODS if method != "linear"]


@pytest.mark.parametrize("name", TUNING)
@pytest.mark.parametrize("method", ["linear", *SLOW])
def test_config_makes_a_step(name, method, image_folder, vtab_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "TRAIN", 8)
    monkeypatch.setattr(tasks, "VAL", 2)
    config = importlib.import_module(f"configs.{name}").get_config(f"method={method}")
    config = shrunk(config, vtab_folder if config.data.format == "vtab" else image_folder)
    run, state = setup.prepare(config, tmp_path)
    loader = batches.train_batches(run.train, batch_size=8, epochs=1, seed=0, resize=config.data.resize, size=16)
    state, metrics = run.step(parallel.place(state), run.frozen, next(parallel.sharded(loader)))
    assert int(state.step) == 1 and jax.numpy.isfinite(metrics["loss"])


@pytest.mark.parametrize("text", [pytest.param("source=imagenet", marks=pytest.mark.slow), "source=downstream,labels=no"])
def test_pretuning_config_makes_a_step(text, image_folder, tmp_path):
    config = shrunk(pretune.get_config(text), image_folder)
    config.data.format, config.data.splits.val = "folder", ""
    config.batch_size = 16  # two images per device, to mix
    config.head.start, config.optimizer.weight_decay = "random", 0.0  # so that only gradients change parameters
    run, state = setup.prepare(config, tmp_path)
    before = parallel.fetch(trees.prune(state.tuned))
    loader = batches.train_batches(run.train, batch_size=16, epochs=1, seed=0, resize=18, size=16)
    placed = parallel.place(state)
    for batch in [next(parallel.sharded(loader))] * 2:  # the learning rate of the first step is zero
        placed, metrics = run.step(placed, run.frozen, batch)
    assert jax.numpy.isfinite(metrics["loss"])
    after = parallel.fetch(trees.prune(placed.tuned))
    moved = {path: (leaf != trees.flat(before)[path]).any() for path, leaf in trees.flat(after).items()}
    assert all(moved.values())
    assert {path for path in moved if path.startswith("top_down")} == {"top_down/back", "top_down/out", "top_down/prior"}
    assert any(path.startswith("head") for path in moved) == ("labels=no" not in text)


@pytest.mark.parametrize("name", CONFIGS)
def test_caption_names_its_command(name):
    caption = importlib.import_module(f"configs.{name}").__doc__
    assert f"python main.py --config=configs/{name}.py" in caption


@pytest.mark.parametrize("name", CONFIGS)
def test_reading_a_config_imports_no_jax(name):
    """JAX takes the folder of its compilation cache from the environment, which is set before JAX is imported."""
    code = f"import sys, configs.{name} as config; config.get_config(); sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_imports_only_the_package(name):
    """An installed package has no importable folder `configs`."""
    source = (ROOT / "configs" / f"{name}.py").read_text()
    modules = {module.partition(".")[0] for module in re.findall(r"^(?:from|import) (\S+)", source, re.M)}
    assert modules - sys.stdlib_module_names <= {"toast_jax", "ml_collections"}


@pytest.mark.parametrize("name", TUNING)
@pytest.mark.parametrize("method", SOME_SLOW)
def test_full_size_network_builds(name, method):
    """The network of the config's defaults, built from shapes, has the parameters of the method's row."""
    config = importlib.import_module(f"configs.{name}").get_config(f"method={method}")
    network, row = steered.build(config, num_classes=10)
    shapes = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))
    methods.tuned_mask(shapes, row)


@pytest.mark.parametrize("dataset", ["cub", "nabirds", "flowers", "dogs", "cars"])
@pytest.mark.parametrize("method", ["ssf", "adapter_plus"])
def test_fgvc_recipes_of_other_papers(method, dataset):
    config = fgvc.get_config(f"dataset={dataset},method={method},recipe=paper")
    check(config)
    rates = {"cub": 1e-2, "nabirds": 2e-4, "flowers": 1e-2, "dogs": 2.5e-4, "cars": 2e-2}
    lr, decay, erasing = (rates[dataset], 0.05, 0.25) if method == "ssf" else (1e-3, 1e-4, 0.0)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("adamw", lr, decay)
    assert (config.batch_size, config.augment.min_crop_area, config.augment.erasing) == (64, 0.08, erasing)
    with pytest.raises(InputError, match="With recipe=paper, the config argument method is 'toast'; it must be one of ssf, ad"):
        fgvc.get_config("method=toast,recipe=paper")


@pytest.mark.parametrize("module", [fgvc, vtab])
def test_the_published_recipe_of_ep(module):
    config = module.get_config("method=ep,recipe=paper")
    check(config)
    fields = config.optimizer
    assert (fields.name, fields.momentum, fields.lr, fields.base_batch_size) == ("lars", 0.9, 0.1, 256)
    assert (fields.weight_decay, fields.schedule, config.epochs, config.warmup_epochs) == (0.0, "step", 90, 10)


@pytest.mark.parametrize(
    ("dataset", "classes", "lr", "weight_decay"),
    [
        ("cub", 200, 0.03, 5e-4),
        ("nabirds", 555, 0.01, 1e-2),
        ("flowers", 102, 0.01, 1e-4),
        ("dogs", 120, 0.02, 1e-4),
        ("cars", 196, 0.02, 1e-4),
    ],
)
def test_fgvc_recipes(dataset, classes, lr, weight_decay):
    config = fgvc.get_config(f"dataset={dataset}")
    assert config.data.num_classes == classes
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.momentum) == (lr, weight_decay, 0.9)
    assert (config.batch_size, config.epochs, config.warmup_epochs) == (32, 100, 10)
    assert (config.data.resize, config.data.image_size, config.backbone.drop_path) == (256, 224, 0.1)
    assert config.optimizer.no_decay == ("head/bias",)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_vtab_recipe(task):
    config = vtab.get_config(f"task={task}")
    assert (config.data.name, config.data.num_classes) == (task, tasks.TASKS[task].num_classes)
    assert (config.batch_size, config.epochs, config.warmup_epochs, config.eval_every) == (32, 100, 10, 100)
    assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.base_batch_size) == ("sgd", 0.9, 256)
    assert (config.data.resize, config.data.image_size, config.augment.flip) == (224, 224, False)
    assert config.prompts.dropout == 0.1 and config.head.start == "random"


def test_vtab_selects_without_the_test_images():
    assert vtab.get_config().data.splits.to_dict() == {"train": "train800val200", "val": "", "test": "test"}
    selection = vtab.get_config("split=selection").data.splits
    assert selection.to_dict() == {"train": "train800", "val": "val200", "test": ""}
    with pytest.raises(InputError, match="The config argument split is 'test'; it must be one of final, selection"):
        vtab.get_config("split=test")


def test_backbone_names():
    assert folder.get_config("backbone=vit_l14_in21k").backbone.weights == "weights/vit_l14_in21k.pth"
    config = base(name="x", method="toast", backbone="vit_h14")
    assert (config.backbone.size, config.backbone.patch) == ("H", 14)
    with pytest.raises(InputError, match="'vit_x16' is not known.*hf:OWNER/NAME, or by a folder with a config.json"):
        base(name="x", method="toast", backbone="vit_x16")


def test_warm_up_of_ones_own_images_is_a_tenth_of_the_epochs():
    """The command line sets fields as here, in the order of the arguments."""
    config = folder.get_config()
    assert config.warmup_epochs == 10
    short = keywords.changed(config, {"epochs": 5})
    assert (short.warmup_epochs, config.warmup_epochs, short.to_dict()["warmup_epochs"]) == (0, 10, 0)
    assert keywords.changed(config, {"warmup_epochs": 3, "epochs": 20}).warmup_epochs == 3
    config.epochs = 20
    assert config.warmup_epochs == 2
