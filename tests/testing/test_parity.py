"""Our numbers are the PyTorch release's numbers."""

import re

import jax
import numpy as np
import pytest

from tests import FIXTURES
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model import losses
from toast_jax.model.methods import METHODS, tuned_mask
from toast_jax.testing import parity, recording
from toast_jax.weights.rename import to_torch

VIT = ("linear", "finetune", "vpt_deep", "vpt_shallow", "lora", "toast", "toast_lite")
QUANTITIES = ("out", "mid", "grad", "var", "sgd", "count", "eval", "running", "merged", "generate")
LLAMA = ("finetune", "lora", "toast", "toast_lite", "pretune")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("ssf", "adapter_plus", "ep_all_q4_d2")]
RECORDINGS = (
    *(f"vit_{method}" for method in VIT),
    "ep",
    "convnext_linear",
    "convnext_toast",
    *(f"llama_{name}" for name in LLAMA),
)


@pytest.mark.parametrize("name", [*RECORDINGS, *SLOW])
def test_recording_is_replayed(name):
    checks = parity.replay(str(FIXTURES / f"{name}.npz"))
    assert [check for check in checks if not check.passed] == []
    with np.load(FIXTURES / f"{name}.npz") as recorded:
        quantities = [k for k in recorded.files if k.split("/")[0] in QUANTITIES and k != "generate/prompt"]
    assert {check.name.split(" ")[0].replace("enc.", "") for check in checks} == {q.replace("enc.", "") for q in quantities}


QUICK = ("dinov3_vit_gated_timm",)  # the others are replayed among the slow tests
BACKBONES = sorted(path.stem for path in (FIXTURES / "backbones").glob("*.npz"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in BACKBONES])
def test_recording_of_a_backbone_is_replayed(name):
    path = FIXTURES / "backbones" / f"{name}.npz"
    checks = parity.replay(str(path))
    assert [check for check in checks if not check.passed] == []
    with np.load(path) as recorded:
        quantities = {key for key in recorded.files if key.split("/")[0] in QUANTITIES} | {"config/eps"}
    assert {check.name.split(" ")[0] for check in checks} == quantities


LANGUAGE = sorted(path.stem for path in (FIXTURES / "language").glob("*.npz"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "mistral" else pytest.mark.slow) for n in LANGUAGE])
def test_recording_of_a_language_model_is_replayed(name):
    path = FIXTURES / "language" / f"{name}.npz"
    checks = parity.replay(str(path))
    assert [check for check in checks if not check.passed] == []
    with np.load(path) as recorded:
        quantities = {key for key in recorded.files if key.split("/")[0] in QUANTITIES}
    assert {check.name for check in checks} == quantities - {"generate/prompt"} and path.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("method", "part"), [("bias", r"(patch_embed|blocks|norm)\..*bias|norm\.bias"), ("ln", r"(.*\.)?norm\d?\.\w+")]
)
def test_methods_that_tune_a_part_have_its_gradients_of_fine_tuning(method, part):
    """There is no recording of them; the names are those that the references tune."""
    path = str(FIXTURES / "vit_finetune.npz")
    recorded = recording.load(path, recording.read(path))
    tuned, frozen = trees.split(recorded.params, tuned_mask(recorded.params, METHODS[method]))
    scores = losses.tune(recorded.model, METHODS[method])
    loss = lambda tuned: scores(trees.merge(tuned, frozen), recorded.batch)["loss"].mean()  # noqa: E731
    gradients = to_torch(trees.flat(trees.prune(jax.jit(jax.grad(loss))(tuned))), recorded.family)
    expected = {name: array for name, array in recorded.group("grad/").items() if re.fullmatch(rf"{part}|head\..*", name)}
    assert set(gradients) == set(expected) and len(expected) > 10
    errors = {name: parity.relative_error(gradients[name], array) for name, array in expected.items()}
    assert max(errors.values()) <= parity.BACKWARD, errors


@pytest.mark.slow
def test_images_of_another_size_are_replayed(tmp_path):
    """The same images a second time, of which other_size/* makes a network of its own."""
    arrays = dict(recording.read(str(FIXTURES / "backbones" / "dinov2_reg_timm.npz")))
    keys = ("mid/embeddings", "mid/block_1", "mid/tokens", "out/pooled")
    arrays |= {f"other_size/{key}": arrays[key][:2] for key in (*keys, "input/images_nchw")}
    np.savez(tmp_path / "other.npz", **arrays, **{"other_size/position": arrays["params/pos_embed"]})
    checks = parity.replay(str(tmp_path / "other.npz"))
    assert all(check.passed for check in checks)
    assert {f"other_size/{key}" for key in (*keys, "position")} <= {check.name for check in checks}


def test_a_wrong_number_fails(tmp_path, capsys):
    with np.load(FIXTURES / "vit_linear.npz") as file:
        recorded = {key: file[key] for key in file.files}
    recorded["out/logits"] = recorded["out/logits"] * np.float32(1 + 1e-4)
    np.savez(tmp_path / "wrong.npz", **recorded)
    assert parity.main([str(tmp_path / "wrong.npz")]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_relative_error_does_not_hide_nan_or_shape():
    assert parity.relative_error([np.nan], [1.0]) == float("inf")
    assert parity.relative_error([1.0], [1.0, 1.0]) == float("inf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lr_schedule.npz", "is not a recording of a ViT, a ConvNeXt, a LLaMA; no other"),
        ("nowhere.npz", "cannot be read"),
        ("vit_toast_tuned.pth", ""),
    ],
)
def test_other_files_are_refused_with_a_sentence(name, message):
    with pytest.raises(InputError, match=f"{name} {message}"):
        parity.replay(str(FIXTURES / name))
