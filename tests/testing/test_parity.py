"""Our numbers are the PyTorch release's numbers."""

import numpy as np
import pytest

from tests import FIXTURES
from toast_jax.errors import InputError
from toast_jax.testing import parity

VIT = ("linear", "finetune", "vpt_deep", "vpt_shallow", "lora", "toast", "toast_lite")
QUANTITIES = ("out", "mid", "grad", "var", "sgd", "count", "generate")
LLAMA = ("finetune", "lora", "toast", "toast_lite", "pretune")
RECORDINGS = (*(f"vit_{method}" for method in VIT), "convnext_linear", "convnext_toast", *(f"llama_{name}" for name in LLAMA))


@pytest.mark.parametrize("name", RECORDINGS)
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
