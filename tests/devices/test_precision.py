"""`config.precision` is the precision of every product of a run, and of nothing else."""

import re

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from tests.conftest import tiny_config
from toast_jax.devices import precision
from toast_jax.model import top_down
from toast_jax.train import loop, setup
from toast_jax.train.saved_run import SavedRun


def current():
    return jax.config.jax_default_matmul_precision


def precisions(function, *args):
    """The precision of every product of a function, also of those in programs and loops within it."""
    program = str(jax.make_jaxpr(function)(*args))
    products = re.findall(r"(?:dot_general|conv_general_dilated)\[(.*?)\n\s*\]", program, re.DOTALL)
    return [match[1] if (match := re.search(r"precision=\(Precision\.(\w+)", product)) else None for product in products]


def test_the_callers_precision_is_restored():
    with pytest.raises(RuntimeError), precision.of_products(ConfigDict({"precision": "highest"})):
        assert current() == "highest"
        raise RuntimeError
    assert current() is None
    with jax.default_matmul_precision("highest"):  # as a notebook may have set it
        with precision.of_products(ConfigDict()):
            assert current() is None
        assert current() == "highest"


@pytest.mark.parametrize("method", ["toast", "lora"])
def test_every_product_of_a_step_has_the_precision_of_the_config(method, image_folder, tmp_path):
    config = tiny_config(image_folder, method)
    config.data.verify, config.precision = False, "highest"
    run, state = setup.prepare(config, tmp_path)
    batch = {"image": jnp.zeros((8, 1, 16, 16, 3), jnp.uint8), "label": jnp.zeros((8, 1), jnp.int32)}
    batch["index"] = jnp.zeros((8, 1), jnp.int32)
    with precision.of_products(config):
        actual = precisions(run.step, state, run.frozen, batch)
    assert len(actual) > 20 and set(actual) == {"HIGHEST"}


def test_a_run_is_at_its_precision_from_start_to_end(config, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "prepare", lambda config, folder, **options: seen.append(current()) or (None, None))
    monkeypatch.setattr(loop, "prepare_grid", lambda *args: seen.append(current()) or (None, None))
    monkeypatch.setattr(loop, "_finish", lambda run, state, started: seen.append(current()) or [{}])
    for config.precision in ("default", "highest"):
        loop.fit(config, tmp_path / "alone")
        loop.fit_grid([config], [tmp_path / "point"], tmp_path / "grid")
    assert seen == [None] * 4 + ["highest"] * 4 and current() is None


def test_a_saved_run_is_read_at_its_precision():
    run = SavedRun(ConfigDict({"precision": "high"}), (), 0, None, None, {})
    assert precisions(run.compiled(lambda model, method, x: x @ x), jnp.ones((2, 2))) == ["HIGH"]


def test_saved_runs_of_one_network_share_a_program():
    traced = []

    def function(model, method, x):
        traced.append((model, method))
        return x

    for level, network in (("default", "a"), ("default", "a"), ("high", "a"), ("default", "b")):
        SavedRun(ConfigDict({"precision": level}), (), 0, network, "row", {}).compiled(function)(jnp.ones(2))
    assert traced == [("a", "row"), ("a", "row"), ("b", "row")]  # the precision is part of a program


@pytest.mark.parametrize(
    ("module", "hidden"),
    [
        (top_down.TopDown(sites=2, width=4), jnp.ones((3, 1, 5, 4))),
        (top_down.ConvTopDown(widths=(3, 4), strides=(2,)), (jnp.ones((1, 4, 4, 3)), jnp.ones((1, 2, 2, 4)))),
    ],
)
def test_comparisons_do_not_depend_on_the_precision(module, hidden):
    tokens = hidden[-1]
    params = module.init(jax.random.key(0), tokens, tokens)
    assert precisions(top_down.select, tokens, tokens[0, 0].ravel()[:4]) == ["HIGHEST"]
    loss = precisions(lambda params: module.apply(params, hidden, method="variational_loss"), params)
    assert loss and set(loss) == {"HIGHEST"}
    signal = precisions(lambda params: module.apply(params, tokens, tokens)[0], params)
    assert None in signal and signal.count("HIGHEST") == 1  # the selection
