"""The command line: a user's mistakes end with one sentence and status 2."""

import os
import re
import signal
import subprocess
import sys

import jax
import pytest

from tests import ROOT
from toast_jax import cli
from toast_jax.config import config_files
from toast_jax.errors import InputError


def run(*args, cwd=ROOT):
    return subprocess.run([sys.executable, str(ROOT / "main.py"), *args], capture_output=True, text=True, cwd=cwd, timeout=300)


def test_tuning_on_the_command_line(image_folder, tmp_path):
    """Real flags, a real size, no TensorFlow, and nothing written outside the workdir and the cache."""
    work, cache, here = tmp_path / "run", tmp_path / "cache", tmp_path / "here"
    here.mkdir()
    code = "import sys, main; sys.argv[0] = 'main.py'\ntry: main.cli()\nfinally: assert 'tensorflow' not in sys.modules"
    flags = [
        f"--config={ROOT}/configs/folder.py:method=lora,backbone=vit_ti16",
        f"--workdir={work}",
        f"--config.data.root={image_folder}",
        "--config.backbone.weights=random",
        "--config.data.image_size=16",
        "--config.data.resize=18",
        "--config.batch_size=8",
        "--config.epochs=2",
        "--config.warmup_epochs=0",
        "--config.log_every=1",
        "--config.data.splits.val=",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, cwd=here, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "36,864 of them outside the head" in done.stdout
    assert "\nfolder_lora_vit_ti16: test accuracy " in done.stdout
    assert done.stdout.splitlines()[-1] == f"All counts on test are in {work / 'confusion.csv'}."
    losses = [float(line.split()[3]) for line in done.stdout.splitlines() if line.startswith("step ") and " lr " in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert {path.name for path in work.iterdir()} == {
        "config.json",
        "confusion.csv",
        "metrics.jsonl",
        "result.json",
        "tensorboard",
        "checkpoints",
        "test_correct.txt",
    }
    assert list((cache / "toast_jax" / "compiled").iterdir())
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config=convert"], "Nothing to convert; write --config=configs/convert.py:from=SOURCE,to=FILE"),
        ([], "No config was given; add --config=FILE, FILE being one of\n  configs/alpaca.py +Tune a language model"),
        (["--config=configs/fgcv.py"], "There is no config configs/fgcv.py under .* has\n  configs/alpaca.py"),
        (["--config=CITATION.cff"], "CITATION.cff is no config of its own; use one of\n  configs/alpaca.py"),
        (["--config=configs/fgvc.py", "--config.optimizer.l=1"], "The config has no field optimizer.l; the nearest are"),
        (["--config=configs/fgvc.py", "config.seed=1"], "'config.seed=1' is not understood; fields are set with --config"),
        (["--config=configs/fgvc.py", "--config.epochs=1.5"], "config.epochs is 1.5; it has to be a whole number.$"),
        (["--config=configs/fgvc.py", "--config.optimizer.lr=x"], "config.optimizer.lr is x; it has to be a number.$"),
        (["--config=configs/fgvc.py", "--config.resume=no"], "flag --config.resume=no: 'no' is neither True nor False."),
        (["--config=configs/fgvc.py", "--config.task=convert"], "This config is not for the task convert; see the captions"),
        (["--config=configs/convert.py", "--config.task=train"], "This config is not for the task train"),
        (["--config=configs/sweep.py", "--distributed"], "The task sweep is not shared by hosts, .* leave out --distributed"),
        (
            ["--config=configs/predict.py", "--distributed"],
            "The task predict is not shared by hosts, as train and evaluate are",
        ),
        (["--config=configs/fgvc.py:datset=cub"], "The config argument is 'datset'; .*nearest is 'dataset'"),
    ],
)
def test_mistakes_end_with_a_sentence_and_status_2(args, message):
    done = run(*args)
    assert done.returncode == 2
    assert re.match(f"error: {message}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_captions_fit_a_narrow_terminal():
    lines = config_files.captions().splitlines()
    assert len(lines) >= 5 and max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config=configs/fgvc.py:dataset=birds"], "The config argument dataset is 'birds'; it must be one of cub"),
        (["--config=configs/fgvc.py:dataset"], "'dataset' has no value; write dataset=VALUE"),
        (["--config=configs/fgvc.py:backbone=resnet50"], "The backbone 'resnet50' is not known"),
        (["--config=toast_jax/errors.py"], "toast_jax/errors.py is no config of its own"),
        (["--config=configs/fgvc.py", "--config.metod=lora"], "no field metod; the nearest are method"),
        (["--config=configs/fgvc.py", "--config.learning_rate=1"], "no field learning_rate; the nearest are optimizer.lr, "),
        (["--config=configs/fgvc.py", "--config.data.foo.bar=1"], "no field data.foo.bar"),
        (["--config=configs/fgvc.py", "--config.lr=1"], "no field lr; the nearest are optimizer.lr."),
        (["--config=configs/fgvc.py", "--config.root=x"], "no field root; the nearest are data.root"),
        (["--config=configs/fgvc.py", "--noconfig.resum"], "no field resum; the nearest are resume"),
    ],
)
def test_arguments_are_checked(args, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=message):
        cli.check_arguments(args)


def test_the_last_value_of_a_field_counts():
    """Of a field with several values, such as seeds, too, which config_flags would join."""
    args = ["main.py", "--config=a.py:x=1", "--config.sweep.seeds=1,2", "--workdir=x", "-config.sweep.seeds=3", "--config.seed"]
    assert cli.without_repeats(args) == [args[0], args[1], *args[3:]]
    flags = ["--config.sweep.seeds=1,2", "--config.sweep.seeds=3,4", "--fields"]
    shown = subprocess.run(
        [sys.executable, "main.py", "--config=configs/sweep.py:table=fgvc,method=linear", *flags],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.search(r"sweep.seeds +\(3, 4\)", shown)


@pytest.fixture(scope="module")
def set_up(tmp_path_factory):
    """What a process prints whose config imports JAX, and whose task then ends with a sentence."""
    folder = tmp_path_factory.mktemp("set_up")
    config = "import jax\nfrom toast_jax.config import config_files\nget_config = lambda: config_files.read_config('convert')"
    (folder / "early.py").write_text(config)
    code = (
        "import logging, sys; from toast_jax import cli\n"
        "try: cli.cli()\n"
        "except SystemExit: import jax\n"
        "print(jax.config.jax_compilation_cache_dir)\n"
        "for name in ('jax._src.xla_bridge', 'absl'): print(logging.getLevelName(logging.getLogger(name).getEffectiveLevel()))"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(folder), "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", code, "--config=early.py"], capture_output=True, text=True, cwd=folder, env=env, timeout=300
    )
    assert done.stderr.startswith("error: Nothing to convert"), done.stderr
    return folder, done.stdout.splitlines()


def test_settings_come_before_the_config(set_up):
    folder, lines = set_up
    assert lines[1] == str(folder / "toast_jax" / "compiled")


def test_the_first_line_names_devices_and_versions(set_up):
    xla_flags = "--xla_cpu_experimental_ynn_fusion_type="
    assert set_up[1][0] == f"Running on 1 cpu device (cpu), jax {jax.__version__}, XLA_FLAGS={xla_flags}."


def test_the_first_line_of_a_run_names_the_precision():
    assert f", jax {jax.__version__}, precision highest, XLA_FLAGS=" in cli._devices("highest")


def test_jax_may_warn_and_orbax_may_not(set_up):
    assert set_up[1][2:] == ["WARNING", "CRITICAL"]


@pytest.mark.parametrize(
    ("platforms", "jaxlib", "given", "expected"),
    [
        ("cpu", "0.10.2", None, "--xla_cpu_experimental_ynn_fusion_type="),
        ("cpu", "0.12.0.1", "--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type="),
        ("cpu", "0.10.2", "--xla_cpu_experimental_ynn_fusion_type=1", "--xla_cpu_experimental_ynn_fusion_type=1"),
        ("cpu", "0.10.1", None, None),
        ("cpu", "0.12.1", None, None),
        ("cuda", "0.10.2", None, None),
    ],
)
def test_ynn_fusions_are_off_on_cpus_where_the_flag_is_known(platforms, jaxlib, given, expected, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.delenv("XLA_FLAGS")
    if given:
        monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(cli.importlib.metadata, "version", lambda name: jaxlib)
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: name == "jax_plugins")
    cli.set_environment()
    assert os.environ.get("XLA_FLAGS") == expected


def test_good_arguments_pass(monkeypatch):
    monkeypatch.chdir(ROOT)
    cli.check_arguments(
        ["--config=configs/fgvc.py:dataset=cars", "--config.optimizer.lr=1", "--noconfig.resume", "--workdir=x"]
    )


def test_ctrl_c_saves_and_says_how_to_resume(image_folder, tmp_path):
    flags = [
        "--config=configs/folder.py:method=linear,backbone=vit_ti16",
        f"--workdir={tmp_path}",
        f"--config.data.root={image_folder}",
        "--config.backbone.weights=random",
        "--config.data.image_size=16",
        "--config.data.resize=18",
        "--config.batch_size=8",
        "--config.epochs=2000",
        "--config.log_every=1",
        "--config.eval_every=2000",
        "--config.checkpoint_every=2000",
    ]
    process = subprocess.Popen([sys.executable, "main.py", *flags], stdout=-1, stderr=-1, text=True, cwd=ROOT)
    for line in process.stdout:
        if line.startswith("step 5/"):
            process.send_signal(signal.SIGINT)
            break
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    stopped = re.match(
        r"Stopped after step (\d+) of 6000, which is saved in .*\. Go on with\n  python main.py --config=", error
    )
    assert stopped and f"--workdir={tmp_path}" in error and "Traceback" not in error
    assert (tmp_path / "checkpoints" / stopped[1]).is_dir()


def test_a_reduction_of_many_rows_is_right_on_a_cpu():
    """XLA's fusions with YNNPACK, which the command line switches off, return garbage for more than 32,768 rows."""
    code = (
        "from toast_jax import cli; cli.set_environment()\n"
        "import jax, jax.numpy as jnp, numpy as np\n"
        "rows, ones = np.random.default_rng(0).normal(size=(33_000, 16)).astype('f4'), jnp.ones((16, 16))\n"
        "compiled = jax.jit(lambda x: jnp.sum(jnp.square(jax.vmap(lambda row: ones @ row)(x))))(rows)\n"
        "expected = 16 * np.square(rows.astype(float).sum(axis=1)).sum()\n"
        "assert abs(compiled / expected - 1) < 1e-5, (compiled, expected)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
