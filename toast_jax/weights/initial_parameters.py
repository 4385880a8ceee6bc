"""Initialize the parameters of a run: from files, and at random from a seed."""

import functools
import logging
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from toast_jax import trees
from toast_jax.config.backbone_names import RANDOM
from toast_jax.devices import parallel
from toast_jax.model import families
from toast_jax.model.methods import TRANSFORM, Method, tuned_mask
from toast_jax.model.steered import Steered, init
from toast_jax.weights import described_file, llama_files, module_file, pretrained

log = logging.getLogger(__name__)

_FLOAT32 = r"(.*/)?([qk]_)?norm\d?/\w+|top_down/prior|head/.*"  # always used in float32


def start(
    model: Steered,
    method: Method,
    *,
    seed: int,
    weights: str,
    classifier: bool = False,
    module: str = "",
    top_down: str = "",
    tuned: str = "",
    put: Callable = parallel.put,
    loaded: Mapping[str, ArrayLike] | None = None,
) -> dict:
    """Load or create all parameters of a network.

    Frozen parameters have the compute dtype, so that no step casts them; tuned ones, and those used in float32, are float32.

    Args:
      model, method: from `steered.build`.
      seed: of the random parameters.
      weights: file of the backbone, or "random". A top-down module in it is used if the network has one.
      classifier: whether to start the head from the classifier of the backbone's own task in `weights`.
      module: file of the method's pre-tuned parameters, see `module_file`, or "". It takes precedence over `weights`.
      top_down: file of a pre-tuned top-down module, or ""; methods without a top-down module ignore it.
      tuned: file of a whole network tuned by this method, or ""; it replaces all other files.
      put: `(path, array) -> array`, places the weights of a language model on their devices as they are read.
      loaded: result of `load` for these files, to avoid reading them again.

    Returns:
      a tree as from `steered.init`.

    Raises:
      InputError: a file is missing or does not fit; see `pretrained.load`.
    """
    key = jax.random.key(seed)
    shapes, dtypes = _described(model, method)
    if loaded is None:
        loaded = load(
            model, method, weights=weights, module=module, top_down=top_down, tuned=tuned, classifier=classifier, put=put
        )
    missing = [path for path in shapes if path not in loaded]
    if missing:
        groups = sorted({path.split("/")[0] for path in missing})
        log.info("Created at random with seed %d: %s.", seed, ", ".join(groups))
    created = _create(model, method, key, tuple((path, dtypes[path]) for path in missing))
    params = {path: jnp.asarray(loaded[path], dtypes[path]) if path in loaded else created[path] for path in shapes}
    module = module or (top_down if model.top_down else "")
    if module and not tuned:
        module_file.check_backbone(module, module_file.outside(params, tuned_mask(trees.nested(shapes), method)))
    return trees.nested(params)


def load(
    model: Steered,
    method: Method,
    *,
    weights: str,
    classifier: bool = False,
    module: str = "",
    top_down: str = "",
    tuned: str = "",
    put: Callable = parallel.put,
    pretunes: bool = False,
) -> Mapping[str, ArrayLike]:
    """Read parameters by path from files; arguments and errors as in `start`.

    Unless the run `pretunes`, a top-down module that is in no file is a warning.
    """
    shapes, dtypes = _described(model, method)
    if tuned:
        options = {"last_blocks": model.backbone.last_blocks, "field": "checkpoint", "resize": _resize(model.backbone, tuned)}
        return pretrained.load(tuned, shapes, wanted=".*", **options)
    loaded = _load_pretrained(model, method, shapes, dtypes, put, weights, classifier, module, top_down)
    if model.top_down and "top_down/prior" not in loaded and not pretunes:
        log.warning(
            "The top-down module starts at random; tuned like that it falls far behind a pre-tuned one (config.top_down)."
        )
    return loaded


def _described(model, method):
    """Return the shapes and dtypes of all parameters, by path."""
    shapes = jax.eval_shape(lambda key: _init(model, method, key), jax.random.key(0))
    return trees.flat(shapes), _dtypes(model, method, shapes)


# Compiled once for all seeds of a network.
_init = jax.jit(init, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _create(model, method, key, dtypes):
    """Create the leaves of `init` at some paths; XLA removes the computation of the others."""
    leaves = trees.flat(_init(model, method, key))
    return {path: leaves[path].astype(dtype) for path, dtype in dtypes}


def _dtypes(model, method, shapes):
    """Return the dtype that each parameter is stored in, by path."""
    return {
        path: jnp.float32 if tuned or re.fullmatch(_FLOAT32, path) else model.backbone.dtype
        for path, tuned in trees.flat(tuned_mask(shapes, method)).items()
    }


def _resize(backbone, path):
    """Return the function that fits position embeddings of a file to a backbone."""

    def resize(embed, num_tokens):
        described_file.check_positions(path, backbone, embed)
        return pretrained.resize_pos_embed(embed, num_tokens, **families.of_backbone(backbone).positions(backbone))

    return resize


def _load_pretrained(model, method, shapes, dtypes, put, weights, classifier, module, top_down):
    layer_files = families.of_backbone(model.backbone).layer_files

    def load(path, **options):
        options |= {"last_blocks": model.backbone.last_blocks, "identity": TRANSFORM, "resize": _resize(model.backbone, path)}
        return pretrained.load(path, shapes, **options)

    loaded = {}
    if weights != RANDOM and layer_files:
        loaded = llama_files.load(weights, shapes, model.backbone, dtypes, put)
    elif weights != RANDOM:
        wanted = "(backbone|head)/.*" if classifier else "backbone/.*"
        with described_file.explained(weights, model.backbone):
            loaded = load(weights, wanted=wanted, optional=["top_down/.*"])
    if top_down and model.top_down is None:
        log.warning("%s is not used: this method has no top-down module.", top_down)
        top_down = ""
    if file := module or top_down:
        wanted, (*optional, backbone) = module_file.regexes(trees.nested(shapes), method)
        # Embeddings in released modules of language models have one extra token.
        optional += [] if layer_files else [backbone]
        arrays = load(file, wanted=wanted, optional=optional, field="module" if module else "top_down")
        # Released modules also have the backbone, rounded to half precision.
        frozen = module_file.outside(arrays, tuned_mask(trees.nested(shapes), method))
        for path in [path for path in frozen if path in loaded]:
            if not np.allclose(arrays[path], loaded[path], rtol=1e-2, atol=1e-2):
                raise module_file.other_backbone(file, path)
        loaded |= {path: array for path, array in arrays.items() if path not in frozen}
    return loaded
