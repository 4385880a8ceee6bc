"""The Python interface: the same numbers as the command line, every kind of input, and a sentence for what cannot be used."""

import json

import numpy as np
import pytest

import toast_jax
from tests.conftest import CLASSES, tiny_config
from toast_jax import trees
from toast_jax.model.backbones import vit
from toast_jax.tasks import train
from toast_jax.train import saved_run

# `tests.conftest.tiny_config` as keyword arguments.
TINY = {"backbone": "vit_ti8", "size": "tiny", "image_size": 16, "resize": 18, "start": "random", "prompts": {"num": 2}}
TINY |= {"batch_size": 8, "epochs": 2, "warmup_epochs": 0, "eval_every": 1, "checkpoint_every": 1, "lr": 0.05}


def tiny(method="toast", **fields):
    return toast_jax.load("random", method=method, **{**TINY, **fields})


@pytest.fixture(scope="module")
def tuned(image_folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        net = tiny()
        net.result = net.tune(image_folder, workdir=tmp_path_factory.mktemp("python") / "run", confusion=False)
    return net


@pytest.fixture
def image(image_folder):
    return image_folder / "test" / CLASSES[0] / "0.jpg"


def test_numbers_are_those_of_the_command_line_bit_for_bit(tuned, image_folder, tmp_path):
    config = tiny_config(image_folder, "toast")
    train.run(config, str(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    for name in ("train", "val", "test", "seed", "steps", "tuned_parameters", "config"):
        assert json.loads(json.dumps(tuned.result.get(name))) == result.get(name)
    expected = trees.flat(saved_run.load(tmp_path).params)
    assert trees.flat(tuned.params).keys() == expected.keys()
    assert all(np.array_equal(leaf, expected[path]) for path, leaf in trees.flat(tuned.params).items())
    assert tuned.config.to_dict() == saved_run.load(tmp_path).config.to_dict()
