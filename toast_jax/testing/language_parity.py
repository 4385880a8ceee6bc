"""Replay arrays of a language model alone, recorded from Hugging Face transformers.

A recording holds the `config.json`, from which the network is built, tokens, parameters by their names in published files,
embeddings, the output of every block, logits, the mean loss of the next token, its gradients, and a text that was generated
greedily, the most likely token each time, with a cache.
"""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.model import families, generation
from toast_jax.model.backbones.llama import config_json, network
from toast_jax.model.steered import Steered
from toast_jax.testing.comparison import Check, relative_error
from toast_jax.testing.recording import group
from toast_jax.weights.containers import Arrays
from toast_jax.weights.rename import from_torch, to_torch

FORWARD, GRADIENTS = 1e-5, 1e-4  # bounds


def is_recording(arrays: Arrays) -> bool:
    """Return whether arrays are a recording of a language model alone."""
    return "config/json" in arrays


def content(arrays: Arrays) -> dict[str, Any]:
    """Return the `config.json` of a recording."""
    return json.loads(str(arrays["config/json"]))


def replay(arrays: Arrays) -> list[Check]:
    """Compare every quantity of a recording."""
    model = _network(content(arrays))
    params, unknown = from_torch(group(arrays, "params/"), last_blocks=0)
    assert not unknown, f"names without a line in the rename table: {unknown}"
    nested = trees.nested({path: jnp.asarray(array) for path, array in params.items()})
    tokens = jnp.asarray(arrays["input/ids"])
    (loss, (logits, hidden)), gradients = jax.jit(jax.value_and_grad(_loss, 1, has_aux=True), static_argnums=0)(
        model, nested, tokens
    )
    values = {"mid/embeddings": hidden[0], **{f"mid/block_{i}": output for i, output in enumerate(hidden[1:])}}
    values |= {"out/logits": logits, "out/loss": loss}
    checks = [Check(name, relative_error(value, arrays[name]), FORWARD) for name, value in values.items()]
    names = to_torch(trees.flat(gradients), families.of_backbone(model))
    for name, array in group(arrays, "grad/").items():
        checks.append(Check(f"grad/{name}", relative_error(names[name], array), GRADIENTS))
    return [*checks, _generated(model, nested, arrays)]


def _network(content) -> network.LLaMA:
    kind = config_json.kind_of(content)
    assert kind, f"{content['model_type']} is no kind of LLaMA"
    return network.LLaMA(**vars(config_json.read(content, kind)))


def _loss(model, params, tokens):
    pooled, out = model.apply({"params": params["backbone"]}, {"tokens": tokens, "segments": jnp.ones_like(tokens)})
    logits = model.apply({"params": params["backbone"]}, pooled, method="logits")
    likelihood = jax.nn.log_softmax(logits[:, :-1])
    picked = jnp.take_along_axis(likelihood, tokens[:, 1:, None], axis=-1)
    return -picked.mean(), (logits, out["hidden"])


def _generated(model, params, arrays) -> Check:
    prompt, expected = arrays["generate/prompt"], arrays["generate/greedy"]
    method = families.of_backbone(model).methods["finetune"]
    run = functools.partial(generation.generate, Steered(model, None), method, params, prompt.tolist())
    text = np.concatenate([prompt, *run(most=expected.shape[1] - prompt.shape[1], sampling=generation.Sampling())], axis=1)
    return Check("generate/greedy", int((text != expected).sum()), 0)
