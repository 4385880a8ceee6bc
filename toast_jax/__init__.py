"""TOAST: transfer learning by top-down attention steering (arXiv 2305.15542), in JAX.

Tune, and look at what a run has learned, as in a notebook:

    import toast_jax
    config = toast_jax.read_config("folder:method=toast,backbone=vit_b16_in1k")
    config.data.root = "data/mine"
    result = toast_jax.fit(config, "runs/mine")
    saved = toast_jax.load("runs/mine")  # saved.model, saved.params, saved.classes

Names are imported when they are used, so that importing the package costs nothing.
"""

import importlib

__version__ = "0.1.0"

# Public names, and the modules that define them.
_MODULES = {
    "FAMILIES": "model.families",
    "METHODS": "model.methods",
    "Steered": "model.steered",
    "TopDown": "model.top_down",
    "fit": "train.loop",
    "load": "train.saved_run",
    "read_config": "config.config_files",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'toast_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"toast_jax.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
