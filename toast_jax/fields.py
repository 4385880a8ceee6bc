"""The fields of a config by their dotted names. Imports nothing, so that a wrong name is answered before JAX is loaded."""


def flat_fields(tree: dict, prefix: str = "") -> dict:
    """`{"data": {"root": x}}` -> `{"data.root": x}`."""
    flat = {}
    for name, value in tree.items():
        flat |= flat_fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
