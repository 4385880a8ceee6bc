"""The records of families: a toy backbone with one record does all that the package's own do, and nothing else asks for one."""

import ast
import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import alpaca, fgvc
from configs import convert as convert_config
from tests import FIXTURES, ROOT
from tests.conftest import tiny_config
from toast_jax import trees
from toast_jax.analysis import maps
from toast_jax.errors import InputError
from toast_jax.model import losses, methods, steered
from toast_jax.model.backbones.normalize import normalize
from toast_jax.model.backbones.rename_rules import (
    STEERED,
    Names,
    bias,
    bottleneck,
    linear,
    low_rank,
    norm,
    scale_and_shift,
    token_feedback,
)
from toast_jax.model.families import FAMILIES, Family
from toast_jax.model.layers import dtypes, patches, stack
from toast_jax.model.layers.drop_path import BlockOutput
from toast_jax.model.layers.linear import Linear
from toast_jax.model.methods import METHODS, with_lora
from toast_jax.tasks import convert, evaluate
from toast_jax.train import loop, saved_run, setup
from toast_jax.weights import rename


# A new backbone: its module, its sizes and its names. Steering adds the top-down input to the input of every block.
class MixerBlock(nn.Module):
    tokens: int
    width: int
    dtype: jnp.dtype

    def setup(self):
        self.mix = Linear(self.tokens, dtype=self.dtype)
        self.mlp = Linear(self.width, dtype=self.dtype)
        self.norm = nn.LayerNorm(dtype=self.dtype)
        self.output = BlockOutput()

    def __call__(self, x, td):
        y = x if td is None else x + td
        y = y + self.mix(y.swapaxes(1, 2)).swapaxes(1, 2)
        return self.output(y + nn.gelu(self.mlp(self.norm(y)))), x


class Mixer(nn.Module):
    width: int
    depth: int
    grid: int
    patch: int = 4
    dtype: jnp.dtype = jnp.float32

    last_blocks = 0

    def setup(self):
        self.stem = Linear(self.width, dtype=self.dtype)
        self.blocks = nn.scan(MixerBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)(
            self.grid**2, self.width, self.dtype
        )
        self.norm = nn.LayerNorm(dtype=self.dtype)

    @property
    def example(self):
        return jnp.zeros((1, self.grid * self.patch, self.grid * self.patch, 3))

    def __call__(self, images, td=None, rng=None, start=None, maps=True):
        if start is None:
            x = self.stem(patches.split(normalize(images), self.patch).reshape(len(images), self.grid**2, -1))
        else:
            x = start
        block = MixerBlock(self.grid**2, self.width, self.dtype, parent=None)
        x, seen = stack.look(self.blocks, block, 0 if start is None else self.depth - len(td), x, (td,), ())
        tokens = self.norm(x)
        return self.pooled_map(x), {"tokens": tokens, "fed_back": tokens, "hidden": jnp.concatenate([seen, x[None]])}

    def pooled(self, images, td=None, rng=None, start=None):
        return self(images, td, start=start)[0]

    def pooled_map(self, last):
        return self.norm(last).mean(axis=1)

    def on_grid(self, values):
        return values.reshape(-1, self.grid, self.grid)


@dataclasses.dataclass(frozen=True)
class Size:
    width: int
    depth: int


def build(config, last_blocks):
    sizes = FAMILIES["mixer"].sizes[config.backbone.size]
    return Mixer(**dataclasses.asdict(sizes), grid=config.data.image_size // 4, dtype=dtypes.named(config.backbone.dtype))


LAYERS = [(f"mixer_blocks.{{i}}.{name}", f"backbone/blocks/{{i}}/{name}") for name in ("mix", "mlp")]
OPERATIONS = [*LAYERS, ("mixer_blocks.{i}.norm", "backbone/blocks/{i}/norm")]
OPERATIONS += [("stem", "backbone/stem"), ("norm", "backbone/norm")]
NAMES = Names(
    (
        *(row(torch, path) for torch, path in [("stem", "backbone/stem"), *LAYERS] for row in (linear, bias)),
        *norm("mixer_blocks.{i}.norm", "backbone/blocks/{i}/norm"),
        *norm("norm", "backbone/norm"),
        *STEERED,
        *token_feedback(),
        *(row for torch, path in LAYERS for row in low_rank(torch, f"lora/{path}")),
        *bottleneck("mixer_blocks.{i}", "backbone/blocks/{i}"),
        *(row for torch, path in OPERATIONS for row in scale_and_shift(f"{torch}.", (path,))),
    ),
    own_paths=r"backbone/stem/|(lora/)?backbone/blocks/(\d+/)?mix/",
    has_name=lambda name, array: name.startswith(("stem.", "mixer_blocks.")),
)
MIXER = Family(
    title="Mixer",
    reads="images",
    module=Mixer,
    build=build,
    sized=lambda arrays, head_width: None,
    sizes={"tiny": Size(width=8, depth=2)},
    names=NAMES,
    methods=with_lora(
        {name: row for name, row in METHODS.items() if name not in ("vpt", "partial")}, r"backbone/blocks/m(ix|lp)/kernel"
    ),
    refused={
        "vpt": "adds prompt tokens, which a Mixer has no place for",
        "partial": "tunes the last blocks, which a Mixer keeps in one stack with the others",
    },
    image_multiple=lambda backbone: 4,
)


@pytest.fixture
def config_of(image_folder, monkeypatch):
    """The config of a method for the toy."""
    monkeypatch.setitem(FAMILIES, "mixer", MIXER)

    def make(method):
        config = tiny_config(image_folder, method)
        for field in FAMILIES["vit"].fields:
            del config.backbone[field]
        config.backbone.family = "mixer"
        config.epochs, config.batch_size = 1, 24  # one step
        return config

    return make


PUBLISHED = {"vit": (fgvc, "vit_b16_in1k"), "convnext": (fgvc, "convnext_t_in1k"), "llama": (alpaca, "llama1_7b")}


@pytest.mark.parametrize(
    ("family", "method", "steered_blocks"),
    [
        (name, method, blocks)
        for name, family in FAMILIES.items()
        for method, row in family.methods.items()
        for blocks in ((0, 2) if row.signal == "top_down" else (0,))
    ],
)
def test_every_method_of_every_family_has_gradients(family, method, steered_blocks):
    """Shapes alone, so that all rows are traced at their published sizes in every run of the tests."""
    config_file, backbone = PUBLISHED[family]
    config = config_file.get_config(f"method={method},backbone={backbone}")
    config.steered_blocks = steered_blocks
    model, row = steered.build(config, 10)
    params = jax.eval_shape(lambda: steered.init(model, row, jax.random.key(0)))
    text = jnp.ones((2, 8), jnp.int32)
    examples = {"images": {"image": jnp.zeros((2, 224, 224, 3), jnp.uint8), "label": jnp.zeros(2, jnp.int32)}}
    examples["text"] = {"tokens": text, "segments": text, "label": text, "weight": jnp.ones((2, 8))}
    tuned, frozen = trees.split(params, methods.tuned_mask(params, row))

    def loss(tuned, frozen, batch):
        return losses.tune(model, row)(trees.merge(tuned, frozen), batch)["loss"].mean()

    gradients = jax.eval_shape(jax.grad(loss), tuned, frozen, examples[FAMILIES[family].reads])
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, tuned)


# The signal and the low-rank deltas in one.
QUICK = ("toast_lite",)
OTHERS = [pytest.param(method, marks=pytest.mark.slow) for method in MIXER.methods if method not in QUICK]


@pytest.mark.parametrize("method", [*QUICK, *OTHERS])
def test_a_family_is_one_record(method, config_of, tmp_path):
    """A run of one step is saved, loaded, evaluated, exported by PyTorch's names, evaluated from those, and drawn."""
    config, folder = config_of(method), tmp_path / "run"
    result = loop.fit(config, folder)
    assert result["steps"] == 1

    saved = saved_run.load_tuned(folder)
    assert type(saved.model.backbone) is Mixer
    start = setup.load_network(config, 3)
    before, tuned = trees.flat(trees.merge(start.tuned, start.frozen)), trees.flat(start.mask)
    changed = {path: not np.array_equal(before[path], after) for path, after in trees.flat(saved.params).items()}
    assert changed == tuned

    config.task = "evaluate"
    evaluate.run(config, str(folder))
    task = convert_config.get_config(f"from={folder},to={tmp_path / 'exported.safetensors'}")
    convert.run(task, str(tmp_path))
    config.checkpoint = str(tmp_path / "exported.safetensors")
    evaluate.run(config, str(tmp_path / "again"))
    for evaluated in (folder, tmp_path / "again"):
        scores = json.loads((evaluated / "evaluation.json").read_text())["test"]
        assert scores == pytest.approx(result["test"], rel=1e-6)

    look = jax.jit(functools.partial(maps.look_closely, saved.model, saved.method))
    _, drawn, parts = look(saved.params, jnp.zeros((2, 16, 16, 3), jnp.uint8))
    looks_twice = saved.method.signal == "top_down"
    assert set(drawn) == {maps.GRAD_CAM} | ({maps.SELECTION} if looks_twice else set())
    assert all(picture.shape == (2, 4, 4) for picture in (*drawn.values(), *parts.top_down))
    assert len(parts.top_down) == 2 * looks_twice


@pytest.mark.slow
def test_the_last_block_alone_is_steered(config_of, tmp_path):
    config = config_of("toast")
    config.steered_blocks = 1
    loop.fit(config, tmp_path)
    assert len(saved_run.load_tuned(tmp_path).params["top_down"]["back"]) == 1


def test_a_top_down_module_of_a_new_family_is_pretuned_and_used(config_of, tmp_path):
    config = config_of("toast")
    config.stage = "pretune"
    loop.fit(config, tmp_path)
    config.stage, config.top_down = "tune", str(tmp_path / "top_down.safetensors")
    network, saved = setup.load_network(config, 3), saved_run.load(tmp_path)
    np.testing.assert_array_equal(network.tuned["top_down"]["back"], saved.params["top_down"]["back"])


@pytest.mark.parametrize("method", MIXER.refused)
def test_a_refused_method_gets_the_reason_of_the_record(method, config_of, tmp_path):
    with pytest.raises(InputError, match=f"Method {method} {MIXER.refused[method]}; use another --config.method, or a ViT"):
        loop.fit(config_of(method), tmp_path)


def test_a_gate_belongs_to_either_family():
    """A module of method partial may name it first."""
    gate, *others = [f"backbone/blocks/2/mlp/{name}/kernel" for name in ("gate", "fc1", "up")]
    assert [rename.kind([gate, other]) for other in others] == [FAMILIES["vit"], FAMILIES["llama"]]


def test_a_file_of_another_family_is_refused(config_of, tmp_path):
    pytest.importorskip("torch")  # reads the file
    config = config_of("linear")
    config.backbone.weights = str(FIXTURES / "vit_bottom_up_deit_style.pth")
    with pytest.raises(InputError, match="belongs to a ViT, but the network of the config is a Mixer"):
        setup.load_network(config, 3)


# Nothing else asks which family a network belongs to.
RECORDS = {"toast_jax/model/families.py"}
# The files of weights that a LLaMA alone is read from, and the recordings of its kinds.
OF_ONE_FAMILY = {"toast_jax/weights/llama_files.py", "toast_jax/testing/language_parity.py"}
_OF_ALL = {"__init__", "__pycache__", "export_formats", "normalize", "protocol", "rename_rules"}
BACKBONES = {path.stem for path in (ROOT / "toast_jax/model/backbones").iterdir()} - _OF_ALL
ASKING = {*FAMILIES, *(family.title for family in FAMILIES.values())}
FILES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "toast_jax").rglob("*.py"))]


def questions(source):
    """What in a file depends on the family: backbones it imports, and strings that are compared, matched or keys."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("toast_jax.model"):
            modules = {*node.module.split("."), *(alias.name for alias in node.names)}
            yield from () if "kinds" in modules else BACKBONES & modules  # all names that users write
        if isinstance(node, ast.Import):
            yield from BACKBONES & {part for alias in node.names for part in alias.name.split(".")}
        inner = ()
        if isinstance(node, (ast.Compare, ast.Subscript, ast.MatchValue)):
            inner = ast.walk(node)
        elif isinstance(node, ast.Dict):
            inner = filter(None, node.keys)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get":
            inner = node.args
        yield from (leaf.value for leaf in inner if isinstance(leaf, ast.Constant) and leaf.value in ASKING)


@pytest.mark.parametrize("file", [name for name in FILES if name not in RECORDS and "/backbones/" not in name])
def test_nothing_else_asks_for_the_family(file):
    assert file in OF_ONE_FAMILY or not list(questions((ROOT / file).read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "from toast_jax.model.backbones.vit import network as vit",
        "from toast_jax.model.backbones.llama.network import LLaMA",
        "import toast_jax.model.backbones.vit.torch_names",
        'config.backbone.family == "llama"',
        'family.title in ("ViT", "LLaMA")',
        'FAMILIES["vit"]',
        '{"vit": 0.1}',
        'weights.get("ConvNeXt")',
    ],
)
def test_questions_are_found(source):
    assert list(questions(source))


@pytest.mark.parametrize("backbone", ("vit_mini16", "convnext_t", "stories260k"))
def test_unrolled_networks_have_no_loop_over_blocks(backbone):
    """Of every family; neither is compiled."""

    def loops(unroll):
        if backbone == "stories260k":
            config = alpaca.get_config(f"method=finetune,backbone={backbone}")
        else:
            config = fgvc.get_config(f"method=finetune,backbone={backbone}")
            config.data.image_size = 32
        config.backbone.unroll = unroll
        net, row = steered.build(config, 2)
        params = jax.eval_shape(lambda: steered.init(net, row, jax.random.key(0)))
        lowered = jax.jit(functools.partial(steered.apply, net, row)).lower(params, net.backbone.example)
        return lowered.as_text().count("stablehlo.while")

    assert loops(unroll=False) > loops(unroll=True) == 0
