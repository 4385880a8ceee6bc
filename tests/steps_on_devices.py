"""Run as a script, `PATH BACKBONE NAMES`: saves the results of two steps of methods, or of pretune, on all devices."""

import functools
import sys

import jax
import numpy as np

from tests.conftest import TINY_CONVNEXT, tiny_config
from toast_jax import trees
from toast_jax.devices import parallel
from toast_jax.model import losses, methods, steered
from toast_jax.model.backbones.convnext import network as convnext
from toast_jax.model.backbones.vit import network as vit
from toast_jax.train import optim
from toast_jax.train.augment import augment
from toast_jax.train.step import init_state, train_step

AUGMENT = functools.partial(augment, num_classes=3, erasing=0.5, mixup=0.8, cutmix=1.0, smoothing=0.1)


def main(path, backbone, *names):
    vit.SIZES["tiny"], convnext.SIZES["tiny"] = vit.Size(width=16, depth=3, num_heads=2), TINY_CONVNEXT
    convnext.LAYER_SCALE = 0.1  # with the real initial value the blocks would add too little to test
    rng, side = np.random.default_rng(0), tiny_config("", "linear", backbone).data.image_size
    batch = {  # two examples per device, of eight, as mixing needs pairs
        "image": rng.integers(0, 256, (16, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, 16).astype(np.int32),
    }
    saved = {"devices": jax.device_count()}
    for name in names:
        config = tiny_config("", "toast_lite" if name == "pretune" else name, backbone)
        # Random numbers must not depend on the number of devices either.
        config.backbone.drop_path, config.prompts.dropout = 0.3, 0.3
        network, method = steered.build(config, num_classes=3)
        params = jax.jit(lambda network=network, method=method: steered.init(network, method, jax.random.key(0)))()
        mask = methods.tuned_mask(params, method)
        tuned, frozen = trees.split(params, mask)
        before = trees.flat(trees.prune(parallel.fetch(tuned)))  # copied now, as the first step donates the buffers
        tx = optim.optimizer(
            name="sgd", schedule=lambda _: 0.5, mask=mask, momentum=0.9, weight_decay=0.01, no_decay=("head/bias",), clip=0.0
        )
        step = functools.partial(train_step, scores=losses.tune(network, method), tx=tx)
        if name == "pretune":
            scores = losses.pretune(network, method, task_weight=1.0, variational_weight=0.1)
            step = functools.partial(train_step, scores=scores, tx=tx, augment=AUGMENT, ema=0.9)
        step = parallel.replicate(step, num_replicated=2, donate=(0,))
        state, metrics = parallel.place(init_state(tuned, tx, seed=0, averaged=name == "pretune")), {}
        for _ in range(2):
            state, metrics = step(state, parallel.place(frozen), parallel.shard(batch))
        after = trees.flat(trees.prune(parallel.fetch(state.result)))
        saved |= {f"{name}/{path}": leaf for path, leaf in after.items()}
        saved |= {f"{name}/metrics/{key}": value for key, value in parallel.fetch(metrics).items()}
        saved |= {f"moved/{name}/{path}": np.any(after[path] != before[path]) for path in before}
    np.savez(path, **saved)


if __name__ == "__main__":
    main(*sys.argv[1:])
