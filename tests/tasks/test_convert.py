"""Conversion: what was imported is exported unchanged, under the names that the PyTorch release loads."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from configs import convert as convert_config
from tests import FIXTURES
from tests.conftest import METHODS, tiny_config
from tests.export.runs import text_run, tuned
from tests.weights import test_llama_files as llama_files
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.export import folder
from toast_jax.model.backbones.vit import network as vit
from toast_jax.tasks import convert
from toast_jax.train import loop
from toast_jax.weights import containers, download, rename

RECORDINGS = sorted(path.stem for kind in ("vit", "convnext", "llama") for path in FIXTURES.glob(f"{kind}_*.npz"))
RELEASED = ("vit_top_down_pretuned", "vit_bottom_up_deit_style", "vit_toast_tuned", "convnext_top_down_pretuned")


def converted(source, target, sha256=""):
    given = f"from={source},to={target}" + (f",sha256={sha256}" if sha256 else "")
    convert.run(convert_config.get_config(given), "unused")
    return target


def state_of(name):
    with np.load(FIXTURES / f"{name}.npz") as file:
        kept = [key for key in file.files if key.startswith("params/") and not key.endswith(".inv_freq")]  # a buffer
        return {key.removeprefix("params/"): file[key] for key in kept}


def assert_identical(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("name", RECORDINGS)
def test_networks_of_the_release_come_back_as_they_were(name, tmp_path):
    """The names of a recording are those of the release's state dict, so that it loads ours with strict=True."""
    save_file(state_of(name), tmp_path / "theirs.safetensors")
    ours = converted(tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors")
    assert_identical(load_file(ours), state_of(name))


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_come_back_as_they_were(name, tmp_path):
    torch = pytest.importorskip("torch")
    source = FIXTURES / f"{name}.pth"
    ours = converted(source, tmp_path / "ours.pth")
    again = converted(ours, tmp_path / "again.safetensors")
    content = torch.load(ours, weights_only=True)
    key = "model_state_dict" if name == "vit_toast_tuned" else "model"
    assert list(content) == [key]
    theirs = torch.load(source, weights_only=False)[key]  # of this repository
    assert_identical({k: v.numpy() for k, v in content[key].items()}, {k: v.numpy() for k, v in theirs.items()})
    assert_identical(load_file(again), {k: v.numpy() for k, v in theirs.items()})


# The rest of them differ in names alone, which the recordings test.
SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in METHODS if method != "lora"]


@pytest.mark.parametrize("method", ["lora", *SLOW])
def test_run_becomes_the_network_it_evaluated(method, image_folder, tmp_path):
    """Saved, converted, and evaluated as a file tuned with the release: the same accuracy and loss."""
    config = tiny_config(image_folder, method)
    config.epochs = 1
    result = loop.fit(config, tmp_path / "run")
    converted(tmp_path / "run", tmp_path / "network.safetensors")
    from toast_jax.tasks import evaluate

    config.task, config.checkpoint = "evaluate", str(tmp_path / "network.safetensors")
    evaluate.run(config, str(tmp_path / "evaluated"))
    import json

    again = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert again["test"]["loss"] == pytest.approx(result["test"]["loss"], rel=1e-6)
    assert again["test"]["accuracy"] == result["test"]["accuracy"]


@pytest.mark.slow
def test_pretuning_run_becomes_backbone_and_module(image_folder, tmp_path):
    config = tiny_config(image_folder, "toast")
    config.epochs, config.stage = 1, "pretune"
    loop.fit(config, tmp_path / "run")
    ours = load_file(converted(tmp_path / "run", tmp_path / "pretuned.safetensors"))
    assert {"prompt", "top_down_transform", "cls_token", "decoders.2.linear2.weight", "blocks.0.attn.qkv.weight"} <= set(ours)
    assert not any(name.startswith(("enc.", "head.")) for name in ours)
    module = load_file(tmp_path / "run" / "top_down.safetensors")
    assert_identical({name: ours[name] for name in module}, module)


def test_module_of_a_language_model_comes_back_alone(tmp_path):
    """The release's names and its bare dict, which it loads with strict=False."""
    torch = pytest.importorskip("torch")
    state = {name: array for name, array in state_of("llama_toast").items() if re.match(r"model\.(prompt|top_|dec)", name)}
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, tmp_path / "theirs.bin")
    ours = torch.load(converted(tmp_path / "theirs.bin", tmp_path / "ours.pth"), weights_only=True)
    assert len(state) == 2 + 2 * 3
    assert_identical({name: tensor.numpy() for name, tensor in ours.items()}, state)


@pytest.mark.parametrize("kind", ["llama2c", "folder", "shards", "index", "folder of llama2c"])
def test_files_of_several_parts_and_of_llama2c_become_one_file(kind, tmp_path):
    (tmp_path / "stories").mkdir()
    source = {
        "llama2c": lambda: llama_files.llama2c(tmp_path / "x.bin", False),
        "folder": lambda: llama_files.folder(tmp_path / "a"),
        "shards": lambda: llama_files.sharded(tmp_path / "a"),
        "index": lambda: llama_files.sharded(tmp_path / "a") / "model.safetensors.index.json",
        "folder of llama2c": lambda: llama_files.llama2c(tmp_path / "stories" / "x.bin", False).parent,
    }[kind]()
    assert_identical(load_file(converted(source, tmp_path / "ours.safetensors")), llama_files.state())
    with pytest.raises(InputError, match=f"as=hf is written from the folder of a run, and {source} is not one; give a run"):
        convert.run(convert_config.get_config(f"from={source},to={tmp_path}/exported,as=hf"), "unused")


def test_folder_of_an_image_network_becomes_one_file(tmp_path):
    (tmp_path / "a").mkdir()
    state = {name.removeprefix("enc."): array for name, array in state_of("vit_toast").items()}
    save_file(state, tmp_path / "a" / "model.safetensors")
    expected = load_file(converted(tmp_path / "a" / "model.safetensors", tmp_path / "expected.safetensors"))
    assert_identical(load_file(converted(tmp_path / "a", tmp_path / "ours.safetensors")), expected)


def test_classifier_of_a_backbone_is_kept(tmp_path):
    state = {name.removeprefix("enc."): array for name, array in state_of("vit_linear").items()}
    state = {name.replace("last_layer.", ""): array for name, array in state.items()}
    save_file(state, tmp_path / "timm.safetensors")
    assert_identical(load_file(converted(tmp_path / "timm.safetensors", tmp_path / "ours.safetensors")), state)


def test_classifier_is_left_out_of_a_backbone_by_other_names(tmp_path, caplog):
    caplog.set_level("INFO", "toast_jax")
    state = {name.removeprefix("enc.").replace("last_layer.", ""): array for name, array in state_of("vit_linear").items()}
    save_file(state, tmp_path / "vit.safetensors")
    convert.run(convert_config.get_config(f"from={tmp_path}/vit.safetensors,to={tmp_path}/x.safetensors,names=vit_timm"), "")
    assert "Left out: classifier/bias, classifier/kernel, as names=vit_timm is for a backbone alone." in caplog.text
    assert load_file(tmp_path / "x.safetensors").keys() == state.keys() - {"head.weight", "head.bias"}


def test_table_has_a_line_for_every_name(caplog, tmp_path):
    caplog.set_level("INFO", "toast_jax")
    arrays, unknown = rename.rename({name.removeprefix("enc."): array for name, array in state_of("vit_toast").items()})
    lines = rename.table(arrays).splitlines()
    assert not unknown
    assert any(line.split() == ["prompt", "top_down/prior", "(32,)"] for line in lines)
    assert any(line.startswith("decoders.{i}.linear2.weight") and "top_down/out/{i}" in line and "3x" in line for line in lines)
    assert len(lines) == len({re.sub(r"\.\d+\.", ".", name) for name in state_of("vit_toast")})


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("", "x.pth", "Nothing to convert; write"),
        ("{tmp}/file.safetensors", "", "Nothing to convert"),
        ("{tmp}/file.safetensors", "{tmp}/x.onnx", "x.onnx has an ending that is not written here"),
        (
            "{tmp}/file.safetensors",
            "{tmp}/other.safetensors/x.safetensors",
            "cannot be written; give a file in a folder that exists",
        ),
        ("{tmp}/gone.safetensors", "{tmp}/x.safetensors", "There is nothing at .*gone.safetensors; correct from="),
        ("{tmp}", "{tmp}/x.safetensors", "There are no checkpoints in"),
        ("https://example.com/x.npz", "{tmp}/x.safetensors", "is not fetched from here; download it with curl"),
        ("nosuch://bucket/x.npz", "{tmp}/x.safetensors", "nosuch://bucket/x.npz cannot be read"),
        (
            "{tmp}/other.safetensors",
            "{tmp}/x.safetensors",
            "another kind of network, which cannot be used: no network here has what",
        ),
    ],
)
def test_refusals(source, target, message, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_file(state_of("vit_linear"), tmp_path / "file.safetensors")
    save_file({"what": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    config = convert_config.get_config()
    config.source, config.target = source.format(tmp=tmp_path), target.format(tmp=tmp_path)
    with pytest.raises(InputError, match=message) as raised:
        convert.run(config, "unused")
    assert str(raised.value).endswith(".")
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("{tmp}/gone", "{tmp}/x", "There is nothing at .*gone; correct from="),
        ("{tmp}/file.safetensors", "{tmp}/x", "file.safetensors is not one; give a run in from=, or write as=release"),
        ("vit_b16_in1k", "{tmp}/x", "and vit_b16_in1k is not one; give a run in from="),
        ("{tmp}/run", "{tmp}/x", "The run in .*run has not finished, as it has no result.json; give its command"),
        ("{tmp}/damaged", "{tmp}/x", "result.json is damaged .*; remove it and give the command of the run again"),
        ("{tmp}", "{tmp}/x", "There are no checkpoints in"),
        ("{tmp}/run", "{tmp}/run", "run exists already; give to= another name, or remove it"),
        ("{tmp}/run", "{tmp}/x.safetensors", "x.safetensors is named like a file.*; give to= a name without .safetensors"),
        ("{tmp}/run", "{tmp}/x,names=dinov3_timm", "names in --config=configs/convert.py:... is for as=release; leave it out"),
        ("{tmp}/run", "{tmp}/file.safetensors/x", "x cannot be written; give to= a folder in one that exists and is yours"),
    ],
)
def test_refusals_of_exports(source, target, message, tmp_path):
    (tmp_path / "file.safetensors").touch()
    for name in ("run", "damaged"):
        (tmp_path / name / "checkpoints" / "2").mkdir(parents=True)
    (tmp_path / "damaged" / "result.json").write_text("{")
    text = f"from={source},to={target},as=timm".format(tmp=tmp_path)
    with pytest.raises(InputError, match=message) as raised:
        convert.run(convert_config.get_config(text), "unused")
    assert str(raised.value).endswith(".") or "=...)" in str(raised.value)
    assert not list(tmp_path.glob("x*"))


def test_files_of_a_run_are_refused_beside_weights(tmp_path):
    save_file(state_of("vit_linear"), tmp_path / "file.safetensors")
    config = convert_config.get_config(f"from={tmp_path}/file.safetensors,to={tmp_path}/x.safetensors")
    config.top_down = "top_down.pth"
    with pytest.raises(InputError, match="--config.top_down is for a run, and from=.*file.safetensors has weights alone"):
        convert.run(config, "unused")


def test_missing_folders_are_created(tmp_path):
    save_file(state_of("vit_linear"), tmp_path / "file.safetensors")
    convert.run(convert_config.get_config(f"from={tmp_path}/file.safetensors,to={tmp_path}/new/deep/x.safetensors"), "unused")
    assert load_file(tmp_path / "new" / "deep" / "x.safetensors")
    folder.write(folder.check_new(tmp_path / "exported" / "x"), {"README.md": "text"})
    assert (tmp_path / "exported" / "x" / "README.md").read_text() == "text"


def test_unknown_kind_gets_the_nearest():
    with pytest.raises(InputError, match="The config argument as is 'tim'; it must be one of release, .*nearest is 'timm'"):
        convert_config.get_config("from=a,to=b,as=tim")


def test_hub_takes_the_first_kind_that_holds_the_network():
    """Timm has no name for so small a network."""
    kind, files = convert._files(tuned("lora"), "hub")
    assert kind == "hf" and set(files) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    with pytest.raises(InputError, match="cannot be merged .*; write as=release, which the PyTorch release loads"):
        convert._files(text_run("toast"), "hub")


@pytest.mark.slow
def test_run_becomes_a_folder_to_upload(image_folder, tmp_path, caplog):
    caplog.set_level("INFO", "toast_jax")
    config = tiny_config(image_folder, "lora")
    config.epochs = 1
    loop.fit(config, tmp_path / "run")
    convert.run(convert_config.get_config(f"from={tmp_path}/run,to={tmp_path}/birds,as=hub"), "unused")
    names = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in (tmp_path / "birds").iterdir()} == names
    assert f"hf upload OWNER/birds {tmp_path}/birds ." in caplog.text
    arrays = load_file(tmp_path / "birds" / "model.safetensors")
    released = load_file(converted(tmp_path / "run", tmp_path / "network.safetensors"))
    np.testing.assert_array_equal(arrays["classifier.weight"], released["head.last_layer.weight"])
    assert not any("lora" in name for name in arrays) and any("lora" in name for name in released)
    config.stage = "pretune"
    loop.fit(config, tmp_path / "pretuned")
    with pytest.raises(InputError, match="pretuned has pre-tuned a module; give one that tuned with it, or write as=release"):
        convert.run(convert_config.get_config(f"from={tmp_path}/pretuned,to={tmp_path}/x,as=hf"), "unused")


def test_remote_file_is_copied_once_and_verified(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_file(state_of("vit_linear"), tmp_path / "b.safetensors")
    digest = hashlib.sha256((tmp_path / "b.safetensors").read_bytes()).hexdigest()
    address = "gs://bucket/b.safetensors"
    remote = epath.Path(tmp_path / "b.safetensors")
    monkeypatch.setattr(download.epath, "Path", {address: remote}.__getitem__)
    copy = download.local(address, digest)
    assert copy.read_bytes() == (tmp_path / "b.safetensors").read_bytes() and tmp_path / "cache" in copy.parents
    (tmp_path / "b.safetensors").unlink()
    assert download.local(address, digest.upper()) == copy
    with pytest.raises(InputError, match=f"is another file: its sha256 is {digest}, not abc; remove it"):
        download.local(address, "abc")
    assert [path.name for path in copy.parent.iterdir()] == ["b.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enc.blocks.0.attn.q_norm.weight": np.zeros(8, "f4")}, "belongs to a ViT with norms of queries and keys"),
        ({"enc.blocks.1.mlp.fc2.bias": None}, "lacks backbone/blocks/{i}/mlp/fc2/bias in some of its layers"),
        ({"enc.blocks.2.norm1.weight": None}, "lacks backbone/blocks/{i}/norm1/scale in some of its layers"),
        ({"enc.norm.bias": np.full(32, np.nan, "f4")}, "has numbers that are not finite in backbone/norm/bias"),
    ],
)
def test_what_does_not_load_is_not_converted(change, message, tmp_path):
    state = {**state_of("vit_linear"), **change}
    save_file({name: array for name, array in state.items() if array is not None}, tmp_path / "theirs.safetensors")
    with pytest.raises(InputError, match=message):
        converted(tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors")


def test_header_travels_with_the_arrays(tmp_path):
    save_file(state_of("vit_toast"), tmp_path / "a.safetensors", {"toast_jax": "{}"})
    converted(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert containers.read_header(tmp_path / "b.safetensors") == {"toast_jax": "{}"}


def test_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    save_file(state_of("vit_linear"), tmp_path / "a.safetensors")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="b.safetensors cannot be written .*No space left on device"):
        converted(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.slow
def test_run_whose_backbone_has_moved_can_be_told_where(image_folder, tmp_path):
    state = {name: array for name, array in state_of("vit_linear").items() if not name.startswith("head")}
    save_file(state, tmp_path / "old.safetensors")
    config = tiny_config(image_folder, "linear")
    config.backbone.update({"size": "recorded", "weights": str(tmp_path / "old.safetensors"), "dtype": "bfloat16"})
    config.epochs, config.data.image_size, config.data.resize = 1, 32, 32
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "recorded", vit.Size(width=32, depth=3, num_heads=4))
        loop.fit(config, tmp_path / "run")
        (tmp_path / "old.safetensors").rename(tmp_path / "new.safetensors")
        with pytest.raises(InputError, match="There is no weights file at"):
            converted(tmp_path / "run", tmp_path / "x.safetensors")
        target = f"from={tmp_path}/run,to={tmp_path}/x.safetensors,weights={tmp_path}/new.safetensors"
        convert.run(convert_config.get_config(target), "unused")
    exported = load_file(tmp_path / "x.safetensors")
    for name, array in state.items():  # as it is in the file, not as the run has rounded it
        np.testing.assert_array_equal(exported[name], array)


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    containers.write(path, {"a": np.zeros(3, np.float32)}, {})
    before = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(InputError):
        containers.write(path, {"a": np.ones(3, np.float32)}, {})
    assert path.read_bytes() == before


def test_transposed_arrays_are_written_as_they_look(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    containers.write(tmp_path / "x.safetensors", {"a": array}, {"note": "kept"})
    np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["a"], array)
    assert containers.read_header(tmp_path / "x.safetensors") == {"note": "kept"}
    assert trees.count({"a": array}) == 6
