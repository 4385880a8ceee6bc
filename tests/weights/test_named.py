"""Weights by name: downloaded once, recorded, and the same from then on."""

import hashlib
import json
import re
import shutil
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from tests import ROOT
from tests.conftest import tiny_config
from tests.small_hub import SmallHub
from tests.weights.test_module_file import save_backbone
from toast_jax.errors import InputError
from toast_jax.train import loop, saved_run
from toast_jax.weights import named, places

CONTENT = b"weights" * 1000


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with the file of the name `small`; `sha256` of its row is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with SmallHub() as small:
        small.commit("a/b", {"x.safetensors": CONTENT})
        address = f"{small.address}/a/b/resolve/main/x.safetensors"
        monkeypatch.setitem(named.NAMED, "small", named.Named(address, "MIT"))
        yield small


def refusal(name="small"):
    with pytest.raises(InputError) as raised:
        places.located(name)
    return str(raised.value)


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def expect(monkeypatch, sha256):
    monkeypatch.setitem(named.NAMED, "small", named.NAMED["small"]._replace(sha256=sha256))


def test_a_name_is_downloaded_once_and_recorded(server, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(named.log, "propagate", True)
    caplog.set_level("INFO", "toast_jax")
    digest = hashlib.sha256(CONTENT).hexdigest()
    path = places.located("small")
    assert open(path, "rb").read() == CONTENT and cached(tmp_path) == ["small.json", "small.safetensors"]
    facts = {"name": "small", "url": named.NAMED["small"].address, "licence": "MIT", "sha256": digest}
    assert named.record("small") == facts
    assert f"Downloading small from {facts['url']} (licence: MIT)." in caplog.text and f"sha256 is {digest}." in caplog.text
    server.requests.clear()
    caplog.clear()
    expect(monkeypatch, digest[:8])
    assert places.located("small") == path and not server.requests and not caplog.text


def test_another_file_than_the_first_is_refused(server, tmp_path):
    path = places.located("small")
    with open(path, "ab") as file:
        file.write(b"!")
    assert f"{path} has changed: the sha256 of small is" in refusal()
    (tmp_path / "cache/toast_jax/downloads/small.safetensors").unlink()
    server.altered["x.safetensors"] = b"other"
    first = hashlib.sha256(CONTENT).hexdigest()
    assert f"and was {first} at its first download; remove it to download it again, and " in refusal()
    assert cached(tmp_path) == ["small.json"]
    server.altered.clear()
    assert places.located("small") == path


def test_another_file_than_the_table_says_is_refused(server, tmp_path, monkeypatch):
    expect(monkeypatch, "0123abcd")
    assert "and should begin with 0123abcd; remove it and download it again." in refusal() and not cached(tmp_path)


def test_a_download_that_fails_leaves_nothing(server, tmp_path, monkeypatch):
    server.cut["x.safetensors"] = [100]
    assert "cannot be downloaded (100 of 7,000 bytes arrived); check the network" in refusal() and not cached(tmp_path)
    server.down = True
    assert "cannot be downloaded (HTTP Error 503" in refusal() and not cached(tmp_path)
    server.down = False
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        assert "set XDG_CACHE_HOME to a folder on another disk." in refusal() and not cached(tmp_path)
    server.server.socket.close()
    assert "cannot be downloaded (" in refusal() and not cached(tmp_path)


def test_an_unknown_name_is_answered_by_the_nearest(tmp_path, monkeypatch):
    assert refusal("vit_b16_in21") == (
        "config.backbone.weights is 'vit_b16_in21', which is neither a file nor a name of weights; the nearest name is "
        "'vit_b16_in21k', and docs/weights.md lists all."
    )
    monkeypatch.chdir(tmp_path)
    for text in ("random", "", "weights/vit_b16_in1k.pth", "vit_b16_in21.pth", str(tmp_path)):
        assert places.located(text) == text
    (tmp_path / "vit_b16_in1k").mkdir()  # a file or folder comes before a name
    assert places.located("vit_b16_in1k") == "vit_b16_in1k"


def test_a_missing_file_with_the_name_of_weights_is_answered_by_its_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ConfigDict({"top_down": "weights/vit_b16_in1k_top_down.pth", "backbone": {"family": "vit"}})
    with pytest.raises(InputError, match="correct --config.top_down, or set it to vit_b16_in1k_top_down to download that file"):
        places.check_files(config, ["top_down"])
    config.top_down = "vit_b16_in1k_top_down"
    places.check_files(config, ["top_down"])


def test_a_run_starts_from_a_name_and_records_it(server, image_folder, tmp_path):
    save_backbone(tmp_path / "backbone.safetensors", image_folder, seed=1)
    server.commit("a/b", {"x.safetensors": (tmp_path / "backbone.safetensors").read_bytes()})
    config = tiny_config(image_folder, "linear")
    config.backbone.weights, config.epochs = "small", 1
    result = loop.fit(config, tmp_path / "run")
    assert result["weights"] == {"backbone.weights": named.record("small")}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["config"]["backbone"]["weights"] == "small"
    assert saved_run.load(tmp_path / "run").config.backbone.weights == "small"


def test_the_page_lists_every_name_and_its_place():
    page = (ROOT / "docs/weights.md").read_text()
    for name, entry in named.NAMED.items():
        assert f"| `{name}` |" in page and f"<{entry.address}>" in page
        assert re.fullmatch(r"\w+", name) and re.fullmatch(r"[0-9a-f]{0,64}", entry.sha256)
