"""Names on the Hugging Face Hub: its own client against a small server, and what each refusal says."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub.constants
import huggingface_hub.file_download
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from configs import alpaca, fgvc, folder, pretune, sweep, vtab
from tests import ROOT
from tests.conftest import tiny_config
from tests.small_hub import SmallHub
from tests.weights import test_llama_files
from tests.weights.test_module_file import save_backbone
from toast_jax import hub
from toast_jax.config import check
from toast_jax.data.images.statistics import IMAGENET
from toast_jax.errors import InputError
from toast_jax.model.backbones.llama import config_json
from toast_jax.model.families import FAMILIES
from toast_jax.tasks import evaluate
from toast_jax.train import loop, saved_run
from toast_jax.weights import places
from toast_jax.workdir import run_folder

VIT = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
VIT |= {"patch_size": 16, "image_size": 224}
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
GOOGLE = {"do_normalize": True, "image_mean": HALF[0], "image_std": HALF[1], "size": {"height": 224, "width": 224}}
WEIGHTS = save({"a": np.arange(1000, dtype=np.float32)})


@pytest.fixture
def server(tmp_path, monkeypatch):
    with SmallHub() as small:
        constants = huggingface_hub.constants
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, small.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", small.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda _: None))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        hub.contents_of.cache_clear()
        yield small
    hub.contents_of.cache_clear()


def refusal(name, read=None):
    with pytest.raises(InputError) as raised:
        (read or (lambda: hub.local(hub.parse(name))))()
    text = str(raised.value)
    assert text.count("\n") == 0 and text.endswith(".")
    return text


def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.contents_of.cache_clear()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:a/b", ("a/b", "", "")),
        ("hf:a/b.c-d_e@v1.0", ("a/b.c-d_e", "v1.0", "")),
        ("hf:a/b/x.safetensors", ("a/b", "", "x.safetensors")),
        ("hf:a/b@refs/pr/3/sub/x.bin", ("a/b", "refs/pr/3", "sub/x.bin")),
    ],
)
def test_a_name_has_a_repository_a_revision_and_a_file(text, parts):
    assert hub.parse(text) == hub.Place(*parts) and str(hub.parse(text)) == text


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:a/", "hf:a/b@", "hf:a b/c", "hf://a/b"])
def test_other_texts_are_no_names(text):
    with pytest.raises(InputError, match=r"write hf:OWNER/NAME\[@REVISION\]\[/FILE\]\."):
        hub.parse(text)


def test_a_file_is_downloaded_once_and_read_without_the_hub_afterwards(server, monkeypatch, caplog):
    sha = server.commit("a/b", {"config.json": VIT, "model.safetensors": WEIGHTS, "pytorch_model.bin": b"?"})
    path = hub.local(hub.parse("hf:a/b"))
    assert path.read_bytes() == WEIGHTS and path.parent.name == sha and (path.parent / "config.json").exists()
    assert not (path.parent / "pytorch_model.bin").exists()
    assert any(place.startswith("/large/") for _, place, _ in server.requests)  # after a redirect
    server.requests.clear()
    pinned = hub.Place("a/b", sha, "model.safetensors")
    assert hub.local(pinned) == path and not server.requests
    offline(monkeypatch)
    assert hub.local(hub.parse("hf:a/b")) == hub.local(hub.parse("hf:a/b@main")) == path and not server.requests
    facts = {"repository": "a/b", "revision": sha, "file": "model.safetensors"}
    assert hub.provenance(pinned) == facts | {"sha256": hashlib.sha256(WEIGHTS).hexdigest()}


def test_provenance_has_the_licence_that_the_hub_states(server):
    sha = server.commit("a/b", {"config.json": VIT, "model.safetensors": WEIGHTS})
    pinned = hub.Place("a/b", sha, "model.safetensors")
    assert hub.provenance(pinned)["licence"] == "apache-2.0"
    hub.contents_of.cache_clear()
    server.private.add("a/b")
    assert "licence" not in hub.provenance(pinned)


def test_without_a_network_the_cache_is_used_and_otherwise_the_sentence_says_so(server, monkeypatch):
    server.commit("a/b", {"config.json": VIT, "model.safetensors": WEIGHTS})
    path = hub.local(hub.parse("hf:a/b"))
    hub.contents_of.cache_clear()
    server.down = True
    assert hub.local(hub.parse("hf:a/b")) == path
    assert "hf:c/d is not in the cache, and" in (text := refusal("hf:c/d")) and "cannot be reached" in text
    server.server.socket.close()  # nobody listens
    hub.contents_of.cache_clear()
    assert hub.local(hub.parse("hf:a/b")) == path
    assert "cannot be reached" in refusal("hf:c/d") and "cannot be reached" in refusal("hf:a/b@v2")
    offline(monkeypatch)
    assert refusal("hf:c/d") == "hf:c/d is not in the cache, and HF_HUB_OFFLINE is set; unset it to download the file."


def test_a_revision_is_resolved_to_its_commit(server):
    first = server.commit("a/b", {"model.safetensors": WEIGHTS}, "v1")
    second = server.commit("a/b", {"model.safetensors": save({"a": np.ones(3, "f4")})})
    assert [hub.local(hub.parse(f"hf:a/b{at}")).parent.name for at in ("@v1", "", "@main", f"@{first}")] == [
        first,
        second,
        second,
        first,
    ]
    assert "has no revision 'v2'" in refusal("hf:a/b@v2") and "has no revision" in refusal(f"hf:a/b@{'0' * 40}")


def test_a_repository_that_was_renamed_is_followed(server):
    server.commit("new/b", {"config.json": VIT, "model.safetensors": WEIGHTS})
    server.renamed["old/b"] = "new/b"
    assert hub.local(hub.parse("hf:old/b")).read_bytes() == WEIGHTS


def test_which_file_of_a_repository_is_read(server):
    server.commit("a/torch", {"pytorch_model.bin": b"1", "tf_model.h5": b"2"})
    server.commit("a/single", {"B_16.npz": b"1", "README.md": b"2"})
    server.commit("a/several", {"x.pth": b"1", "y.pth": b"2"})
    server.commit("a/none", {"README.md": b"2"})
    assert hub.local(hub.parse("hf:a/torch")).name == "pytorch_model.bin"
    assert hub.local(hub.parse("hf:a/single")).name == "B_16.npz"
    assert hub.local(hub.parse("hf:a/several/y.pth")).read_bytes() == b"2"
    assert "several such files (x.pth, y.pth); name one, as in hf:a/several/x.pth." in refusal("hf:a/several")
    assert "hf:a/none has no file that can be read (model.safetensors," in (text := refusal("hf:a/none"))
    assert text.endswith("it has README.md.")
    assert refusal("hf:a/none/x.pth").startswith("a/none has no file x.pth at this revision; see http://127")


def test_repositories_that_may_not_be_read(server, monkeypatch):
    for name in ("meta/gated", "me/private"):
        server.commit(name, {"config.json": VIT, "model.safetensors": WEIGHTS})
    server.gated.add("meta/gated")
    server.private.add("me/private")
    page = f"{server.address}/meta/gated"
    assert refusal("hf:meta/gated") == (
        f"hf:meta/gated is gated: accept its terms at {page}, log in with `hf auth login` (or set HF_TOKEN), and give the same "
        "command again."
    )
    for name in ("me/private", "me/absent"):
        assert f"There is no repository {name} at {server.address} that you may read" in refusal(f"hf:{name}")
    monkeypatch.setenv("HF_TOKEN", "secret")
    for name in ("hf:meta/gated", "hf:me/private"):
        assert hub.local(hub.parse(name)).read_bytes() == WEIGHTS
    elsewhere = [headers for _, path, headers in server.requests if path.startswith("/large/")]
    assert elsewhere and not any(name.lower() == "authorization" for headers in elsewhere for name in headers)


def test_a_download_that_is_cut_off_resumes(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    server.commit("a/b", {"config.json": VIT, "model.safetensors": WEIGHTS})
    server.cut["model.safetensors"] = [1000, 500]
    assert hub.local(hub.parse("hf:a/b")).read_bytes() == WEIGHTS
    fetched = [headers for method, path, headers in server.requests if path.startswith("/large/") and method == "GET"]
    ranges = [{name.lower(): value for name, value in headers.items()}.get("range") for headers in fetched]
    assert ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_what_is_beside_a_file_comes_first_so_that_an_interrupted_download_has_it_later(server):
    sha = server.commit("a/b", {"tokenizer_config.json": {"eos_token": "<|im_end|>"}, "tokenizer.json": {}})
    place = hub.parse(f"hf:a/b@{sha}/tokenizer.json")
    server.cut["tokenizer_config.json"] = [0] * 100
    with pytest.raises(InputError, match="was not downloaded completely"):
        hub.local(place)
    server.cut.clear()
    assert (hub.local(place).parent / "tokenizer_config.json").is_file()


def test_a_download_that_never_completes_leaves_nothing(server, tmp_path):
    server.commit("a/b", {"config.json": VIT, "model.safetensors": WEIGHTS})
    server.cut["model.safetensors"] = [0] * 100
    assert "hf:a/b" in (text := refusal("hf:a/b")) and "was not downloaded completely" in text
    server.cut.clear()
    server.altered["model.safetensors"] = WEIGHTS[:-8]
    assert "was not downloaded completely" in refusal("hf:a/b")
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.stat().st_size > 1000]


def test_another_file_than_the_hub_says_is_refused_and_removed(server):
    server.commit("a/b", {"config.json": VIT, "model.safetensors": WEIGHTS})
    server.altered["model.safetensors"] = WEIGHTS[:-1] + b"!"
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert f"not {digest}; it was removed" in refusal("hf:a/b")
    server.altered.clear()
    assert hub.local(hub.parse("hf:a/b")).read_bytes() == WEIGHTS


def test_room_is_checked_before_the_download(server, monkeypatch):
    server.commit("a/b", {"config.json": VIT, "model.safetensors": WEIGHTS})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    assert "has 0 MB, but" in (text := refusal("hf:a/b")) and "set HF_HOME to a folder on another disk." in text
    assert not any(path.startswith("/large") for method, path, _ in server.requests if method == "GET")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub.contents_of.cache_clear()
    assert 'needs huggingface_hub; `pip install "toast_jax[hub]"`.' in refusal("hf:a/b")


# A backbone by name.


def image_fields(config):
    backbone, data = config.backbone, config.data
    return (backbone.family, backbone.size, backbone.get("patch"), data.image_size, data.resize, data.normalize)


CONVNEXT = {"model_type": "convnext", "depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768], "patch_size": 4}
TIMM = {"tag": "augreg_in21k", "input_size": [3, 384, 384], "crop_pct": 1.0, "mean": HALF[0], "std": HALF[1]}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": VIT, "preprocessor_config.json": GOOGLE}, ("vit", "B", 16, 224, 256, HALF)),
        ({"config.json": VIT}, ("vit", "B", 16, 224, 256, IMAGENET)),
        (
            {
                "config.json": VIT | {"model_type": "dinov2", "patch_size": 14, "image_size": 518, "mlp_ratio": 4},
                "preprocessor_config.json": {
                    **{"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "size": {"shortest_edge": 256}},
                    **{"image_mean": IMAGENET[0], "image_std": IMAGENET[1]},
                },
            },
            ("vit", "B", 14, 224, 256, IMAGENET),
        ),
        (
            {"config.json": CONVNEXT, "preprocessor_config.json": {"size": {"shortest_edge": 224}, "crop_pct": 0.875}},
            ("convnext", "T", None, 224, 256, IMAGENET),
        ),
        (
            {"config.json": {"architecture": "vit_large_patch16_384", "pretrained_cfg": TIMM}},
            ("vit", "L", 16, 384, 384, HALF),
        ),
        (
            {"config.json": {"architecture": "convnext_small", "pretrained_cfg": TIMM | {"crop_pct": 0.96}}},
            ("convnext", "S", None, 384, 400, HALF),
        ),
        (  # 248.9 pixels
            {
                "config.json": {
                    "architecture": "vit_base_patch16_224",
                    "pretrained_cfg": TIMM | {"input_size": [3, 224, 224], "crop_pct": 0.9},
                }
            },
            ("vit", "B", 16, 224, 248, HALF),
        ),
    ],
)
def test_a_backbone_is_read_from_the_files_of_its_repository(server, files, expected):
    server.commit("google/vit-x", files)
    config = folder.get_config("method=toast,backbone=hf:google/vit-x")
    assert image_fields(config) == expected and config.backbone.weights == "hf:google/vit-x"
    assert config.name == "folder_toast_vit-x"
    is_vit = expected[0] == "vit"
    assert (config.backbone.drop_path, config.variational_weight) == ((0.1, 0.1) if is_vit else (0.0, 0.01))
    check.check(config)
    assert pretune.get_config("backbone=hf:google/vit-x").data.normalize == expected[-1]


def test_configs_of_the_paper_keep_its_normalization(server):
    server.commit("google/vit-x", {"config.json": VIT, "preprocessor_config.json": GOOGLE})
    for module in (fgvc, vtab, sweep):
        config = module.get_config("backbone=hf:google/vit-x")
        assert config.data.normalize == IMAGENET and config.data.image_size == 224 and "/" not in config.name
    assert fgvc.get_config().data.normalize == folder.get_config().data.normalize == IMAGENET


@pytest.mark.parametrize("size", [name for name in FAMILIES["llama"].sizes if name not in ("tiny", "custom")])
def test_a_language_model_is_read_from_its_repository(server, size):
    record = FAMILIES["llama"].sizes[size]
    content = {**config_json.written(record), "model_type": record.kind.model_type}
    content["vocab_size"] += size == "llama2_7b"
    content["max_position_embeddings"] += size == "qwen2_5_0_5b"
    server.commit("meta/llama", {"config.json": content})
    config = alpaca.get_config("backbone=hf:meta/llama@main")
    assert (config.backbone.size, config.backbone.vocabulary) == (size, 32_001 if size == "llama2_7b" else 0)
    assert config.backbone.context == (32_769 if size == "qwen2_5_0_5b" else 0)
    assert config.backbone.weights == config.data.tokenizer == "hf:meta/llama@main" and config.name == "alpaca_toast_llama"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "hf:a/b has no config.json to read a backbone from"),
        ({"model_type": "swin"}, r"hf:a/b is of another architecture \(swin\) or size than the networks here: ViT"),
        (VIT | {"hidden_size": 1408}, "is of another architecture"),
        (VIT | {"qkv_bias": False}, "is of another architecture"),
        ({"model_type": "vit"}, r"config.json of hf:a/b describes no backbone \(KeyError"),
        ({"architecture": "vit_base_patch16_clip_224"}, r"another architecture \(vit_base_patch16_clip_224\)"),
        (b"[]", "config.json of hf:a/b is no JSON object"),
        (b"{", "config.json of hf:a/b is not JSON"),
        (
            test_llama_files.CONFIG | {"model_type": "opt"},
            r"another architecture \(opt\) or size than the networks here: ViT",
        ),
    ],
)
def test_what_is_no_backbone_here_is_refused(server, content, words):
    server.commit("a/b", {"config.json": content} if content is not None else {"README.md": b""})
    with pytest.raises(InputError, match=words):
        folder.get_config("backbone=hf:a/b")


def test_an_adapter_of_peft_is_refused_with_the_way_to_merge_it(server):
    server.commit("a/b", {"adapter_config.json": {"peft_type": "LORA"}, "adapter_model.safetensors": b""})
    for module in (folder, alpaca):
        with pytest.raises(InputError, match="hf:a/b is an adapter of PEFT, not a network; merge it into its network there"):
            module.get_config("backbone=hf:a/b")


def test_a_backbone_of_the_other_kind_of_data_is_refused(server):
    server.commit("a/b", {"config.json": VIT})
    with pytest.raises(InputError, match="hf:a/b is a ViT, which reads images; use configs/folder.py."):
        alpaca.get_config("backbone=hf:a/b")


# Runs.


@pytest.fixture
def run(server, image_folder, tmp_path):
    """The config of a run on a backbone of the server, at whose `main` are its weights, and their commit."""
    save_backbone(tmp_path / "backbone.safetensors", image_folder, seed=1)
    files = {"config.json": VIT, "model.safetensors": (tmp_path / "backbone.safetensors").read_bytes()}
    config = tiny_config(image_folder, "linear")
    config.backbone.weights, config.epochs = "hf:me/tiny", 1
    return config, server.commit("me/tiny", files), files


def test_a_run_records_its_revision_and_resumes_with_it(run, server, tmp_path, monkeypatch):
    config, sha, files = run
    result = loop.fit(config, tmp_path / "run")
    weights = f"hf:me/tiny@{sha}/model.safetensors"
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    facts = {"repository": "me/tiny", "revision": sha, "file": "model.safetensors", "licence": "apache-2.0", "sha256": digest}
    assert result["weights"] == {"backbone.weights": facts} and result["config"]["backbone"]["weights"] == weights
    assert json.loads((tmp_path / "run" / "config.json").read_text())["backbone"]["weights"] == weights
    assert config.backbone.weights == "hf:me/tiny"
    # The branch moves on.
    other = server.commit("me/tiny", files | {"model.safetensors": save({"a": np.ones(3, "f4")})})
    hub.contents_of.cache_clear()
    assert loop.fit(config, tmp_path / "run") == json.loads(json.dumps(result))
    assert run_folder.recorded(tmp_path / "run", config)["weights"] == result["weights"]  # as a sweep asks
    (tmp_path / "run" / "result.json").unlink()
    again = loop.fit(config, tmp_path / "run")
    assert again["weights"] == result["weights"] and again["test"] == result["test"]
    assert saved_run.load(tmp_path / "run").config.backbone.weights == weights
    evaluate.run(config, str(tmp_path / "run"))
    assert places.pin(config, tmp_path / "new").backbone.weights == f"hf:me/tiny@{other}/model.safetensors"
    config.backbone.weights = "hf:me/tiny@main"
    assert places.pin(config, tmp_path / "run").backbone.weights == f"hf:me/tiny@{other}/model.safetensors"


def test_a_file_of_another_network_is_refused_by_its_content(run, server, tmp_path):
    config, _, files = run
    server.commit("me/tiny", files | {"model.safetensors": save({"a": np.ones(3, "f4")})})
    with pytest.raises(InputError, match="model.safetensors belongs to another kind of network, which cannot be used"):
        loop.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shards_of_a_language_model_are_fetched_one_by_one_with_their_tokenizer(server, tmp_path, monkeypatch):
    arrays, shards = sorted(test_llama_files.state().items()), {}
    for number, part in enumerate((arrays[::2], arrays[1::2])):
        save_file(dict(part), tmp_path / "shard")
        shards[f"model-{number}.safetensors"] = (tmp_path / "shard").read_bytes()
    index = {"weight_map": {name: f"model-{i % 2}.safetensors" for i, (name, _) in enumerate(arrays)}}
    files = {"config.json": test_llama_files.CONFIG, hub.WEIGHTS[1]: index, "tokenizer.model": b"?", **shards}
    sha = server.commit("meta/llama", files)
    path = places.located("hf:meta/llama")
    assert path.endswith(f"{sha}/model.safetensors.index.json")
    test_llama_files.assert_loaded(path)
    assert hub.provenance(hub.Place("meta/llama", sha, hub.WEIGHTS[1]))["sha256"].keys() == {hub.WEIGHTS[1], *shards}
    assert places.tokenizer("hf:meta/llama").endswith(f"{sha}/tokenizer.model")
    server.commit("meta/llama", files | {"config.json": test_llama_files.CONFIG | {"rope_theta": 5e5}})
    hub.contents_of.cache_clear()
    with pytest.raises(InputError, match="says rope_theta"):
        test_llama_files.load(places.located("hf:meta/llama"))
    offline(monkeypatch)
    server.requests.clear()
    assert places.located(f"hf:meta/llama@{sha}") == path and not server.requests


@pytest.mark.slow
def test_environment_variables_of_the_client_are_honored(server, tmp_path):
    server.commit("google/vit-x", {"config.json": VIT, "preprocessor_config.json": GOOGLE})
    environment = os.environ | {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "JAX_PLATFORMS": "none"}
    command = [sys.executable, str(ROOT / "main.py"), "--config=folder:backbone=hf:google/vit-x", "--fields"]
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0 and "hf:google/vit-x" in done.stdout and "(0.5, 0.5," in done.stdout, done.stderr
    assert (tmp_path / "home" / "hub" / "models--google--vit-x").is_dir()
    command[2] = "--config=folder:backbone=hf:google/absent"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: There is no repository google/absent at http://127.0.0.1")
