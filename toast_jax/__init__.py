"""TOAST: transfer learning by top-down attention steering (arXiv 2305.15542), in JAX.

Tune a network on images of your own, in one folder for each class, and use it (docs/python.md):

    import toast_jax
    net = toast_jax.load("vit_b16_in1k", method="toast")
    result = net.tune("data/mine", workdir="runs/mine")
    labels = net.predict("data/new").labels
    net.look("data/new/1.jpg").draw().save("look.png")

Names are imported when they are used, so that importing the package costs nothing.
"""

import importlib

__version__ = "0.1.0"

# Public names, and the modules that define them.
_MODULES = {
    "FAMILIES": "model.families",
    "InputError": "errors",
    "METHODS": "model.methods",
    "Net": "python.net",
    "Steered": "model.steered",
    "TopDown": "model.top_down",
    "fit": "train.loop",
    "load": "python.loading",
    "read_config": "config.config_files",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'toast_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"toast_jax.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
