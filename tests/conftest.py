"""Eight virtual CPU devices for every test, and a network and a data set small enough for them."""

import os
from importlib.metadata import version

# Before JAX starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

# Most programs run once or twice, so their time is compilation; `make test-all` sets the level that users get. XLA's older
# generator of loops, which jaxlib 0.10 still has, compiles them in half the time.
_HAS_OLDER = version("jaxlib").startswith("0.10.")
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0" + _HAS_OLDER * " --xla_cpu_use_fusion_emitters=false"
# Compiler options for the generator that users get, where a comparison leaves no room for another order of sums.
LOOPS_OF_USERS = {"xla_cpu_use_fusion_emitters": True} if _HAS_OLDER else {}

# On a busy machine the threads of so many devices may wait for each other longer than the 40 s after which XLA gives up.
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=600"

# Many tests compile the same small programs; keep them, for this run's workers and for the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import gc  # noqa: E402
import logging  # noqa: E402
import re  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import weakref  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402
from PIL import Image  # noqa: E402

# Calls are checked against the shapes of annotations; before the package is imported.
install_import_hook(["toast_jax.model", "toast_jax.train.step"], "beartype.beartype")

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs import folder  # noqa: E402
from toast_jax.devices import parallel  # noqa: E402
from toast_jax.errors import InputError  # noqa: E402
from toast_jax.model.backbones.convnext import network as convnext  # noqa: E402
from toast_jax.model.backbones.vit import network as vit  # noqa: E402

flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job, where Ctrl-C could not be tested
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_CONVNEXT = convnext.Size(depths=(1, 1, 2, 2), widths=(8, 8, 16, 16))
METHODS = (
    *("linear", "ep", "finetune", "partial", "bias", "ln", "ssf", "adapter_plus", "vpt", "lora"),
    *("toast", "toast_lite", "toast_ep"),
)
# For tests that take a second for each method and that say little more for these.
_FEWER = ("ep", "ln", "ssf", "adapter_plus", "toast_ep")
SOME_SLOW = [pytest.param(name, marks=pytest.mark.slow) if name in _FEWER else name for name in METHODS]
CLASSES = ("heron", "kite", "owl")
COUNTS = {"train": 8, "val": 2, "test": 3}  # images per class


def pytest_collection_finish():
    """Spares every garbage collection the walk through all that was imported."""
    gc.freeze()


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch):
    """Adds sizes that no user needs."""
    monkeypatch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
    monkeypatch.setitem(convnext.SIZES, "tiny", TINY_CONVNEXT)


@pytest.fixture(autouse=True)
def package_log():
    """Undoes what a command of this test's process has set."""
    log = logging.getLogger("toast_jax")
    level, propagate, handlers = log.level, log.propagate, log.handlers.copy()
    yield
    log.setLevel(level)
    log.propagate, log.handlers = propagate, handlers


@pytest.fixture(autouse=True, scope="module")
def drop_programs():
    """After each file and, if one holds many, after each test: see `programs.drop_all`."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def drop_many_programs(request):
    yield
    if request.node.get_closest_marker("slow") and sys.platform == "linux":
        if Path("/proc/self/maps").read_bytes().count(b"\n") > 20_000:
            jax.clear_caches()


def noted_steps(patch):
    """Return a list that gets a weak reference to each step that is mapped over devices from now on."""
    references, replicate = [], parallel.replicate

    def noted(step, *args, **kwargs):
        references.append(weakref.ref(step))
        return replicate(step, *args, **kwargs)

    patch.setattr(parallel, "replicate", noted)
    return references


def are_dropped(steps):
    """Return whether there were steps and none is alive."""
    gc.collect()
    return bool(steps) and not any(step() for step in steps)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A folder of small noisy JPEGs in three colours, one for each class."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in COUNTS.items():
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (40, 48, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.jpg")
    return root


@pytest.fixture
def config(image_folder):
    """A run of a second: two epochs of three steps, of the method that compiles fastest."""
    return tiny_config(image_folder, "linear")


def refusal(read):
    """The message with which a function refuses its input: one sentence."""
    with pytest.raises(InputError) as raised:
        read()
    text = str(raised.value)
    assert text.endswith(".") and "\n" not in text and not re.search(r"[a-z]\. [A-Z]", text)
    return text


def refusals_of_damaged_copies(path, read, times=300):
    """How many of so many copies, three random bytes of each changed, `read` refuses by name; other errors are let through."""
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(times):
        damaged = bytearray(content)
        for i in rng.integers(0, len(content), 3):
            damaged[i] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read(str(path))
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    return refused


def tiny_config(root, method, backbone="vit_ti8"):
    config = folder.get_config(f"method={method},backbone={backbone}")
    config.data.root = str(root)
    config.data.image_size, config.data.resize = (16, 18) if backbone == "vit_ti8" else (32, 36)
    config.backbone.update({"size": "tiny", "weights": "random"})
    config.head.start = "random"  # its gradients reach everything at once
    config.prompts.num, config.probe.queries = 2, 4
    config.batch_size, config.epochs, config.warmup_epochs = 8, 2, 0
    config.eval_every = config.checkpoint_every = 1
    config.optimizer.lr = 0.05
    config.confusion = False  # its network is one more to compile
    return config
