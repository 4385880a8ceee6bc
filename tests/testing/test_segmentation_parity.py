"""Our maps and heads are those of AbSViT's segmentation code and of mmsegmentation."""

import re

import numpy as np
import pytest

from tests import FIXTURES
from toast_jax.testing import parity

FOLDER = FIXTURES / "segmentation"
QUICK = ("pos_embed_resize", "miou")
GIVEN = r"(rect/|predicted_absent/|head/)?(input|config|params)[/_].*|(head|aux)/params/.*|trainable_names"


@pytest.mark.parametrize(
    "name",
    [path.stem if path.stem in QUICK else pytest.param(path.stem, marks=pytest.mark.slow) for path in sorted(FOLDER.glob("*"))],
)
def test_recording_is_replayed(name):
    checks = parity.replay(str(FOLDER / f"{name}.npz"))
    assert [check for check in checks if not check.passed] == []
    with np.load(FOLDER / f"{name}.npz") as recorded:
        quantities = {key for key in recorded.files if not re.fullmatch(GIVEN, key)}
    assert {check.name for check in checks} == quantities


def test_a_wrong_number_fails(tmp_path):
    with np.load(FOLDER / "pos_embed_resize.npz") as file:
        recorded = {key: file[key] for key in file.files}
    recorded["out/9x8"] = recorded["out/9x8"] * np.float32(1 + 1e-4)
    np.savez(tmp_path / "wrong.npz", **recorded)
    assert [check.name for check in parity.replay(str(tmp_path / "wrong.npz")) if not check.passed] == ["out/9x8"]
