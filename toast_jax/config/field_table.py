"""Print the fields of configs as tables: `python main.py --config=FILE --fields`, and docs/config.md.

python -m toast_jax.config.field_table > docs/config.md
"""

import dataclasses
import itertools
import textwrap
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from toast_jax.config import schema
from toast_jax.config.task_fields import SECTIONS, SWEEP, TASKS
from toast_jax.fields import Choice, Field, flat_fields, nested
from toast_jax.model.families import FAMILIES

_INTRO = """# Fields of a config

Made from `toast_jax/config/` and `toast_jax/model/families.py` by `python -m toast_jax.config.field_table > docs/config.md`;
change a field there, not here.

A config is a file of `configs/` with arguments after a colon, and any of its fields is set on the command line:

```
python main.py --config=configs/folder.py:method=lora --config.data.root=data/mine --config.optimizer.lr=0.01
python main.py --config=configs/folder.py:method=lora --fields
```

An argument or a field that takes several names or paths joins them by `+`; `++` is a plus within a path, as in
`runs=runs/a++b+runs/c` for the folders `runs/a+b` and `runs/c`.

The second command prints the fields of a config as a table, with the values of this config. The defaults below are those of the
base config, which a file of `configs/` changes. The last column says whether a field may differ from the saved run in
`--workdir`: to evaluate its checkpoint, or also to resume training. A field that the saved run does not have counts as its
default. Values that cannot be combined are refused before any data is read (`toast_jax/config/check.py`).
"""


def table_of(config: ConfigDict) -> str:
    """Return the fields of a config as lines of text: name, value, allowed values, meaning."""
    values, fields = flat_fields(config.to_dict()), dict(schema.fields_of(config))
    if config.task == "sweep":
        fields |= {**SWEEP, "task": TASKS["table"]["task"]}
    fields = {name: field for name, field in _grouped(fields).items() if name in values}
    rows = [(name, repr(values[name]), str(field.allowed), field.meaning) for name, field in fields.items()]
    rows += [(name, "...", "a section", meaning) for name, meaning in SECTIONS.get(config.task, {}).items()]
    header = ("config.FIELD", "value", "allowed", "meaning")
    widths = (max(len(row[0]) for row in (header, *rows)), 28, 30, 44)
    return "\n".join(_lines(row, widths) for row in (header, *rows))


def page() -> str:
    """Return docs/config.md: all fields of all tasks."""
    parts = [_INTRO]
    for reads in dict.fromkeys(record.reads for record in FAMILIES.values()):
        parts += [f"## Runs on {reads}\n", _markdown(_of_all_families(reads))]
        if reads == "images":
            parts += ["## Runs on images with masks\n", _markdown(_of_all_families(reads, "masks"))]
    parts.append("## Families of backbones\n")
    parts.append("`backbone.family` is one of these. `backbone.size`, `method` and some defaults depend on it.\n")
    for name, record in FAMILIES.items():
        parts.append(f"### {name}: {record.title}, reads {record.reads}\n")
        parts.append(f"- Sizes: {', '.join(record.sizes)}\n- Methods: {', '.join(record.methods)}")
        parts.append(f"- Default of `variational_weight`: {record.variational_weight}\n")
        if record.fields:
            parts.append(_markdown({f"backbone.{name}": field for name, field in record.fields.items()}))
    parts.append("## Sweeps\n\nThe fields of a run that the sweep does not set itself, and these:\n")
    parts.append(_markdown(SWEEP, SECTIONS["sweep"]))
    for task, fields in TASKS.items():
        parts += [f"## Task {task}\n", _markdown(fields, SECTIONS.get(task, {}))]
    return "\n".join(parts)


def _of_all_families(reads, kind=""):
    """Return the fields of a run that all families with these data share; `kind` as `reads` of `schema.of_family`."""
    records = {name: record for name, record in FAMILIES.items() if record.reads == reads}
    first = next(iter(records))
    options = {
        "backbone.family": tuple(records),
        "backbone.size": tuple(dict.fromkeys(size for record in records.values() for size in record.sizes)),
        "method": tuple(dict.fromkeys(method for record in records.values() for method in record.methods)),
    }
    fields = schema.of_family(first, kind)
    for name, names in options.items():
        fields[name] = dataclasses.replace(fields[name], allowed=Choice(names))
    return {name: field for name, field in fields.items() if name.removeprefix("backbone.") not in records[first].fields}


def _markdown(fields: Mapping[str, Field], sections: Mapping[str, str] | None = None) -> str:
    """Return a Markdown table, with the last column only where a field may change."""
    changes = any(field.may_change for field in fields.values())
    rows = [("Field", "Default", "Allowed", "Meaning", "May change")]
    rows.append(("---",) * 5)
    rows += [
        (f"`{name}`", f"`{_shown(field.default)}`", str(field.allowed), field.meaning, field.may_change)
        for name, field in _grouped(fields).items()
    ]
    rows += [(f"`{name}`", "", "a section", meaning, "") for name, meaning in (sections or {}).items()]
    return "".join(f"| {' | '.join(row[: 5 if changes else 4])} |\n" for row in rows)


def _grouped(fields):
    """Order fields by section."""
    return flat_fields(nested(fields))


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else "all"


def _lines(cells, widths):
    """Lay out one row, whose cells wrap within their columns."""
    columns = itertools.zip_longest(*map(textwrap.wrap, cells, widths), fillvalue="")
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in columns)


if __name__ == "__main__":
    print(page(), end="")
