"""Look up the fields that a config has, and check each value by itself. `check.py` checks fields against one another."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from toast_jax.config.run_fields import IMAGES, MASKS, METHODS, TEXTS
from toast_jax.config.task_fields import TASKS
from toast_jax.errors import choose
from toast_jax.fields import Choice, Field, unknown
from toast_jax.model.families import FAMILIES


def fields_of(config: ConfigDict) -> Mapping[str, Field]:
    """Return the fields of a config by dotted name; for a sweep, those of its runs.

    Raises:
      InputError: the config of a run names an unknown family of backbones.
    """
    return TASKS[config.task] if config.task in TASKS else of_run(config)


def of_run(config: ConfigDict) -> dict[str, Field]:
    """Return the fields of the config of a run.

    Raises:
      InputError: it names an unknown family of backbones.
    """
    family = config.backbone.get("family") if "backbone" in config else None
    return of_family(family, "masks" if "segmentation" in config else "")


def of_family(family: str | None, reads: str = "") -> dict[str, Field]:
    """Return the fields of a run whose backbone is of a family; `reads` as in `families.reads`, "" for that of the record.

    Raises:
      InputError: the family is unknown.
    """
    record = choose("config.backbone.family", family, FAMILIES)
    fields = dict({"images": IMAGES, "masks": MASKS, "text": TEXTS}[reads or record.reads])
    # A method that the family refuses is answered by the reason, in check.py.
    methods = {*record.methods, *record.refused}
    choices = {
        "method": [name for name in (*METHODS, *sorted(methods - {*METHODS})) if name in methods],
        "backbone.family": tuple(FAMILIES),
        "backbone.size": record.sizes,
    }
    for name, options in choices.items():
        fields[name] = dataclasses.replace(fields[name], allowed=Choice(options))
    if "variational_weight" in fields:
        fields["variational_weight"] = dataclasses.replace(fields["variational_weight"], default=record.variational_weight)
    return fields | {f"backbone.{name}": field for name, field in record.fields.items()}


def problems(values: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, str]:
    """Return, by field, a sentence for each field that is unknown, missing, or has a value that it does not allow.

    Args:
      values: of a config, by dotted name (`fields.flat_fields`).
      fields: the fields that the config should have.
    """
    sentences = {}
    for name in {**values, **fields}:
        if name not in fields:
            sentences[name] = unknown(name, fields)
        elif name not in values:
            sentences[name] = f"config.{name} is missing; start from a config of configs/, which has every field."
        elif refusal := fields[name].allowed.refusal(values[name]):
            sentences[name] = f"config.{name} is {values[name]!r}; {refusal}."
    return sentences
