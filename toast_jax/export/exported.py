"""Export a tuned network as StableHLO (`jax.export`), which runs without this package."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from toast_jax import trees
from toast_jax.devices import precision
from toast_jax.errors import InputError, of_extra
from toast_jax.export import predict
from toast_jax.export.folder import Files
from toast_jax.export.plain import preprocessing_of, text_of
from toast_jax.model import families, steered
from toast_jax.train.saved_run import SavedRun

PLATFORMS = ("cpu", "cuda", "tpu")


def files(run: SavedRun) -> Files:
    """Return the files of a folder: the program, its weights, its facts and the script that runs it.

    The program takes the weights by path and pixels, uint8 `[B, S, S, 3]` of any B, and returns logits, float32 `[B, C]`;
    normalization is part of it.

    Raises:
      InputError: the network reads no images.
    """
    family = families.of_config(run.config)
    if family.reads != "images":
        raise InputError(f"as=stablehlo is for networks that read images, and a {family.title} reads text; write as=hf.")
    of_extra("flatbuffers", "export", "Writing as=stablehlo")  # of jax.export
    weights = {path: np.asarray(array, np.float32) for path, array in trees.flat(run.params).items()}
    preprocessing = preprocessing_of(run)

    def logits(weights, pixels):
        return steered.apply(run.model, run.method, trees.nested(weights), pixels).astype(jnp.float32)

    shapes = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in weights.items()}
    (count,) = export.symbolic_shape("batch")
    pixels = jax.ShapeDtypeStruct((count, preprocessing.size, preprocessing.size, 3), jnp.uint8)
    with precision.of_products(run.config):
        program = export.export(jax.jit(logits), platforms=PLATFORMS)(shapes, pixels).serialize()
    mean, std = preprocessing.statistics
    facts = {
        "classes": run.classes,
        "resize": preprocessing.resize,
        "size": preprocessing.size,
        "interpolation": "bilinear",
        "crop": "none" if preprocessing.stretched else "center",
        "mean": mean,
        "std": std,
        "normalization": "part of the network, which takes pixels from 0 to 255",
        "platforms": PLATFORMS,
        "jax": jax.__version__,
    }
    return {
        "network.jax_export": lambda path: path.write_bytes(program),
        "weights.npz": lambda path: np.savez(path, allow_pickle=False, **weights),
        "network.json": text_of(facts),
        "predict.py": Path(predict.__file__).read_text(encoding="utf-8"),
    }
