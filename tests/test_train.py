"""Training steps: the loss is the paper's, devices make no difference, and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_vgg import narrow

from nstjax import features, losses, parallel, train
from nstjax.features import vgg
from nstjax.nets import layers
from nstjax.nets.transform import TransformNet

CONTENT, STYLE = {"relu2_2": 1.0}, {"relu1_2": 1.0, "relu3_3": 0.5}


def pictures(n, seed=0, size=16):
    coarse = np.random.default_rng(seed).uniform(size=(n, 4, 4, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (n, size, size, 3), "linear")).clip(0, 1)


def setting(norm=layers.InstanceNorm, transformation=None):
    """(state, step factory, data) of a tiny net and a narrow VGG."""
    net = TransformNet(width=4, blocks=1, norm=norm)
    transformation = transformation or optax.sgd(1.0)

    def forward(params, stats, batch, key):
        out, new = net.apply({"params": params, "batch_stats": stats}, batch, train=True, mutable=["batch_stats"])
        return out, new.get("batch_stats", {})

    params = features.prepare(narrow("vgg16"), winograd=False)
    acts = vgg.features(params, pictures(1, seed=9)[0])
    data = {
        "network": params,
        "style": {name: losses.gram(acts[name], normalization="johnson") for name in STYLE},
        "weights": {"content": 1.0, "style": 10.0, "tv": 0.1},
        "content_layers": CONTENT,
        "style_layers": STYLE,
        "rate": 1.0,
    }
    gram = lambda x, mask=None: losses.gram(x, mask=mask, normalization="johnson")  # noqa: E731
    loss = train.perceptual(forward, vgg.features, statistic=gram)
    state = train.init(net, transformation, jax.random.key(0), pictures(1))
    return state, lambda axis=None: train.make_step(loss, transformation, axis=axis), data, forward


@pytest.fixture(scope="module")
def one_step():
    state, make, data, forward = setting()
    batch = pictures(8)
    return state, batch, data, forward, *jax.jit(make())(state, batch, data)


def test_terms_are_means_over_the_batch(one_step):
    state, batch, data, forward, _, terms = one_step
    out, _ = forward(state.params, state.stats, batch, None)
    expected = {"content": [], "style": [], "tv": []}
    for picture, photograph in zip(out, batch, strict=True):
        acts, wanted = (vgg.features(data["network"], x) for x in (picture, photograph))
        expected["content"].append(float(((acts["relu2_2"] - wanted["relu2_2"]) ** 2).mean()))
        grams = {name: losses.gram(acts[name], normalization="johnson") for name in STYLE}
        expected["style"].append(sum(STYLE[n] * float(((grams[n] - data["style"][n]) ** 2).mean()) for n in STYLE))
        expected["tv"].append(float(losses.total_variation(picture)))
    for name, values in expected.items():
        assert float(terms[name]) == pytest.approx(data["weights"][name] * np.mean(values), rel=1e-4), name
    assert float(terms["loss"]) == pytest.approx(sum(float(terms[name]) for name in expected), rel=1e-5)


@pytest.mark.parametrize("devices", [2, 8])
def test_several_devices_step_as_one(one_step, devices):
    state, batch, data, _, alone, terms = one_step
    _, make, _, _ = setting()
    step = parallel.data_parallel(make("devices"), devices=jax.devices()[:devices])
    together, its_terms = step(state, batch, data)
    assert int(together.step) == 1
    moved = 0.0
    for before, a, b in zip(*map(jax.tree.leaves, (state.params, alone.params, together.params)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 + 1e-4 * float(np.abs(a - before).max()))
        moved += float(np.abs(a - before).max())
    assert moved > 0.03
    assert float(its_terms["loss"]) == pytest.approx(float(terms["loss"]), rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused(one_step):
    state, batch, data, *_ = one_step
    step = parallel.data_parallel(lambda *args: args, devices=jax.devices()[:3])
    with pytest.raises(ValueError, match="batch of 8 cannot be split over 3"):
        step(state, batch, data)


def test_training_lowers_the_loss_and_moves_the_averages_of_batch_norm():
    state, make, data, _ = setting(layers.BatchNorm, optax.adam(3e-3))
    step, before = jax.jit(make()), jax.tree.leaves(state.stats)
    history = []
    for i in range(40):
        state, terms = step(state, pictures(4, seed=i), data)
        history.append(float(terms["loss"]))
    assert np.mean(history[-5:]) < 0.7 * np.mean(history[:5])
    assert all(not np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(state.stats), strict=True))


def test_a_rate_of_zero_changes_nothing_but_the_counts(one_step):
    state, batch, data, *_ = one_step
    _, make, _, _ = setting()
    still, _ = jax.jit(make())(state, batch, data | {"rate": jnp.zeros(())})
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state.params, still.params)), strict=True))
    assert int(still.step) == 1
