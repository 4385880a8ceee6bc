"""The side of this package in `against_release`."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import against_release, release_weights
from benchmarks.steps import timed
from toast_jax import trees
from toast_jax.devices import parallel, programs
from toast_jax.model import losses, steered
from toast_jax.train import feature_cache
from toast_jax.train.evaluation import eval_step
from toast_jax.train.step import init_state
from toast_jax.workdir import run_folder


class Jax:
    """A network with its optimizer, and a batch on the host; each step returns its seconds."""

    def __init__(self, *, method: str, steered_blocks: int, backbone: str, batch: int, folder: str, release: str):
        network, row, mask, tx, step = timed(method, backbone, steered_blocks=steered_blocks)
        self.images, self.labels = against_release.batch(batch)
        self.operands = against_release.operands(backbone, batch)
        tuned, frozen = trees.split(jax.jit(lambda: steered.init(network, row, jax.random.key(0)))(), mask)
        self.frozen, self.state = parallel.place(frozen), parallel.place(init_state(tuned, tx, seed=0))
        self.step = parallel.replicate(step, num_replicated=2, donate=(0,))
        self.eval_step = parallel.replicate(functools.partial(eval_step, scores=losses.tune(network, row)), num_replicated=2)
        self.features_of = feature_cache.features_of(network, row)
        self.features: dict | None = None
        params = trees.merge(self.state.tuned, self.frozen)
        release_weights.save(f"{folder}/weights.npz", params)
        np.save(f"{folder}/jax.npy", jax.jit(functools.partial(steered.apply, network, row))(params, self.images))

    def compile(self) -> None:
        """Compile the train step, as a run does before its first one."""
        programs.compile_ahead(self.step, self.state, self.frozen, parallel.shard({"image": self.images, "label": self.labels}))

    def train(self) -> float:
        """Time a train step on new views."""
        return self._train({"image": self.images, "label": self.labels})

    def has_fixed_features(self) -> bool:
        """Return whether fixed views allow a part of the step to be cached."""
        return self.features_of is not None

    def train_fixed(self) -> float:
        """Run a step on cached features, as with fixed views; drop-path is then off in the first look."""
        assert self.features_of is not None
        if self.features is None:
            self.features = jax.tree.map(np.asarray, jax.jit(self.features_of)(self.frozen, {"image": self.images}, None))
        batch = {"image": self.images, "label": self.labels, "features": self.features}
        if feature_cache.replaces_images(self.features):
            del batch["image"]
        return self._train(batch)

    def _train(self, batch):
        started = time.perf_counter()
        self.state, metrics = self.step(self.state, self.frozen, parallel.shard(batch))
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - started

    def evaluate(self) -> float:
        """Time an evaluation step."""
        started = time.perf_counter()
        batch = {"image": self.images, "label": self.labels, "mask": np.ones(len(self.labels), np.float32)}
        jax.block_until_ready(self.eval_step(self.state.tuned, self.frozen, parallel.shard(batch)))
        return time.perf_counter() - started

    def product_rate(self) -> float:
        """Measure the GFLOP/s of one matrix product alone, an upper bound for a step."""
        x, kernel = map(jnp.asarray, self.operands)
        product, seconds = jax.jit(jnp.matmul), []
        for _ in range(50):
            started = time.perf_counter()
            product(x, kernel).block_until_ready()
            seconds.append(time.perf_counter() - started)
        return 2e-9 * x.size * kernel.shape[1] / statistics.median(seconds)

    def peak_memory(self) -> int:
        """Read the peak memory of this process in bytes."""
        return against_release.peak_memory()

    def versions(self) -> dict:
        """Return the versions of the libraries."""
        return run_folder.circumstances()["versions"]


if __name__ == "__main__":
    against_release.serve(Jax)
