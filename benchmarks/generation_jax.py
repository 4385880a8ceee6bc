"""Greedy generation by this package. A process of `benchmarks.generation`."""

import time

import jax

from benchmarks import against_release, machine
from toast_jax import trees
from toast_jax.config.run_fields import language
from toast_jax.model import generation
from toast_jax.train.setup import load_network


class Side:
    """A network, and its times for one prompt; see `generation_torch.Side`."""

    def __init__(self, *, folder: str, size: str, dtype: str, prompt: list[int], most: int):
        config = language(name="benchmark", method="finetune", backbone=size)
        config.backbone.weights, config.backbone.dtype = folder, dtype
        network = load_network(config, 0)
        params = generation.stored(network.model, trees.merge(network.tuned, network.frozen))
        self._model, self._method, self._params = network.model, network.method, jax.block_until_ready(params)
        self._prompt, self._most = prompt, most
        self.streamed()
        self.at_once()

    def streamed(self, at_once: int = 1) -> dict:
        """Return the seconds until each new token, and the tokens."""
        seconds: list[float] = []
        tokens: list[int] = []
        network, prompts, sampling = (self._model, self._method, self._params), [self._prompt], generation.Sampling()
        start = time.perf_counter()
        for part in generation.generate(*network, prompts, most=self._most, sampling=sampling, at_once=at_once):
            seconds += [time.perf_counter() - start] * part.shape[1]
            tokens += part[0].tolist()
        return {"seconds": seconds, "tokens": tokens}

    def at_once(self) -> dict:
        return self.streamed(16)

    def versions(self) -> dict:
        return machine.facts()["versions"]

    def where(self) -> dict:
        return machine.facts()["device"]


if __name__ == "__main__":
    against_release.serve(Side)
