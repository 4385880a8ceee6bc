"""The notebooks: their cells run, and the pictures that they show without being run are stored in them."""

import ast
import base64
import io

import pytest
from PIL import Image

from tests import ROOT, notebooks

FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_notebook_is_complete(file):
    cells = notebooks.cells(file)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) < 40 and file.stat().st_size < 400_000
    assert code[0]["source"].startswith("%pip install") and not code[0]["outputs"]
    for number, cell in enumerate(code[1:], 2):
        ast.parse(cell["source"])
        assert cell["execution_count"] == number
    shown = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in shown} <= {"stream", "display_data"}
    pictures = [output["data"]["image/png"] for output in shown if "image/png" in output.get("data", {})]
    assert len(pictures) >= 8
    for picture in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(picture))).width > 400
    assert not any("/root/" in str(output) or "/tmp/" in str(output) for output in shown)


@pytest.mark.slow
def test_own_images_runs_and_reads_a_folder_of_ones_own(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ROOT / "notebooks" / "own_images.ipynb"
    few = [("most=500", "most=160"), ("most=200", "most=12")]
    scope, outputs = notebooks.run(file, few)
    assert scope["net"].is_tuned and len(scope["labels"]) == 12 and sum(map(len, outputs)) >= 16
    assert {path.name for path in tmp_path.iterdir()} == {"own_images"}
    (tmp_path / "own_images").rename(tmp_path / "before")
    own = [("IMAGES = None", f"IMAGES = {str(image_folder / 'train')!r}")]
    small = '"assets/vit_nano8.safetensors", image_size=64, resize=64, batch_size=8, epochs=3, warmup_epochs=0'
    own.append(('"vit_b16_in1k", method="toast", epochs=20, warmup_epochs=2', small))
    scope, _ = notebooks.run(file, own)
    assert scope["net"].classes == ("heron", "kite", "owl") and len(scope["labels"]) == 24
