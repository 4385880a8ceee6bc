"""toast --config=fgvc:dataset=cub,method=toast --workdir=runs/cub --config.FIELD=VALUE

In a clone of the repository: python main.py --config=configs/fgvc.py:dataset=cub,method=toast ...
"""

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shlex
import sys
import traceback
from pathlib import Path

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from toast_jax import package_files
from toast_jax.config import config_files
from toast_jax.devices import xla_flags
from toast_jax.errors import InputError, Interrupted, choose
from toast_jax.fields import flat_fields, unknown

# Modules of toast_jax/tasks, each with a field that its configs have.
TASKS = {
    "train": "method",
    "evaluate": "method",
    "sweep": "sweep",
    "table": "sweeps",
    "convert": "target",
    "predict": "attention",
    "visualize": "most",
    "attention_metrics": "objects",
    "corruptions": "severities",
    "generate": "prompt",
    "score": "choices",
    "relevance": "answer",
    "prepare_data": "datasets",
    "demo": "attention_scenes",
    "demo_segment": "attention_scenes",
    "demo_language": "tales",
}
_FOLDERS = dict.fromkeys(("generate", "score", "relevance"), "language")  # subfolders of toast_jax/tasks, by task
_OVER_HOSTS = ("train", "evaluate")  # of others, every process would write the same files
_WITHOUT_DEVICES = ("table", "prepare_data")  # must not start an accelerator
_NO_NUMBER = {r"invalid literal for int\(\)": "whole number", "could not convert string to float": "number"}  # errors of absl
_CONFIG = re.compile(r"(?:(?<=\0)|^)(--?config[=\0])([^\0]*)")  # in arguments that are joined by \0

CONFIG = config_flags.DEFINE_config_file("config", None, "Name or file of the config, with its arguments after a colon.")
FIELDS = flags.DEFINE_bool("fields", False, "Print the fields of the config (name, value, allowed, meaning), and exit.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a TPU pod slice or a Slurm job.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/NAME by default, NAME being the config's.")


def cli() -> None:
    """Run a task from `sys.argv`; an InputError ends the process with its sentence, status 2 and no traceback."""
    set_environment()
    _set_logging()
    # --help of absl prints the docstring of `__main__` and the flags registered for it.
    sys.modules["__main__"].__doc__ = f"{__doc__}\nConfigs:\n{config_files.captions()}\n"
    for flag in (CONFIG, FIELDS, DISTRIBUTED, WORKDIR):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])
    try:
        if not {"--help", "--helpfull", "--helpshort"} & set(sys.argv):
            check_arguments(sys.argv[1:])
        app.run(_main, flags_parser=_parse)
    except InputError as error:
        _exit(2, f"error: {error}")
    except Interrupted as message:  # by all processes
        program = ["toast"] if Path(sys.argv[0]).stem == "toast" else ["python", sys.argv[0]]
        print(f"{message} Go on with\n  {shlex.join([*program, *sys.argv[1:]])}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        _exit(130, "Interrupted.")
    except Exception as error:
        from toast_jax.workdir.run_folder import disk_fault, is_in_the_way, unwritable

        if isinstance(error, OSError) and (disk_fault(error) or is_in_the_way(error)):
            _exit(2, f"error: {unwritable(error.filename or 'A file', error)}")
        _exit(1, traceback.format_exc())


def check_arguments(argv: list[str]) -> None:
    """Refuse arguments that raise in config_flags: no config, a missing file, an unknown field.

    Raises:
      InputError: with the nearest names.
    """
    config = next((match[2] for match in _CONFIG.finditer("\0".join(argv))), "")
    if not config:
        raise InputError(f"No config was given; add --config=FILE, FILE being one of\n{config_files.captions()}")
    fields = list(flat_fields(config_files.read_config(config).to_dict()))
    for arg in argv:
        if (match := re.match(r"--?(?:no)?config\.([^=]+)", arg)) and match[1] not in fields:
            raise InputError(unknown(match[1], fields))


def module_of(task: str) -> str:
    """Return the name of a task's module."""
    return ".".join(["toast_jax", "tasks", *([_FOLDERS[task]] if task in _FOLDERS else []), task])


def _main(argv: list[str]) -> None:
    absl.logging.set_verbosity(absl.logging.WARNING)  # such as JAX's about falling back to the CPU
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the traceback of everything that it raises
    if len(argv) > 1:
        raise InputError(f"{argv[1]!r} is not understood; fields are set with --config.FIELD=VALUE.")
    config = CONFIG.value
    if choose("config.task", config.task, TASKS) not in config:
        raise InputError(
            f"This config is not for the task {config.task}; see the captions of the configs.\n{config_files.captions()}"
        )
    if FIELDS.value:
        from toast_jax.config import field_table

        return print(field_table.table_of(config))
    if DISTRIBUTED.value and config.task not in _OVER_HOSTS:
        raise InputError(
            f"The task {config.task} is not shared by hosts, as {' and '.join(_OVER_HOSTS)} are (a sweep has shards instead, "
            "see docs/sweeps.md): leave out --distributed."
        )
    task = importlib.import_module(module_of(config.task))
    folder = WORKDIR.value or f"runs/{config.name}"
    if not DISTRIBUTED.value:
        return _run(task, config, folder)
    import jax

    from toast_jax.devices import hosts

    with hosts.joined():
        if jax.process_index():
            logging.getLogger("toast_jax").setLevel(logging.WARNING)
        _run(task, config, folder)


def _run(task, config, folder: str) -> None:
    if config.task not in _WITHOUT_DEVICES:
        logging.getLogger("toast_jax").info("%s", _devices(config.get("precision")))
    task.run(config, folder)


def _devices(precision: str | None) -> str:
    """Describe devices and settings, as in "1 cpu device (cpu), jax 0.10.2, precision default, XLA_FLAGS=..."."""
    import jax

    count, device = jax.device_count(), jax.devices()[0]
    flags_of_xla = os.environ.get("XLA_FLAGS", "").strip()
    text = f"{count} {device.platform} device{'s' * (count > 1)} ({device.device_kind}), jax {jax.__version__}"
    text += f", precision {precision}" if precision else ""
    return f"Running on {text}{f', XLA_FLAGS={flags_of_xla}' * bool(flags_of_xla)}."


def set_environment() -> None:
    """Set the variables that JAX reads when it is imported, as some configs do, or when it looks for devices."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(package_files.cache_folder("compiled")))
    xla_flags.disable_ynnpack()


def _set_logging() -> None:
    log = logging.getLogger("toast_jax")
    log.setLevel(logging.INFO)
    log.propagate = False  # absl's handler at the root would print every line again, with a prefix
    log.addHandler(logging.StreamHandler(sys.stdout))
    logging.raiseExceptions = False  # a log line that does not fit on a full disk prints no traceback
    sys.unraisablehook = _print_unraisable
    logging.getLogger("asyncio").addFilter(_is_not_of_disk)


def _print_unraisable(event) -> None:
    """Print an uncaught exception, except that of TensorStore after a failed write of Orbax."""
    if str(event.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(event)


def _is_not_of_disk(record: logging.LogRecord) -> bool:
    """Return whether a line of asyncio is not the traceback of a disk that is full or fails.

    Orbax writes arrays side by side and raises the first error, which becomes a sentence; those of the others are only logged.
    """
    from toast_jax.workdir import run_folder

    return not (record.exc_info and run_folder.disk_fault(record.exc_info[1]))


def without_repeats(argv: list[str]) -> list[str]:
    """Keep the last value of each field, because config_flags would join those of a field with several values."""
    fields = [match[1] if (match := re.match(r"--?(config\.[^=]+)=", arg)) else None for arg in argv]
    return [arg for i, arg in enumerate(argv) if fields[i] is None or fields[i] not in fields[i + 1 :]]


def _parse(argv: list[str]) -> list[str]:
    """Replace the name of the config by its file, parse the flags, and return the remaining arguments."""

    def located(match: re.Match) -> str:
        name, colon, arguments = match[2].partition(":")
        return f"{match[1]}{config_files.find(name)}{colon}{arguments}"

    try:
        return flags.FLAGS(_CONFIG.sub(located, "\0".join(without_repeats(argv))).split("\0"))
    except flags.Error as error:
        text = re.sub(r"\('Non-boolean argument to boolean flag', (.*)\)", r"\1 is neither True nor False", str(error))
        for fault, rule in _NO_NUMBER.items():
            text = re.sub(rf"flag --(config\.[\w.]+)=(.*): {fault}.*", rf"\1 is \2; it has to be a {rule}", text)
        raise InputError(f"{text.rstrip('.')}.") from error


def _exit(status: int, message: str) -> None:
    """End the process; with --distributed immediately, because JAX would make all processes wait for minutes."""
    print(message, file=sys.stderr)
    if flags.FLAGS.is_parsed() and DISTRIBUTED.value:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
