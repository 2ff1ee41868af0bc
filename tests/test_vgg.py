"""VGG and its convolutions against numpy and Torch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import narrow_vgg

from nstjax import convolve, features
from nstjax.errors import InputError
from nstjax.features import layers, vgg


def conv_oracle(x, kernel, bias):
    h, w, _ = x.shape
    x = np.pad(x.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    return sum(x[i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3)) + bias


def pool_oracle(x, reduce):
    h, w = x.shape[0] // 2, x.shape[1] // 2
    quads = [x[i : 2 * h : 2, j : 2 * w : 2] for i in range(2) for j in range(2)]
    return reduce(np.stack(quads), 0)


def vgg_oracle(tree, image, reduce):
    x, out = image - tree["mean"], {}
    places = {name: vgg.place(name) for name in tree if name != "mean"}
    last = {block: i for block, i, _ in places.values()}
    for name, (block, i, _) in places.items():
        x = out[name] = conv_oracle(x, tree[name]["kernel"].astype(np.float64), tree[name]["bias"])
        x = out[f"relu{block}_{i}"] = np.maximum(x, 0)
        if i == last[block]:
            x = out[f"pool{block}"] = pool_oracle(x, reduce)
    return out


@settings(deadline=None, max_examples=25)
@given(h=st.integers(1, 21), w=st.integers(1, 21), seed=st.integers(0, 99))
def test_winograd_equals_the_plain_convolution_and_its_gradient(h, w, seed):
    rng = np.random.default_rng(seed)
    x, kernel, bias, g = (rng.normal(size=s).astype(np.float32) for s in ((h, w, 3), (3, 3, 3, 5), (5,), (h, w, 5)))
    plain, pull = jax.vjp(lambda x: convolve.conv(x, convolve.plain(kernel, bias)), x)
    fast, pull_fast = jax.vjp(lambda x: convolve.conv(x, convolve.winograd(kernel, bias)), x)
    np.testing.assert_allclose(plain, conv_oracle(x, kernel, bias), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(pull_fast(g)[0], pull(g)[0], rtol=1e-4, atol=2e-4)


def test_winograd_under_jit_and_vmap():
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(3, 9, 7, 4)).astype(np.float32)
    kernel, bias = rng.normal(size=(3, 3, 4, 6)).astype(np.float32), np.zeros(6, np.float32)
    fast = jax.jit(jax.vmap(convolve.conv, (0, None)))(xs, convolve.winograd(kernel, bias))
    for x, y in zip(xs, fast, strict=True):
        np.testing.assert_allclose(y, conv_oracle(x, kernel, bias), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_layers_are_named_as_usual(network):
    names = vgg.layer_names(network)
    assert names[:5] == ("conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1")
    assert names[-1] == "pool5" and len(names) == len(set(names)) == {"vgg16": 31, "vgg19": 37}[network]
    found = jax.eval_shape(vgg.features, features.prepare(narrow_vgg(network)), jnp.zeros((32, 32, 3)))
    assert set(found) == set(names) and found["pool5"].shape[:2] == (1, 1)


@pytest.mark.parametrize("winograd", [False, True])
@pytest.mark.parametrize(("pool", "reduce"), [(vgg.max_pool, np.max), (vgg.average_pool, np.mean)])
def test_every_layer_equals_numpy(winograd, pool, reduce):
    tree, image = narrow_vgg(), np.random.default_rng(1).uniform(size=(45, 38, 3)).astype(np.float32)
    expected = vgg_oracle(tree, image, reduce)
    params = features.prepare(tree, winograd=winograd)
    found = jax.jit(lambda p, x: vgg.features(p, x, pool=pool))(params, image)
    assert set(found) == set(expected)
    for name, x in expected.items():
        assert np.abs(found[name] - x).max() < 1e-4 * np.abs(x).max(), name


def test_every_layer_of_the_bundled_network_equals_torch():
    torch = pytest.importorskip("torch")
    tree, image = vgg.load("vgg19"), np.random.default_rng(1).uniform(size=(50, 37, 3)).astype(np.float32)
    found = jax.jit(vgg.features)(features.prepare(tree), image)
    x, block = torch.tensor(image - tree["mean"]).permute(2, 0, 1)[None], 1
    for name in (name for name in tree if name != "mean"):
        if vgg.place(name).block != block:
            x, block = torch.nn.functional.max_pool2d(x, 2), vgg.place(name).block
        kernel, bias = torch.tensor(tree[name]["kernel"]).permute(3, 2, 0, 1), torch.tensor(tree[name]["bias"])
        x = torch.nn.functional.conv2d(x, kernel, bias, padding=1)
        error = np.abs(found[name] - x[0].permute(1, 2, 0).numpy()).max() / float(x.abs().max())
        assert error < 1e-4, (name, error)
        x = torch.relu(x)


@pytest.mark.parametrize("winograd", [False, True])
def test_instance_norm_before_every_relu_equals_torch(winograd):
    torch = pytest.importorskip("torch")
    tree, image = narrow_vgg(), np.random.default_rng(1).uniform(size=(45, 38, 3)).astype(np.float32)
    given = torch.tensor(image, dtype=torch.float64, requires_grad=True)
    x, before, expected = (given - torch.tensor(tree["mean"])).permute(2, 0, 1)[None], 1, {}
    for name in (name for name in tree if name != "mean"):
        block, i, _ = vgg.place(name)
        if block != before:
            x, before = torch.nn.functional.max_pool2d(x, 2), block
        kernel, bias = (torch.tensor(tree[name][part], dtype=torch.float64) for part in ("kernel", "bias"))
        x = expected[name] = torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1)
        x = expected[f"relu{block}_{i}"] = torch.relu(torch.nn.InstanceNorm2d(x.shape[1])(x))
    params = features.prepare(tree, winograd=winograd)
    found = jax.jit(partial(vgg.features, norm=vgg.instance_norm))(params, image)
    for name, y in expected.items():
        y = y[0].permute(1, 2, 0).detach().numpy()
        assert np.abs(found[name] - y).max() < 1e-3 * np.abs(y).max(), name
    (expected["relu3_1"] ** 2).sum(1).amax().backward()
    gradient = jax.grad(lambda x: (vgg.features(params, x, norm=vgg.instance_norm)["relu3_1"] ** 2).sum(2).max())(image)
    assert np.abs(gradient - given.grad.numpy()).max() < 1e-3 * given.grad.abs().max()


def test_instance_norm_of_a_constant_channel_is_nothing():
    x = np.random.default_rng(0).normal(5, 3, size=(6, 7, 2)).astype(np.float32)
    x[..., 1] = 1e3
    y = layers.instance_norm(x)
    np.testing.assert_allclose(y.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1)), [1, 0], atol=1e-4)


def test_gradients_of_relu_and_max_pool():
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(7, 6, 2)).astype(np.float32), rng.normal(size=(3, 3, 2)).astype(np.float32)

    def plain(x):
        x = jnp.where(x > 0, x, 0)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2, 1), (2, 2, 1), "VALID")

    y, pull = jax.vjp(lambda x: layers.max_pool(layers.relu(x)), jnp.asarray(x))
    expected, pull_plain = jax.vjp(plain, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(pull(g)[0], pull_plain(g)[0])


def test_replicated_edge_of_a_flat_picture_stays_flat():
    params = features.prepare(narrow_vgg())
    flat = jnp.full((16, 16, 3), 0.9)
    assert np.ptp(vgg.features(params, flat, edge="replicate")["conv1_1"], axis=(0, 1)).max() < 1e-5
    assert np.ptp(vgg.features(params, flat)["conv1_1"], axis=(0, 1)).max() > 1e-3


def test_replicated_edge_is_that_of_the_picture_continued_by_hand():
    tree, image = narrow_vgg(), np.random.default_rng(1).uniform(size=(19, 22, 3)).astype(np.float32)
    found = vgg.features(features.prepare(tree), image, edge="replicate")
    wide = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    first = conv_oracle(wide - tree["mean"], tree["conv1_1"]["kernel"], tree["conv1_1"]["bias"])[1:-1, 1:-1]
    np.testing.assert_allclose(found["conv1_1"], first, rtol=1e-4, atol=1e-5)
    second = conv_oracle(np.maximum(first, 0), tree["conv1_2"]["kernel"], tree["conv1_2"]["bias"])
    np.testing.assert_allclose(found["conv1_2"], second, rtol=1e-4, atol=1e-5)


def test_unused_layers_cost_nothing():
    params, image = features.prepare(narrow_vgg(), winograd=False), jnp.zeros((32, 32, 3))

    def cost(layer):
        loss = jax.jit(jax.grad(lambda x: vgg.features(params, x)[layer].sum()))
        return loss.lower(image).compile().cost_analysis()["flops"]

    assert cost("relu1_1") < 0.3 * cost("relu5_1")


@pytest.mark.parametrize(("layers", "last"), [(("relu2_1", "conv1_2"), "conv2_1"), (("pool2",), "conv2_2")])
def test_params_until_the_deepest_layer(layers, last):
    params = features.prepare(narrow_vgg(), winograd=False)
    few, image = vgg.until(params, layers), np.full((16, 16, 3), 0.3, np.float32)
    assert max(few.keys() - {"mean"}) == last
    for name in layers:
        np.testing.assert_array_equal(vgg.features(few, image)[name], vgg.features(params, image)[name])


def test_match_scale_undoes_a_change_of_scale():
    tree, image = narrow_vgg(), np.random.default_rng(1).uniform(size=(40, 40, 3)).astype(np.float32)
    rng, scaled, before = np.random.default_rng(2), {"mean": tree["mean"]}, 1.0
    for name in (name for name in tree if name != "mean"):
        factor = float(rng.uniform(0.01, 3))
        kernel, bias = tree[name]["kernel"], tree[name]["bias"]
        scaled[name] = {"kernel": kernel * (factor / before), "bias": bias * factor}
        before = factor
    matched = vgg.match_scale(scaled, tree, image)
    other = np.random.default_rng(3).uniform(size=(32, 24, 3)).astype(np.float32)
    expected, found = vgg.features(tree, other), vgg.features(matched, other)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-3)


def test_torchvisions_scale_gives_the_same_look(tmp_path):
    """The bundled network in Torchvision's clothes (RGB, mean and deviation, other scales) becomes itself again."""
    tree = vgg.load("vgg16")
    image = np.random.default_rng(1).uniform(size=(32, 32, 3)).astype(np.float32)
    arrays, before = {}, 1.0
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for i, (number, name) in enumerate(zip(numbers, (name for name in tree if name != "mean"), strict=True)):
        factor, kernel, bias = 1 / 57 / (1 + i % 3), tree[name]["kernel"], tree[name]["bias"]
        if name == "conv1_1":
            kernel = kernel * np.float32([0.229, 0.224, 0.225])[:, None]
        arrays[f"features.{number}.weight"] = (kernel * (factor / before)).transpose(3, 2, 0, 1)
        arrays[f"features.{number}.bias"] = bias * factor
        before = factor
    np.savez(tmp_path / "torchvision.npz", **arrays)
    raw = vgg.features(features.load("vgg16", tmp_path / "torchvision.npz", winograd=False), image)
    same = vgg.features(features.load("vgg16", tmp_path / "torchvision.npz", like=image, winograd=False), image)
    expected = vgg.features(features.load("vgg16", winograd=False), image)
    assert expected["relu4_2"].mean() > 40 * raw["relu4_2"].mean()
    for name in ("relu1_2", "relu3_1", "relu5_1"):
        assert same[name].mean() == pytest.approx(float(expected[name].mean()), rel=1e-3)
        assert np.corrcoef(same[name].ravel(), expected[name].ravel())[0, 1] > 0.98


def test_unknown_network():
    with pytest.raises(InputError, match="vgg16"):
        features.load("vgg11")


@pytest.mark.parametrize("layer", ["conv1_1", "relu2_2", "pool3", "relu4_2", "pool4", "relu5_1", "pool5"])
def test_numbers_of_a_layer_are_those_of_its_activations(layer):
    shapes = jax.eval_shape(
        vgg.features,
        features.prepare(
            {"mean": np.zeros(3, np.float32)}
            | {
                name: {part: np.zeros(shape, np.float32) for part, shape in parts.items()}
                for name, parts in vgg.shapes("vgg19").items()
            },
            winograd=False,
        ),
        np.zeros((64, 64, 3), np.float32),
    )
    assert vgg.numbers(layer) == np.prod(shapes[layer].shape) / 64**2


def test_place():
    assert vgg.place("relu4_2") == (4, 2, "relu") and vgg.place("pool3")[::2] == (3, "pool")
    for network in vgg.BLOCKS:
        places = [vgg.place(name)[:2] for name in vgg.layer_names(network)]
        assert places == sorted(places)
    for name in ("relu4_5", "conv6_1", "pool0", "mean", "relu4"):
        with pytest.raises(ValueError, match=f"no layer '{name}'"):
            vgg.place(name)
