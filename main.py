"""python main.py --config=configs/fgvc.py:dataset=cub,method=toast --workdir=runs/cub --config.FIELD=VALUE"""

import ast
import difflib
import importlib
import importlib.util
import logging
import os
import re
import shlex
import sys
import traceback
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 (pip installs years-old packages on an older Python without a word)
    sys.exit("error: toast_jax needs Python 3.11 or newer; this is " + sys.version.split()[0] + ".")

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from toast_jax.errors import InputError, Interrupted, choose
from toast_jax.fields import flat_fields

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
    "prepare_data": "datasets",
    "demo": "attention_scenes",
    "demo_language": "tales",
}

CONFIG = config_flags.DEFINE_config_file("config", None, "File of the config, with its arguments after a colon.")
FIELDS = flags.DEFINE_bool("fields", False, "Print the fields of the config (name, value, allowed, meaning), and exit.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a TPU pod slice or a Slurm job.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/NAME by default, NAME being the config's.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"{argv[1]!r} is not understood; fields are set with --config.FIELD=VALUE.")
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax tells every file it writes, and the traces of what it raises too
    config = CONFIG.value
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "toast_jax"
    # Read by JAX when a task imports it.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "compiled"))
    if choose("config.task", config.task, TASKS) not in config:
        raise InputError(f"This config is not for the task {config.task}; see the captions of the configs.\n{captions()}")
    if FIELDS.value:
        from toast_jax.config import page

        return print(page.table_of(config))
    task = importlib.import_module(f"toast_jax.tasks.{config.task}")
    folder = WORKDIR.value or f"runs/{config.name}"
    if not DISTRIBUTED.value:
        return task.run(config, folder)
    import jax

    from toast_jax.devices import hosts

    with hosts.joined():
        if jax.process_index():
            logging.getLogger("toast_jax").setLevel(logging.WARNING)
        task.run(config, folder)


def captions() -> str:
    """The configs, one a line, each with the first line of its caption."""
    files = sorted(Path(__file__).parent.glob("configs/*.py"))
    lines = [ast.get_docstring(ast.parse(path.read_text())).splitlines()[0] for path in files]
    return "\n".join(f"  configs/{path.name:<16} {line}" for path, line in zip(files, lines, strict=True))


def check_arguments(argv: list[str]) -> None:
    """Refuses what config_flags would answer with a traceback: no config, no such file, unknown fields (with the nearest)."""
    joined = re.search(r"(?:^|\0)--?config[=\0]([^\0]*)", "\0".join(argv))
    given = joined and joined[1]
    if not given:
        raise InputError(f"No config was given; add --config=FILE, FILE being one of\n{captions()}")
    file, _, text = given.partition(":")
    if not Path(file).is_file():
        raise InputError(f"There is no config {file} under {Path.cwd()}; {Path(__file__).parent} has\n{captions()}")
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"{file} is no config of its own; use one of\n{captions()}")
    fields = list(flat_fields(module.get_config(text or None).to_dict()))
    for arg in argv:
        if (match := re.match(r"--?(?:no)?config\.([^=]+)", arg)) and match[1] not in fields:
            near = difflib.get_close_matches(match[1], fields, n=3, cutoff=0.4)
            raise InputError(f"The config has no field {match[1]}; the nearest are {', '.join(near) or ', '.join(fields)}.")


def parse(argv: list[str]) -> list[str]:
    """Parses flags; returns what is left of the arguments."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise InputError(f"{error}.") from error


def untold(event) -> None:
    """Tells an exception that nothing can catch, but for that of TensorStore after a write of Orbax's that has failed."""
    if str(event.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(event)


def cli() -> None:
    """Runs `main`; an error that is a message to the user ends it with status 2 and no traceback."""
    log = logging.getLogger("toast_jax")
    log.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a line that cannot be written to a full disk is no reason for a traceback
    sys.unraisablehook = untold
    log.propagate = False  # absl's own handler, which would print every line again with a prefix, is the root's
    log.addHandler(logging.StreamHandler(sys.stdout))
    # What --help prints.
    sys.modules["__main__"].__doc__ = f"{__doc__}\n\nConfigs:\n{captions()}\n"
    try:
        if not {"--help", "--helpfull", "--helpshort"} & set(sys.argv):
            check_arguments(sys.argv[1:])
        app.run(main, flags_parser=parse)
    except InputError as error:
        leave(2, f"error: {error}")
    except Interrupted as message:  # by all processes
        print(f"{message} Go on with\n  {shlex.join(['python', *sys.argv])}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        leave(130, "Interrupted.")
    except Exception as error:
        from toast_jax.workdir.run_folder import disk_fault, unwritable

        if isinstance(error, OSError) and disk_fault(error):
            leave(2, f"error: {unwritable(error.filename or 'A file', error)}")
        leave(1, traceback.format_exc())


def leave(status: int, message: str) -> None:
    """Ends the process; if there are others, at once, as JAX would have it wait for them, and them for it, for minutes."""
    print(message, file=sys.stderr)
    if flags.FLAGS.is_parsed() and DISTRIBUTED.value:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    cli()
