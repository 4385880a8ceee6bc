"""Properties of the LLaMA: against NumPy, what a token sees, the top-down signal, and how it is built."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toast_jax import trees
from toast_jax.config.backbone_names import LLAMAS
from toast_jax.config.run_fields import language
from toast_jax.errors import InputError
from toast_jax.model import methods, steered
from toast_jax.model.backbones.llama import network as llama
from toast_jax.model.backbones.llama.kinds import Kind
from toast_jax.model.families import FAMILIES
from toast_jax.model.top_down import TopDown

B, N, D, L, H, G, V = 3, 10, 16, 3, 4, 2, 19
OF_ALL_KINDS = {"kind": Kind("", "", "", qkv_bias=True, qk_norm=True), "head_width": 6, "window": 3}
SIZE = {"width": D, "depth": L, "num_heads": H, "num_kv_heads": G, "hidden": 24, "vocabulary": V}


def network(**fields):
    return llama.LLaMA(**{**SIZE, **fields})


def steered_llama(method="toast", **fields):
    row = FAMILIES["llama"].methods[method]
    return steered.Steered(network(**fields), top_down=TopDown(L, D) if row.signal else None), row


@functools.cache
def parameters(method="toast", **fields):
    """All of them random: what starts at zero or one would hide mistakes."""
    shapes = jax.eval_shape(lambda: steered.init(*steered_llama(method, **fields), jax.random.key(0)))
    rng = np.random.default_rng(0)
    draw = lambda path, leaf: rng.normal(float(path.endswith("scale")), 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    return trees.nested({path: draw(path, leaf) for path, leaf in trees.flat(shapes).items()})


def text(length=N, rows=B, seed=1):
    tokens = np.random.default_rng(seed).integers(0, V, (rows, length)).astype(np.int32)
    return {"tokens": tokens, "segments": np.ones_like(tokens)}


@functools.partial(jax.jit, static_argnames=("net", "row", "call"))
def run(net, row, params, inputs, call=None):
    return steered.apply(net, row, params, inputs, call=call)


def apply(inputs, method="toast", params=None, call=None, **fields):
    return run(*steered_llama(method, **fields), params or parameters(method), inputs, call=call)


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def scaled(frequency, factor, low, high, context):
    """The frequency of a pair in Llama 3.1, by wavelengths, as Meta writes it."""
    wavelength = 2 * np.pi / frequency
    if wavelength < context / high:
        return frequency
    if wavelength > context / low:
        return frequency / factor
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def numpy_logits(params, tokens, theta=10_000.0, eps=1e-6, heads=H, kv_heads=G, scaling=None, window=1 << 30):
    """The same network without a signal, one token and one head after the other, in float64."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in trees.flat(params).items()}
    depth, key_width = p["blocks/norm1/scale"].shape[0], p["blocks/attn/q/kernel"].shape[-1] // heads
    norm = lambda x, scale: x / np.sqrt((x**2).mean() + eps) * scale  # noqa: E731

    def turned(x, position):
        out, half = np.empty_like(x), len(x) // 2
        for i in range(half):
            frequency = theta ** (-2 * i / len(x))
            angle = position * (scaled(frequency, *scaling) if scaling else frequency)
            pair = np.array([x[i], x[i + half]])
            out[[i, i + half]] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]] @ pair
        return out

    x = p["embed"][tokens]
    for layer in range(depth):
        w = {name.removeprefix("blocks/"): leaf[layer] for name, leaf in p.items() if name.startswith("blocks/")}
        inner = [norm(one, w["norm1/scale"]) for one in x]
        layers = [(w[f"attn/{name}/kernel"], w.get(f"attn/{name}/bias", 0.0)) for name in "qkv"]
        q, k, v = ([(one @ kernel + bias).reshape(-1, key_width) for one in inner] for kernel, bias in layers)
        if "attn/q_norm/scale" in w:
            q, k = ([[norm(y, w[f"attn/{name}_norm/scale"]) for y in one] for one in x] for name, x in (("q", q), ("k", k)))
        after = []
        for i, one in enumerate(x):
            mixed = []
            for head in range(heads):
                group = head // (heads // kv_heads)
                seen = range(max(0, i + 1 - window), i + 1)
                scores = [turned(q[i][head], i) @ turned(k[j][group], j) / np.sqrt(key_width) for j in seen]
                weights = np.exp(scores) / np.exp(scores).sum()
                mixed.append(sum(weight * v[j][group] for j, weight in zip(seen, weights, strict=True)))
            y = one + np.concatenate(mixed) @ w["attn/o/kernel"]
            inside, gate = norm(y, w["norm2/scale"]) @ w["mlp/up/kernel"], norm(y, w["norm2/scale"]) @ w["mlp/gate/kernel"]
            after.append(y + (gate / (1 + np.exp(-gate)) * inside) @ w["mlp/down/kernel"])
        x = after
    head = p.get("head", p["embed"].T)
    return np.stack([norm(one, p["norm/scale"]) @ head for one in x])


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_a_slow_forward_in_numpy(tied):
    backbone = dict(parameters("finetune")["backbone"])
    if tied:
        del backbone["head"]
    logits = apply(text(), "finetune", {"backbone": backbone}, tied=tied, rope_theta=500.0, norm_eps=1e-3)
    assert (logits.shape, logits.dtype) == ((B, N, V), jnp.float32)
    expected = np.stack([numpy_logits(backbone, tokens, theta=500.0, eps=1e-3) for tokens in text()["tokens"]])
    assert_close(logits, expected)


def test_logits_with_biases_norms_wide_heads_and_a_window_are_those_in_numpy():
    """Each kind alone is compared with transformers among the recordings."""
    params = parameters("finetune", **OF_ALL_KINDS)
    expected = numpy_logits(params["backbone"], text(rows=1)["tokens"][0], window=3)
    assert_close(apply(text(rows=1), "finetune", params, **OF_ALL_KINDS)[0], expected)
    assert np.abs(expected - numpy_logits(params["backbone"], text(rows=1)["tokens"][0])).max() > 1e-2


def test_rotation_depends_on_distances_alone():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    product = lambda i, j: float(  # noqa: E731
        jnp.sum(llama.rotate(q, jnp.array([[i]]), 100.0) * llama.rotate(k, jnp.array([[j]]), 100.0))
    )
    np.testing.assert_allclose(product(7, 3), product(104, 100), rtol=1e-4)
    assert abs(product(7, 3) - product(7, 4)) > 1e-2


# Of Llama 3.1, of 3.2, and another.
@pytest.mark.parametrize("theta, scaling", [(5e5, (8.0, 1, 4, 8192)), (5e5, (32.0, 1, 4, 8192)), (10.0, (3.0, 2, 6, 90))])
def test_scaled_frequencies_are_those_of_llama3(theta, scaling):
    plain = theta ** (-np.arange(64) / 64)
    ours = llama.frequencies(64, theta, llama.RopeScaling(*scaling))
    np.testing.assert_allclose(ours, [scaled(one, *scaling) for one in plain], rtol=1e-12)
    ratio = ours / plain  # of all three kinds
    assert ratio[0] == 1 and np.isclose(ratio[-1], 1 / scaling[0]) and ((ratio > 1.01 / scaling[0]) & (ratio < 0.99)).any()


def test_logits_with_scaled_rotations_are_those_in_numpy():
    scaling, params = llama.RopeScaling(4.0, 0.5, 2.0, 8), parameters("finetune")
    logits = apply(text(rows=1), "finetune", rope_theta=10.0, rope_scaling=scaling)
    expected = numpy_logits(params["backbone"], text(rows=1)["tokens"][0], theta=10.0, scaling=scaling)
    assert_close(logits[0], expected)
    unscaled = numpy_logits(params["backbone"], text(rows=1)["tokens"][0], theta=10.0)
    assert np.abs(expected - unscaled).max() > 1e-2


def test_places_of_packed_documents_with_padding():
    positions, mask = llama.places(jnp.array([[1, 1, 1, 2, 2, -2]]))
    np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1, 2]])
    seen = [[0], [0, 1], [0, 1, 2], [3], [3, 4], [3, 4]]
    np.testing.assert_array_equal(mask[0], [[j in row for j in range(6)] for row in seen])


def test_no_gradient_reaches_a_later_token_with_the_signal_on():
    """Through both looks: `Steered` cuts the first one off, so they are put together by hand."""
    net, _ = steered_llama()
    params, place = parameters(), 4

    @jax.jit
    def gradients(embed):
        def pull(embed):
            backbone = {"params": {**params["backbone"], "embed": embed}}
            inputs = {"tokens": jnp.arange(N)[None], "segments": jnp.ones((1, N), jnp.int32)}
            _, first = net.backbone.apply(backbone, inputs)
            td, _ = net.top_down.apply({"params": params["top_down"]}, first["tokens"], first["fed_back"])
            return net.backbone.apply(backbone, inputs, td, method="pooled")[0, place].sum()

        return jax.grad(pull)(embed)

    reached = np.abs(gradients(params["backbone"]["embed"])).max(axis=1)
    assert reached[: place + 1].min() > 1e-4 and not reached[place + 1 :].any()


def test_later_tokens_change_nothing_and_earlier_ones_do():
    other = text()
    other["tokens"] = other["tokens"].copy()
    other["tokens"][:, 5:] = (other["tokens"][:, 5:] + 1) % V
    ours, theirs = apply(text()), apply(other)
    np.testing.assert_array_equal(ours[:, :5], theirs[:, :5])
    assert np.abs(ours[:, 5:] - theirs[:, 5:]).max(axis=-1).min() > 1e-2


@functools.cache
def gradients(method, remat):
    net, row = steered_llama(method, remat=remat)

    @jax.jit
    def of(params):
        return jax.grad(lambda params: jnp.square(steered.apply(net, row, params, text())).mean())(params)

    return jax.tree.map(np.asarray, of(parameters(method)))


@pytest.mark.parametrize("method", [pytest.param("finetune", marks=pytest.mark.slow), "toast_lite"])
def test_remat_gives_the_same_gradients(method):
    ours, theirs = trees.flat(gradients(method, True)), trees.flat(gradients(method, False))
    if method == "toast_lite":  # the signal is not lost
        assert all(np.abs(leaf).max() > 1e-5 for path, leaf in theirs.items() if path.startswith(("lora", "top_down")))
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, rtol=0, atol=1e-6 + 1e-5 * np.abs(leaf).max(), err_msg=path)


def test_no_gradient_flows_through_the_first_look():
    silent = parameters()
    silent = {**silent, "top_down": {**silent["top_down"], "out": 0 * silent["top_down"]["out"]}}
    net, row = steered_llama()

    @jax.jit
    def of_td(params):
        pull = lambda params: steered.apply(net, row, params, text(), call="explain")[1]["td"].sum()  # noqa: E731
        return jax.grad(pull)(params)

    grads = of_td(silent)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["backbone"]))
    assert np.any(grads["top_down"]["out"])


def test_prior_orthogonal_to_all_tokens_gives_no_signal():
    params, short = parameters(), text(length=4, rows=2)
    _, out = apply(short, call="explain")
    assert 0 < np.mean(out["selection"] > 0) < 1
    tokens = np.asarray(out["first_look"]["tokens"], np.float64).reshape(-1, D)
    orthogonal = np.linalg.svd(tokens)[2][-1].astype(np.float32)  # eight tokens in sixteen dimensions
    blind = {**params, "top_down": {**params["top_down"], "prior": orthogonal}}
    _, out = apply(short, params=blind, call="explain")
    assert np.abs(out["td"]).max() < 1e-5
    assert_close(apply(short, params=blind), apply(short, "finetune", {"backbone": params["backbone"]}))


def test_padding_does_not_change_tokens_before_it():
    short, padded = text(length=6), text()
    padded["tokens"] = np.concatenate([short["tokens"], padded["tokens"][:, 6:]], axis=1)
    padded["segments"] = np.where(np.arange(N) < 6, 1, -1) * np.ones((B, 1), np.int32)
    assert_close(apply(padded)[:, :6], apply(short))


def test_packed_documents_are_as_separate_ones():
    first, second = text(length=4), text(length=6, seed=2)
    tokens = np.concatenate([first["tokens"], second["tokens"]], axis=1)
    packed = {"tokens": tokens, "segments": np.where(np.arange(N) < 4, 1, 2) * np.ones((B, 1), np.int32)}
    together = apply(packed)
    assert_close(together[:, :4], apply(first))
    assert_close(together[:, 4:], apply(second))
    assert np.abs(apply({**packed, "segments": np.ones((B, N), np.int32)})[:, 4:] - together[:, 4:]).max() > 1e-2


def test_bfloat16_gives_float32_logits_close_to_those_of_float32():
    row = FAMILIES["llama"].methods["toast_lite"]
    net = steered.Steered(network(dtype=jnp.bfloat16), top_down=TopDown(L, D, jnp.bfloat16))
    logits, expected = run(net, row, parameters("toast_lite"), text()), apply(text(), "toast_lite")
    assert logits.dtype == jnp.float32
    assert 0 < np.std(logits - expected) < 0.1 * np.std(expected)


def test_sequence_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="sequences have 10 tokens; this LLaMA takes 8 at most"):
        apply(text(), "finetune", context=8)


def configured(backbone, method="finetune", **fields):
    config = language(name="x", method=method, backbone=backbone)
    config.update(fields)
    return config


def shapes(config):
    net, row = steered.build(config, num_classes=0)
    return net, row, jax.eval_shape(lambda: steered.init(net, row, jax.random.key(0)))


# By the authors' files.
PUBLISHED = {
    "llama1_7b": 6_738_415_616,
    "llama1_13b": 13_015_864_320,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "llama3_1_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "tinyllama_1b": 1_100_048_384,
    "stories15m": 15_191_712,
    "stories260k": 260_032,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "mistral_7b_v0_1": 7_241_732_096,
    "mistral_7b_v0_3": 7_248_023_552,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", LLAMAS)
def test_sizes_have_as_many_parameters_as_published(name):
    assert trees.count(shapes(configured(name))[2]) == PUBLISHED[name]


def test_the_config_knows_every_size():
    assert {*LLAMAS, "custom"} == set(llama.SIZES) and set(LLAMAS) == set(PUBLISHED)
    assert configured("llama2_7b_chat").backbone.to_dict() == {
        **{"family": "llama", "size": "llama2_7b", "weights": "weights/llama2_7b_chat"},
        **{"dtype": "float32", "remat": False, "unroll": False, "vocabulary": 0, "kind": "", "width": 0, "depth": 0},
        **{"num_heads": 0, "num_kv_heads": 0, "head_width": 0, "hidden": 0, "context": 0, "window": 0, "rope_theta": 0.0},
        **{"rope_scaling": (), "norm_eps": 0.0, "tied": False},
    }
    with pytest.raises(InputError, match="'llama2_8b' is not known; write one of llama1_7b"):
        configured("llama2_8b")


TUNED = [
    ("finetune", {}, PUBLISHED["llama1_7b"]),
    ("lora", {}, 32 * 4 * 2 * 4 * 4096),  # layers, kernels, factors, rank
    ("toast", {}, 536_875_008),
    ("toast", {"stage": "pretune"}, 1_073_741_824 + 4_096),
    ("toast", {"tune_back": True}, 1_073_741_824 + 4_096),
    ("toast_lite", {}, 32 * 2 * 2 * 4 * 4096 + 4096),
]


@pytest.mark.parametrize(("method", "fields", "count"), TUNED)
def test_tuned_parameters_of_llama_7b(method, fields, count):
    _, row, params = shapes(configured("llama1_7b", method, **fields))
    mask = methods.tuned_mask(params, row)
    assert trees.count(trees.split(params, mask)[0]) == count
    assert f"{count:,} tuned" in methods.table(params, row)


def test_fields_change_what_toast_tunes():
    def tuned(**fields):
        _, row, params = shapes(configured("stories260k", "toast", **fields))
        return set(trees.flat(trees.prune(trees.split(params, methods.tuned_mask(params, row))[0])))

    assert tuned() == {"top_down/out", "top_down/prior"}
    assert tuned(tune_transform=True) == {"top_down/out", "top_down/prior", "top_down/transform"}
    assert tuned(tune_back=True) == tuned(stage="pretune") == {"top_down/back", "top_down/out", "top_down/prior"}
    assert tuned(stage="pretune", task_weight=0.0) == {"top_down/back"}


@pytest.mark.parametrize("method", ["linear", "partial", "bias", "vpt"])
def test_methods_of_images_are_refused(method):
    with pytest.raises(InputError, match=f"config.method is {method!r}; it must be one of finetune, lora, toast, toast_lite"):
        shapes(configured("stories260k", method))
