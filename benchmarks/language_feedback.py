"""Find what limits TOAST on the questions of the language demo: change one thing of a recipe at a time and count the answers.

    python -m benchmarks.language_feedback --weights=weights/stories15m --splits val test

An answer counts if greedy decoding gives every token of it. `rms` and `directions` describe the top-down input of the first and
of the last block, with the first seed: its root mean square, and the effective number of directions in which it differs between
tokens, `exp(entropy)` of its principal components' shares.
"""

import argparse
import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import demo_language
from toast_jax import trees
from toast_jax.analysis import report
from toast_jax.data.text import synthetic_tales
from toast_jax.model import losses, methods, steered
from toast_jax.model.additions.lora import LowRankDeltas
from toast_jax.model.top_down import TopDown
from toast_jax.train import optim, text_runs
from toast_jax.weights import initial_parameters

_RELEVANCE = 0.03  # of a token of the demo, on average


class Unselected(TopDown):
    """Feeds every token back alike, at the mean relevance."""

    def _selected(self, compared, fed_back):
        return _RELEVANCE * fed_back @ self.transform, jnp.ones_like(compared[..., :1])


class Unchained(TopDown):
    """Feeds the normalized signal back through the B_l alone, without selection and without the chain of A_l."""

    def __call__(self, compared, fed_back):
        normed = fed_back * jax.lax.rsqrt(jnp.mean(fed_back**2, axis=-1, keepdims=True) + 1e-6)
        normed = jnp.broadcast_to(normed, (self.sites, *compared.shape))
        return jnp.einsum("lbnd,ldf->lbnf", normed, self.out), jnp.ones_like(compared[..., :1])


class OwnInputs(steered.Steered):
    """Feeds each block's input of the first look back to the same block, as LoRA on its values would read it."""

    def _first_look(self, inputs, rng, maps=False):
        first = super()._first_look(inputs, rng, maps)
        return {**first, "fed_back": first["hidden"][:-1]}


@dataclasses.dataclass(frozen=True)
class Row:
    """A recipe; the defaults are TOAST's, with a step of 8 tales.

    Attributes:
      lr: learning rate; of the prior, `prior` times that.
      pretuning: steps, at the rate `pretune_lr`.
      tales: to tune on, `epochs` times.
      kernels: regex of the kernels of LoRA; "" for all of the attention.
      orthogonal: whether each A_l is a random rotation, the last one scaled to undo the mean relevance; B_l start at zero.
      top_down, network: replacements of the module and of the network.
    """

    method: str = "toast"
    lr: float = 3e-3
    prior: float = 1.0
    pretuning: int = 30
    pretune_lr: float = 3e-3
    tune_back: bool = False
    tales: int = 320
    epochs: int = 1
    kernels: str = ""
    orthogonal: bool = False
    top_down: type[TopDown] = TopDown
    network: type[steered.Steered] = steered.Steered


_LORA = Row("lora", lr=1e-2, pretuning=0)
_ATTENTION = "backbone/blocks/attn/%s/kernel"
ROWS = {
    "toast": Row(),
    "not pre-tuned": Row(pretuning=0),
    "pre-tuned for 120 steps": Row(pretuning=120),
    "pre-tuned at 3e-4": Row(pretune_lr=3e-4),
    "rate 1e-3": Row(lr=1e-3),
    "rate 1e-2": Row(lr=1e-2),
    "rate of the prior x 100": Row(prior=100.0),
    "A_l tuned": Row(tune_back=True),
    "4 epochs": Row(epochs=4),
    "1,280 tales": Row(tales=1280),
    "A_l tuned, prior x 100": Row(tune_back=True, prior=100.0),
    "A_l tuned, not pre-tuned": Row(tune_back=True, pretuning=0),
    "A_l tuned, prior x 100, not pre-tuned": Row(tune_back=True, prior=100.0, pretuning=0),
    "A_l tuned, 1,280 tales": Row(tune_back=True, tales=1280),
    "A_l tuned, prior x 100, not pre-tuned, 1,280 tales": Row(tune_back=True, prior=100.0, pretuning=0, tales=1280),
    "no selection": Row(top_down=Unselected),
    "A_l random rotations, frozen": Row(lr=1e-3, orthogonal=True, pretuning=0),
    "last states through B_l alone": Row(lr=1e-3, top_down=Unchained, pretuning=0),
    "own inputs through B_l alone": Row(lr=1e-3, top_down=Unchained, network=OwnInputs, pretuning=0),
    "toast_lite": Row("toast_lite", lr=3e-2),
    "toast_lite, 1,280 tales": Row("toast_lite", lr=3e-2, tales=1280),
    "lora": _LORA,
    "lora on values": dataclasses.replace(_LORA, kernels=_ATTENTION % "v"),
    "lora on queries and keys": dataclasses.replace(_LORA, kernels=_ATTENTION % "[qk]"),
    "lora, 1,280 tales": dataclasses.replace(_LORA, tales=1280),
}
QUESTIONS = {"val": 200, "test": 100}
_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="folder of stories15M and its tokenizer")
    parser.add_argument("--splits", nargs="+", choices=QUESTIONS, default=["val"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    args = parser.parse_args()
    counted = "".join(f" {split}, % |" for split in args.splits)
    print(f"| row | tuned |{counted} rms | directions |\n|---|--:|{'--:|' * len(args.splits)}---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows:
            of_seeds = [_measured(ROWS[name], seed, args, Path(folder)) for seed in args.seeds]
            tuned, right, rms, directions = zip(*of_seeds, strict=True)
            cells = (name, f"{tuned[0]:,}", *map(report.percent, np.transpose(right)), rms[0], directions[0])
            print("| " + " | ".join(cells) + " |", flush=True)


def _measured(row: Row, seed: int, args, folder: Path) -> tuple[int, list[float], str, str]:
    """Pre-tune, tune and ask one network; return tuned parameters, shares of right answers by split, and `_strength`."""
    config = demo_language.run(row.method, row.lr, tune_back=row.tune_back)
    config.seed = seed
    config.backbone.weights = config.data.tokenizer = args.weights
    network, method = steered.build(config, 0)
    if row.kernels:
        assert isinstance(method.added, LowRankDeltas)
        method = dataclasses.replace(method, added=dataclasses.replace(method.added, target=row.kernels))
    params = trees.flat(initial_parameters.start(network, method, seed=seed, weights=args.weights))
    if row.top_down is not TopDown or row.network is not steered.Steered:
        assert isinstance(network.top_down, TopDown)
        module = row.top_down(sites=network.top_down.sites, width=network.top_down.width)
        network = row.network(backbone=network.backbone, top_down=module)
    if row.pretuning and method.signal == "top_down":
        params |= _pretuned(row.pretuning, row.pretune_lr, seed, args.weights, folder)
    if row.orthogonal:
        rotations = np.linalg.qr(np.random.default_rng(seed).normal(size=params["top_down/back"].shape))[0]
        rotations[-1] /= _RELEVANCE
        params["top_down/back"] = jnp.array(rotations, jnp.float32)
    if row.orthogonal or row.top_down is Unchained:
        params["top_down/out"] = jnp.zeros_like(params["top_down/out"])
    source = _arrays(config, "train", row.tales, folder)
    tuned = _fitted(losses.tune, network, method, params, source, row.lr, row.prior, row.epochs, seed)
    right = [_right(network, method, tuned, _arrays(config, split, QUESTIONS[split], folder)) for split in args.splits]
    asked = _arrays(config, "val", QUESTIONS["val"], folder)
    signal = _strength(network, method, tuned, asked) if method.signal == "top_down" else ("-", "-")
    count = sum(params[name].size for name in _names(params, method))
    return count, right, *signal


_pretuning = functools.partial(losses.pretune, task_weight=1.0, variational_weight=0.01)


@functools.cache
def _pretuned(steps, lr, seed, weights, folder) -> dict[str, jax.Array]:
    """Return the top-down module after pre-tuning on tales without questions."""
    config = demo_language.pretune()
    config.seed = seed
    config.backbone.weights = config.data.tokenizer = weights
    network, method = steered.build(config, 0)
    params = trees.flat(initial_parameters.start(network, method, seed=seed, weights=weights))
    source = _rows(_arrays(config, "text", max(500, 17 * steps), folder), slice(_BATCH * steps))
    params = _fitted(_pretuning, network, method, params, source, lr, 1.0, 1, seed)
    return {name: array for name, array in params.items() if name.startswith("top_down/")}


def _arrays(config, split, count, folder) -> dict[str, np.ndarray]:
    """Return the first `count` tales of a split, tokenized; those of `text` follow the training tales."""
    synthetic_tales.write(folder, {"train": 1280, "val": 1, "test": 1, "text": 1, split: count})
    config = config.copy_and_resolve_references()
    config.data.splits.update({"train": str(folder / f"{split}.jsonl"), "val": "", "test": ""})
    source, _ = text_runs.open_sources(config, verified=True)
    examples = [source[i] for i in range(len(source))]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _rows(arrays, rows):
    return {name: array[rows] for name, array in arrays.items()}


def _names(params, method) -> list[str]:
    mask = trees.flat(methods.tuned_mask(trees.nested(params), method))
    return [name for name, tuned in mask.items() if tuned]


_TX = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())  # as the demo's AdamW without weight decay


def _fitted(stage, network, method, params, source, lr, prior, epochs, seed) -> dict:
    names = _names(params, method)
    tuned = {name: jnp.array(params[name], jnp.float32) for name in names}
    frozen = {name: array for name, array in params.items() if name not in tuned}
    steps = len(source["tokens"]) // _BATCH
    rate = optim.warmup_cosine_by_step(lr=lr, epochs=epochs, warmup_epochs=0.05, steps_per_epoch=steps)
    step, state, rng = _step(stage, network, method), _TX.init(tuned), np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(len(source["tokens"]))
        for i in range(steps):
            now = rate(epoch * steps + i)
            rates = {name: now * (prior if name == methods.PRIOR else 1.0) for name in names}
            tuned, state = step(tuned, frozen, state, _rows(source, order[i * _BATCH : (i + 1) * _BATCH]), rates)
    return params | tuned


@functools.cache
def _step(stage, network, method):
    def objective(tuned, frozen, batch):
        weight = batch["weight"] * (batch["mask"] / batch["mask"].mean())[:, None]  # every token counts alike
        return stage(network, method)(trees.nested(tuned | frozen), {**batch, "weight": weight})["loss"].mean()

    @functools.partial(jax.jit, donate_argnums=(0, 2))
    def step(tuned, frozen, state, batch, rates):
        updates, state = _TX.update(jax.grad(objective)(tuned, frozen, batch), state)
        return {name: tuned[name] - rates[name] * updates[name] for name in tuned}, state

    return step


def _right(network, method, params, asked) -> float:
    """Return the share of questions whose answer has every token right."""
    accuracy = _accuracy(network, method)
    parts = [accuracy(params, _rows(asked, slice(at, at + 20))) for at in range(0, len(asked["tokens"]), 20)]
    return float(np.mean(np.concatenate(parts) > 1 - 1e-4))


@functools.cache
def _accuracy(network, method):
    return jax.jit(lambda params, batch: losses.tune(network, method)(trees.nested(params), batch)["accuracy"])


def _strength(network, method, params, asked) -> tuple[str, str]:
    """Return root mean square and directions of the top-down input of the first and of the last block, over 50 tales."""
    text = losses.inputs(_rows(asked, slice(50)))
    assert isinstance(text, dict)
    signal = jax.jit(lambda params: steered.apply(network, method, trees.nested(params), text, None, call="looks")[1]["td"])
    real = text["segments"] > 0
    rms, directions = [], []
    for td in (np.asarray(signal(params))[block][real] for block in (0, -1)):
        power = np.linalg.svd(td - td.mean(axis=0), compute_uv=False) ** 2
        power /= max(power.sum(), 1e-30)  # no input at all before the first update
        directions.append(f"{np.exp(-np.sum(power * np.log(power + 1e-12))):.1f}")
        rms.append(f"{np.sqrt(np.mean(td**2)):.2g}")
    return ", ".join(rms), ", ".join(directions)


if __name__ == "__main__":
    main()
