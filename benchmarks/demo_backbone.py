"""Train the demo's backbone on scenes of one digit, to name it and what each patch shows.

    python -m benchmarks.demo_backbone --out=assets/vit_nano8.safetensors

The class token names the digit among five scrambled ones; every patch names its own digit, or the background, with the same
head. This dense target is what makes the final tokens tell one digit from another (docs/demo.md). The loss is the sum of both
cross-entropies. AdamW, 2,400 steps of 64 scenes; the scores are those of 1,000 scenes of val and, at the end, 2,000 of test.
"""

import argparse
import functools
from collections.abc import Callable

import jax
import numpy as np
import optax

from toast_jax import trees
from toast_jax.data.images import synthetic_scenes
from toast_jax.model.backbones.vit import network as vit
from toast_jax.model.backbones.vit.features import SIZES
from toast_jax.model.families import FAMILIES
from toast_jax.model.steered import Steered, classifier
from toast_jax.weights.containers import write
from toast_jax.weights.rename import rename_back, unstack
from toast_jax.workdir import run_folder

SEED, SCENES, BATCH, WARMUP, LR, WEIGHT_DECAY = 42, 40_000, 64, 300, 1.5e-3, 0.05
_PATCH = 8
_GRID = synthetic_scenes.SIDE // _PATCH
_STROKES = 6  # pixels of a digit that make a patch one of its patches
_BACKGROUND = synthetic_scenes.CLASSES.index("background")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="vit_nano8.safetensors")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--scenes", type=int, default=SCENES)
    args = parser.parse_args()
    size = SIZES["Nano"]
    backbone = vit.ViT(size.width, size.depth, size.num_heads, patch=_PATCH, grid=_GRID, last_blocks=1)
    model = Steered(backbone, classifier(len(synthetic_scenes.CLASSES)))
    params = model.init(jax.random.key(SEED), backbone.example)["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, LR, min(WARMUP, args.steps // 2), args.steps)
    matrices = functools.partial(jax.tree.map, lambda array: array.ndim > 1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=WEIGHT_DECAY, mask=matrices))

    def loss(params, images, labels, patches):
        """Return the loss of images `[B, S, S, 3]`, labels `[B]` and labels of patches `[B, N]`, and both accuracies."""
        apply: Callable = functools.partial(model.apply, {"params": params})
        pooled, out = apply(images, method="looks", maps=False)
        logits, dense = (apply(tokens, method="logits") for tokens in (pooled, out["look"]["tokens"][:, 1:]))
        entropy = optax.softmax_cross_entropy_with_integer_labels
        scores = (logits.argmax(-1) == labels).mean(), (dense.argmax(-1) == patches).mean()
        return entropy(logits, labels).mean() + entropy(dense, patches).mean(), scores

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, *batch):
        (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params, *batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    def scores(split, count):
        accuracy, dense = evaluate(params, *drawn(split, count))[1]
        return f"{split}: {accuracy:.1%} of {count} scenes, {dense:.1%} of their patches"

    evaluate, state = jax.jit(loss), optimizer.init(params)
    scenes, rng = drawn("train", args.scenes), np.random.default_rng(0)
    for i in range(args.steps):
        if i * BATCH % args.scenes < BATCH:
            order = rng.permutation(args.scenes)
        chosen = order[i * BATCH % (args.scenes - BATCH) :][:BATCH]
        params, state, value = step(params, state, *(array[chosen] for array in scenes))
        if (i + 1) % 200 == 0:
            print(f"step {i + 1}: loss {value:.3f}; {scores('val', 1000)}", flush=True)
    result = scores("test", 2000)
    print(result)
    arrays = {name: np.asarray(array) for name, array in trees.flat(params).items()}
    facts = {"made_by": "benchmarks/demo_backbone.py", "scores": result, **run_folder.circumstances()}
    state = rename_back(unstack(arrays, FAMILIES["vit"]), FAMILIES["vit"])
    write(args.out, state, {name: str(fact) for name, fact in facts.items()})


@functools.cache
def drawn(split: str, count: int) -> tuple[np.ndarray, ...]:
    """Draw scenes: images `[n, S, S, 3]`, labels `[n]`, and labels of patches `[n, patches]`."""
    return tuple(map(np.stack, zip(*(_drawn(split, i) for i in range(count)), strict=True)))


def _drawn(split: str, index: int):
    scene = synthetic_scenes.scene("generic", split, index)
    strokes = scene.masks[0].reshape(_GRID, _PATCH, _GRID, _PATCH).sum(axis=(1, 3)).ravel()
    label = scene.label("generic")
    return scene.image, label, np.where(strokes >= _STROKES, label, _BACKGROUND)


if __name__ == "__main__":
    main()
