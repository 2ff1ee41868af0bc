"""The feed-forward nets against their papers' tables and against numpy; the fast forms against the plain ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SMALL, jit, pictures, trained

from nstjax import features, losses, nets
from nstjax.nets import adain, convolutions, layers, texture
from nstjax.nets.transform import TransformNet


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conv_oracle(x, kernel, stride=1):
    k, x = kernel.shape[0], np.asarray(x, np.float64)
    h, w = x.shape[1] - k + 1, x.shape[2] - k + 1
    y = sum(x[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(k) for j in range(k))
    return y[:, ::stride, ::stride]


# --- layers


def test_instance_norm_has_the_mean_and_variance_told_and_forgets_contrast():
    x = 3 + 2 * normal(2, 5, 7, 4)
    expected = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(layers.instance_norm(x), expected, atol=1e-5)
    np.testing.assert_allclose(layers.instance_norm(5 * x - 1), expected, atol=1e-4)
    variables = {"params": {"scale": jnp.arange(4.0), "bias": -jnp.arange(4.0)}}
    y = layers.InstanceNorm().apply(variables, x, train=True)
    np.testing.assert_allclose(y, (expected - 1) * np.arange(4), atol=1e-5)
    assert not layers.instance_norm(np.ones((1, 3, 3, 1))).any()


@pytest.mark.parametrize(
    "pad, mode",
    [(layers.reflect, "reflect"), (layers.edge, "edge"), (layers.circular, "wrap"), (layers.zero, "constant")],
)
def test_paddings_are_numpys(pad, mode):
    x = normal(2, 3, 5, 2)
    for n in (0, 1, 7):
        np.testing.assert_array_equal(pad(x, n), np.pad(x, ((0, 0), (n, n), (n, n), (0, 0)), mode=mode))
    np.testing.assert_array_equal(layers.valid(x, 7), x)
    expected = np.pad(x, ((0, 0), (0, 1), (0, 3), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(layers.pad_to_multiple(x, 4), expected)


def test_resizings_against_numpy():
    x = normal(1, 3, 5, 2)
    np.testing.assert_array_equal(layers.nearest(x), np.kron(x, np.ones((1, 2, 2, 1))))

    def interpolate(line):
        at = (np.arange(2 * len(line)) + 0.5) / 2 - 0.5
        return np.interp(at, np.arange(len(line)), line)

    linear = np.apply_along_axis(interpolate, 2, np.apply_along_axis(interpolate, 1, x))
    np.testing.assert_allclose(layers.bilinear(x), linear, atol=1e-6)
    both = layers.nearest_and_bilinear(x)
    np.testing.assert_array_equal(both[..., :2], layers.nearest(x))
    np.testing.assert_array_equal(both[..., 2:], layers.bilinear(x))
    np.testing.assert_allclose(layers.halve(layers.nearest(x)), x, atol=1e-6)
    odd = layers.halve(x)
    assert odd.shape == (1, 2, 3, 2)
    np.testing.assert_allclose(odd[0, -1, -1], x[0, -1, -1], atol=1e-6)


def test_convolutions_against_numpy():
    x = normal(1, 5, 7, 3)
    conv = layers.Conv(4, kernel=3, stride=2)
    variables = trained(conv, x)
    expected = conv_oracle(
        np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"), variables["params"]["kernel"], 2
    )
    np.testing.assert_allclose(conv.apply(variables, x), expected, atol=1e-5)

    conv = layers.FractionallyStrided(4)
    variables = trained(conv, x)
    expected = np.zeros((1, 12, 16, 4))
    for i in range(5):  # every pixel paints the kernel, which looks at the picture mirrored, around twice its place
        for j in range(7):
            kernel = variables["params"]["kernel"][::-1, ::-1]
            expected[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += np.einsum("c,ijco->ijo", x[0, i, j], kernel)
    np.testing.assert_allclose(conv.apply(variables, x), expected[:, 1:11, 1:15], atol=1e-5)


def test_depthwise_separable_is_one_kernel_a_channel_then_a_matrix():
    x = normal(1, 5, 6, 2)
    conv = layers.DepSep(3, stride=2, multiplier=2, bias=True)
    variables = trained(conv, x)
    p = variables["params"]
    assert p["depthwise"].shape == (3, 3, 1, 4) and p["pointwise"].shape == (1, 1, 4, 3)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    each = [conv_oracle(padded[..., c // 2 : c // 2 + 1], p["depthwise"][..., c : c + 1], 2) for c in range(4)]
    expected = np.concatenate(each, -1) @ p["pointwise"][0, 0] + p["bias"]
    np.testing.assert_allclose(conv.apply(variables, x), expected, atol=1e-5)


# --- fast forms

sides = st.sampled_from([3, 9])


@settings(deadline=None, max_examples=4)
@given(h=st.integers(9, 24), w=st.integers(9, 24), block=st.sampled_from([(2, 2), (1, 8), (3, 2)]), k=sides)
def test_blocked_convolution_equals_the_plain_one(h, w, block, k):
    x, kernel = normal(1, h, w, 3), normal(k, k, 3, 5, seed=1)
    np.testing.assert_allclose(convolutions.blocked_conv(x, kernel, block=block), conv_oracle(x, kernel), atol=1e-4)


@settings(deadline=None, max_examples=4)
@given(h=st.integers(9, 24), w=st.integers(9, 24), k=sides)
def test_rowwise_convolution_equals_the_plain_one(h, w, k):
    x, kernel = normal(1, h, w, 5), normal(k, k, 5, 3, seed=1)
    np.testing.assert_allclose(convolutions.rowwise_conv(x, kernel), conv_oracle(x, kernel), atol=1e-4)


@settings(deadline=None, max_examples=6)
@given(n=st.integers(1, 3), h=st.integers(3, 12), w=st.integers(3, 12))
def test_winograd_convolution_has_the_gradients_of_the_plain_one(n, h, w):
    x, kernel = normal(n, h, w, 4), normal(3, 3, 4, 5, seed=1)
    y, pull = jax.vjp(convolutions.winograd_conv, x, kernel)
    expected, expected_pull = jax.vjp(convolutions.conv, x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    for a, b in zip(pull(y), expected_pull(y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("upsample", layers.TAPS)
def test_upsampling_and_convolving_at_once_equals_one_after_the_other(upsample):
    x = normal(1, 5, 4, 3)
    big = upsample(x)
    kernel = normal(3, 3, big.shape[3], 2, seed=1)
    y = layers.upsampled_conv(x, kernel, upsample=upsample)
    np.testing.assert_allclose(y, conv_oracle(layers.edge(big, 1), kernel), atol=1e-4)
    if upsample is layers.nearest:
        np.testing.assert_array_equal(layers.edge(big, 1), layers.reflect(big, 1))


@pytest.mark.parametrize("multiplier", [1, 4])
def test_depthwise_sliced_and_merged_equal_the_plain_form(multiplier):
    x = normal(1, 6, 7, 3)
    depthwise, pointwise = normal(3, 3, 1, 3 * multiplier), normal(1, 1, 3 * multiplier, 2, seed=1)
    grouped = convolutions.conv(x, depthwise, groups=3)
    np.testing.assert_allclose(convolutions.sliced_depthwise(x, depthwise), grouped, atol=1e-5)
    merged = convolutions.merge(depthwise, pointwise, multiplier=multiplier)
    np.testing.assert_allclose(convolutions.conv(x, merged), convolutions.conv(grouped, pointwise), atol=1e-4)


@pytest.mark.parametrize(
    "net, size",
    [
        (nets.NETS["johnson"], (18, 25)),
        (nets.NETS["fast"], (33, 22)),
        (nets.NETS["depsep"], (20, 24)),
        (nets.NETS["depsep-nn-bil"], (17, 26)),
        (TransformNet(conv=functools.partial(layers.DepSep, multiplier=1), norm=None), (13, 16)),
    ],
)
def test_a_fast_net_equals_the_plain_one(net, size):
    """Its picture, and the gradient that trains it."""
    net = net.clone(width=16, blocks=2)  # 64 channels inside: enough for Winograd's form
    x = pictures(1, *size)
    variables = trained(net, x)

    def loss(variables, net):
        picture = net.apply(variables, x)
        return ((picture - x) ** 2).mean(), picture

    results = (
        jit(jax.grad(functools.partial(loss, net=net.clone(fast=fast)), has_aux=True))(variables)
        for fast in (False, True)
    )
    (plain_gradient, plain), (gradient, fast) = results
    assert plain.std() > 0.05
    np.testing.assert_allclose(fast, plain, atol=1e-4)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max() + 1e-7)


# --- transform nets


def test_adams_first_steps_do_not_saturate_the_picture():
    """They all go one way; where the output's gradient vanishes, no later step would bring a region back."""
    net, x = TransformNet(blocks=1), pictures(1, 16, 16)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    adam = optax.adam(1e-3)
    state = adam.init(variables)

    @jit
    def step(variables, state):
        update, state = adam.update(jax.grad(lambda v: -net.apply(v, x).mean())(variables), state)
        return optax.apply_updates(variables, update), state

    for _ in range(10):
        variables, state = step(variables, state)
    picture = jit(net.apply)(variables, x)
    assert picture.mean() > 0.6 and picture.max() < 0.999


def test_every_activation_of_kitovs_table():
    net, x = nets.NETS["johnson"], jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    out = jax.eval_shape(lambda variables, x: net.apply(variables, x, method="activations"), variables, x)
    table = {"padded": (336, 3), "conv1": (336, 32), "conv2": (168, 64), "conv3": (84, 128)}
    table |= {"block1b": (80, 128), "block2b": (76, 128), "block3b": (72, 128), "block4b": (68, 128)}
    table |= {"block1a": (82, 128), "block2a": (78, 128), "block3a": (74, 128), "block4a": (70, 128)}
    table |= {"block5a": (66, 128), "block5b": (64, 128), "conv4": (256, 3)}
    table |= {"up1": (128, 64), "up2": (256, 32), "image": (256, 3)}
    assert {name: value.shape for name, value in out.items()} == {n: (1, s, s, c) for n, (s, c) in table.items()}
    kernels = {name: p["kernel"].shape for name, p in variables["params"].items() if "kernel" in p}
    assert kernels["conv1"] == (9, 9, 3, 32) and kernels["conv4"] == (9, 9, 32, 3)
    assert {name for name, shape in kernels.items() if shape[:2] == (9, 9)} == {"conv1", "conv4"}
    assert {f"block{i}{j}_norm" for i in range(1, 6) for j in "ab"} < set(variables["params"])
    assert "conv4_norm" not in variables["params"] and len(kernels) == 16


@settings(deadline=None, max_examples=15)
@given(name=st.sampled_from(sorted(SMALL)), n=st.integers(1, 2), h=st.integers(1, 70), w=st.integers(1, 70))
def test_pictures_of_any_size_keep_it(name, n, h, w):
    net, x = SMALL[name], jax.ShapeDtypeStruct((n, h, w, 3), jnp.float32)
    y = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x)[0], x)
    assert y.shape == x.shape and y.dtype == x.dtype


@pytest.mark.parametrize("name", ["johnson", "depsep-nn-bil"])
def test_pictures_stay_in_the_gamut_and_gradients_are_finite(name):
    net, x = SMALL[name], pictures(2, 9, 14)
    x[1] = 0.25  # a flat picture has no variance

    @jit
    def evaluate(variables, x):
        y, pull = jax.vjp(lambda params, x: net.apply({**variables, "params": params}, x), variables["params"], x)
        return y, pull(y)

    for variables, scale in ((jit(net.init)(jax.random.key(0), x), 1), (trained(net, x), 100)):
        y, gradients = evaluate(variables, scale * x)
        assert y.min() >= 0 and y.max() <= 1 and y[0].std() > 1e-3
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_instance_norm_keeps_pictures_of_a_batch_apart_and_batch_norm_does_not():
    x = pictures(2, 8, 8)
    for norm, apart in ((layers.InstanceNorm, True), (layers.BatchNorm, False)):
        net = SMALL["fast"].clone(norm=norm)
        variables = trained(net, x)
        apply = jit(lambda v, x, net=net: net.apply(v, x, train=True, mutable=["batch_stats"])[0][0])
        change = np.abs(apply(variables, x) - apply(variables, np.stack([x[0], x[1] ** 2]))).max()
        assert (change < 1e-6) == apart


def test_batch_norms_averages_move_to_the_batch_and_serve_inference():
    x = pictures(2, 8, 8)
    norm = layers.BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["batch"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(norm.apply(variables, x), x, atol=1e-4)


def test_johnsons_net_does_not_see_its_padding_in_the_residual_blocks():
    """A picture's middle comes out the same if its surroundings, further away than the net sees, are others."""
    net = nets.NETS["johnson"].clone(width=2, blocks=1)
    x = pictures(1, 24, 136)
    other = x.copy()
    other[:, :, 100:] = 0.5
    variables = trained(net, x)
    apply = jit(net.apply)
    difference = np.abs(apply(variables, x) - apply(variables, other)).max((0, 1, 3))
    assert difference[:70].max() < 1e-6 < difference[110:].min()


def test_an_unknown_padding_is_told():
    with pytest.raises(ValueError, match="no padding 'reflect'; there are layers, image"):
        jax.eval_shape(TransformNet(padding="reflect").init, jax.random.key(0), pictures(1, 8, 8))


@pytest.mark.parametrize("norm", [layers.InstanceNorm, None])
def test_a_net_learns_to_copy_its_picture(norm):
    net, x, tx = (
        TransformNet(width=8, blocks=1, norm=norm),
        np.asarray(layers.bilinear(pictures(1, 4, 4))),
        optax.adam(3e-3),
    )

    def loss(params):
        return jnp.mean((net.apply({"params": params}, x) - x) ** 2)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        update, state = tx.update(gradient, state)
        return (optax.apply_updates(params, update), state), value

    @jit
    def train(key):
        params = net.init(key, x)["params"]
        return jax.lax.scan(step, (params, tx.init(params)), length=80)[1]

    values = train(jax.random.key(0))
    assert values[-5:].max() < 0.2 * values[0]


# --- sizes and costs


def test_cost_by_hand():
    x = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)
    pixels = 2 * 8 * 12
    assert nets.cost(layers.Conv(5, bias=True), x) == (3 * 9 * 5 + 5, pixels * 9 * 3 * 5)
    assert nets.cost(layers.Conv(5, stride=2), x) == (3 * 9 * 5, pixels // 4 * 9 * 3 * 5)
    assert nets.cost(layers.FractionallyStrided(5), x) == (3 * 9 * 5, pixels * 9 * 3 * 5)
    assert nets.cost(layers.DepSep(5), x) == (12 * 9 + 12 * 5, pixels * (12 * 9 + 12 * 5))


def test_pandeys_nets_have_the_parameters_and_multiplications_counted_by_hand():
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    cost = {name: nets.cost(net, x) for name, net in nets.NETS.items() if name in SMALL}

    def dense(k, c, out, pixels):
        return np.array([k * k * c * out, k * k * c * out * pixels])

    def separable(k, c, out, pixels):
        return 4 * c * (k * k + out) * np.array([1, pixels])

    p = 256**2
    ends = {f: f(9, 3, 32, p) + f(3, 32, 64, p // 4) + f(3, 64, 128, p // 16) for f in (dense, separable)}
    last, norms = dense(9, 32, 3, p) + [3, 0], np.array([2 * (32 + 64 + 128 + 10 * 128 + 64 + 32), 0])
    inside = {f: 10 * f(3, 128, 128, p // 16) for f in (dense, separable)}
    ups = {
        "fast": dense(3, 128, 64, p // 4) + dense(3, 64, 32, p),
        "depsep": dense(3, 128, 64, p // 16) + dense(3, 64, 32, p // 4),
        "depsep-nn": separable(3, 128, 64, p // 4) + separable(3, 64, 32, p),
        "depsep-nn-bil": separable(3, 256, 64, p // 4) + separable(3, 128, 32, p),
    }
    for name, up in ups.items():
        kind = dense if name == "fast" else separable
        assert cost[name] == tuple(ends[kind] + inside[kind] + up + last + norms)
    # Johnson's paddings are computed too, and its parameters are today's.
    assert cost["johnson"].parameters == cost["fast"].parameters and cost["johnson"].macs > cost["fast"].macs
    assert max(cost[name].macs for name in ups if name != "fast") < 0.65 * cost["johnson"].macs


# --- texture nets


@functools.cache
def texture_net(pad=layers.reflect, stylise=False):
    net = nets.NETS["ulyanov"].clone(width=3, pad=pad)
    z = texture.noise(jax.random.key(0), (1, 16, 16), scales=3)
    inputs = (z, pictures(1, 16, 16)) if stylise else (z,)
    return jit(net.apply), trained(net, *inputs)


def test_noise_halves_from_scale_to_scale_and_is_told_by_its_key():
    draw = jit(lambda key: texture.noise(key, (2, 13, 8), scales=4))
    z, again, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    assert [x.shape for x in z] == [(2, 13, 8, 3), (2, 7, 4, 3), (2, 4, 2, 3), (2, 2, 1, 3)]
    assert all(x.min() >= 0 and x.max() <= 1 for x in z)
    assert all((a == b).all() for a, b in zip(z, again, strict=True))
    assert not any((a == b).all() for a, b in zip(z, other, strict=True))


def test_other_noise_makes_another_texture_of_any_size():
    apply, variables = texture_net()
    draw = [apply(variables, texture.noise(jax.random.key(seed), (1, 16, 16), scales=3)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert np.abs(draw[0] - draw[2]).mean() > 0.01
    other_size = apply(variables, texture.noise(jax.random.key(0), (1, 9, 13), scales=3))
    assert other_size.shape == (1, 9, 13, 3) and other_size.min() >= 0 and other_size.max() <= 1


def test_every_scale_of_the_noise_is_seen():
    apply, variables = texture_net()
    z = texture.noise(jax.random.key(0), (1, 16, 16), scales=3)
    for i in range(3):
        changed = tuple(1 - x if i == j else x for j, x in enumerate(z))
        assert np.abs(apply(variables, changed) - apply(variables, z)).max() > 1e-3


def test_circular_textures_can_be_laid_as_tiles():
    apply, variables = texture_net(layers.circular)
    z = texture.noise(jax.random.key(0), (1, 16, 16), scales=3)
    moved = tuple(jnp.roll(x, (8 // 2**i, 4 // 2**i), (1, 2)) for i, x in enumerate(z))
    np.testing.assert_allclose(apply(variables, moved), np.roll(apply(variables, z), (8, 4), (1, 2)), atol=1e-5)


def test_stylised_pictures_depend_on_content_and_noise():
    apply, variables = texture_net(stylise=True)
    z, other = (texture.noise(jax.random.key(seed), (1, 16, 16), scales=3) for seed in (0, 1))
    x = pictures(1, 16, 16)
    y = apply(variables, z, x)
    assert y.shape == x.shape
    assert np.abs(y - apply(variables, z, 1 - x)).mean() > 0.01 and np.abs(y - apply(variables, other, x)).mean() > 0.01
    with pytest.raises(ValueError, match="need noise of that shape"):
        apply(variables, z, pictures(1, 16, 15))


@settings(deadline=None, max_examples=4)
@given(n=st.integers(1, 2), h=st.integers(1, 70), w=st.integers(1, 70))
def test_texture_nets_keep_the_size_and_have_eight_more_channels_a_scale(n, h, w):
    net, x = nets.NETS["ulyanov"], jax.ShapeDtypeStruct((n, h, w, 3), jnp.float32)
    z = jax.eval_shape(lambda: texture.noise(jax.random.key(0), (n, h, w), scales=6))
    y, variables = jax.eval_shape(lambda z, x: net.init_with_output(jax.random.key(0), z, x), z, x)
    assert y.shape == x.shape
    assert [variables["params"][f"join{i}"]["conv1"]["kernel"].shape[3] for i in range(5)] == [48, 40, 32, 24, 16]
    assert variables["params"]["scale0"]["conv1"]["kernel"].shape == (3, 3, 6, 8)


def test_texture_nets_gradients_are_finite_even_at_one_pixel():
    net = nets.NETS["ulyanov"].clone(width=2)
    z = texture.noise(jax.random.key(0), (1, 2, 1), scales=2)
    x = np.full((1, 2, 1, 3), 0.5, np.float32)
    variables = jit(net.init)(jax.random.key(0), z, x)
    gradient = jit(jax.grad(lambda variables: (net.apply(variables, z, x) ** 2).sum()))(variables)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


# --- AdaIN


@functools.cache
def vgg19():
    """A VGG-19 with few channels and random weights."""
    rng = np.random.default_rng(0)
    before, tree = 3, {"mean": np.full(3, 0.5, np.float32)}
    for name in features.vgg.shapes("vgg19"):
        channels = 3 + features.vgg.place(name).block
        kernel = rng.normal(0, (2 / 9 / before) ** 0.5, (3, 3, before, channels)).astype(np.float32)
        tree[name] = {"kernel": kernel, "bias": rng.normal(0, 0.1, channels).astype(np.float32)}
        before = channels
    return features.prepare(tree, winograd=False)


def test_adain_gives_features_the_targets_statistics():
    x, styles = normal(2, 6, 5, 4), 3 + 2 * normal(2, 7, 8, 4, seed=1)
    targets = adain.moments(styles)
    np.testing.assert_allclose(targets[0], losses.moments(styles[0]))
    for target, expected in ((targets, targets), (targets[1], np.stack([targets[1]] * 2))):
        np.testing.assert_allclose(adain.moments(adain.adain(x, target)), expected, rtol=1e-4)
    whole, half = adain.adain(x, targets), adain.adain(x, targets, alpha=0.5)
    np.testing.assert_array_equal(adain.adain(x, targets, alpha=0.0), x)
    np.testing.assert_allclose(half, (x + whole) / 2, atol=1e-5)
    each = adain.adain(x, targets, alpha=np.array([0.0, 1.0]))
    np.testing.assert_allclose(each, np.stack([x[0], whole[1]]), atol=1e-5)
    np.testing.assert_allclose(adain.adain(x, adain.moments(x)), x, atol=1e-5)


def test_blending_styles_is_convex_and_blends_features():
    x, targets = normal(1, 6, 5, 4), adain.moments(2 * normal(3, 7, 8, 4, seed=1))
    for i in range(3):
        np.testing.assert_allclose(adain.blend(targets, np.eye(3)[i]), targets[i], rtol=1e-6)
    blended = adain.blend(targets, [2, 1, 1])
    assert (blended >= targets.min(0) - 1e-6).all() and (blended <= targets.max(0) + 1e-6).all()
    expected = sum(w * adain.adain(x, t) for w, t in zip((0.5, 0.25, 0.25), targets, strict=True))
    np.testing.assert_allclose(adain.adain(x, blended), expected, atol=1e-5)


def test_stylised_pictures_keep_their_size_and_follow_style_and_strength():
    params, decoder = vgg19(), nets.NETS["adain"].clone(channels=(6, 5, 4), level=1.0)
    x, styles = pictures(1, 21, 34), pictures(2, 16, 24, seed=1) ** 3
    targets = jit(adain.targets)(params, styles)
    assert targets.shape == (2, 2, 7)
    encoded = jit(adain.encode)(params, x)
    assert encoded.shape == (1, 3, 5, 7)
    variables = jit(decoder.init)(jax.random.key(0), encoded)

    def stylize(variables, target, alpha):
        return adain.stylize(params, decoder, variables, x, target, alpha=alpha)

    apply = jit(stylize)
    whole, none, other = (apply(variables, targets[i], a) for i, a in ((0, 1.0), (0, 0.0), (1, 1.0)))
    assert whole.shape == x.shape and np.isfinite(whole).all()
    assert np.abs(whole - none).max() > 1e-3 and np.abs(whole - other).max() > 1e-3
    np.testing.assert_allclose(none, decoder.apply(variables, encoded)[:, :21, :34], atol=1e-5)
    gradient = jit(jax.grad(lambda v: stylize(v, targets[0], 1.0).sum()))(variables)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


def test_the_decoder_mirrors_the_encoder():
    decoder, x = nets.NETS["adain"], jax.ShapeDtypeStruct((1, 4, 5, 512), jnp.float32)
    y, variables = jax.eval_shape(lambda x: decoder.init_with_output(jax.random.key(0), x), x)
    assert y.shape == (1, 32, 40, 3)
    mirrored = {name: p["kernel"].shape for name, p in variables["params"].items()}
    needed = features.vgg.until(features.vgg.shapes("vgg19"), ["conv4_1"])
    encoder = {name: parts["kernel"] for name, parts in needed.items()}
    assert set(mirrored) == set(encoder)
    for name, shape in mirrored.items():
        k, _, c, out = encoder[name]
        assert shape == (k, k, out, c)


def test_a_fast_decoder_equals_the_plain_one():
    decoder, x = nets.NETS["adain"].clone(channels=(64, 64, 16), level=1.0), normal(1, 3, 4, 64)
    variables = trained(decoder, x)
    plain, fast = (jit(decoder.clone(fast=fast).apply)(variables, x) for fast in (False, True))
    np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)
