"""Training steps: the loss is the paper's, devices make no difference, and it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_vgg import narrow

from nstjax import features, losses, nets, parallel, train
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.nets import adain, layers, texture
from nstjax.nets.transform import TransformNet

CONTENT, STYLE = {"relu2_2": 1.0}, {"relu1_2": 1.0, "relu3_3": 0.5}


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    """What takes time here is compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pictures(n, seed=0, size=16):
    coarse = np.random.default_rng(seed).uniform(size=(n, 4, 4, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (n, size, size, 3), "linear")).clip(0, 1)


def setting(norm=layers.InstanceNorm, transformation=None):
    """(state, step factory, data) of a tiny net and a narrow VGG."""
    net = TransformNet(width=4, blocks=1, norm=norm)
    transformation = transformation or optax.sgd(10.0)

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


# --- the other nets' losses


def textures(content):
    """(state, step factory, batch, data) of a texture net, normalised over the whole batch as if on one device."""
    scales = 3
    net = nets.TextureNet(width=2, norm=layers.BatchNorm)
    spread = net.clone(norm=functools.partial(layers.BatchNorm, axis_name="devices"))
    _, _, data, _ = setting()

    def loss(module):
        def forward(params, stats, batch, keys):
            z = texture.noises(keys, (16, 16), scales=scales)
            variables = {"params": params, "batch_stats": stats}
            inputs = (z, batch if content else None)
            out, new = module.apply(variables, *inputs, train=True, mutable=["batch_stats"])
            return out, new["batch_stats"]

        gram = functools.partial(losses.gram, normalization="johnson")
        return train.perceptual(forward, vgg.features, statistic=gram)

    batch = pictures(8) if content else np.zeros((8, 0), np.float32)
    z = texture.noise(jax.random.key(0), (1, 16, 16), scales=scales)
    state = train.init(net, optax.sgd(1.0), jax.random.key(0), z, pictures(1) if content else None)
    data["content_layers"] = CONTENT if content else {}
    return (
        state,
        lambda axis=None: train.make_step(loss(spread if axis else net), optax.sgd(1.0), axis=axis),
        batch,
        data,
    )


def arbitrary():
    """The same of AdaIN's decoder."""
    decoder, params = nets.Decoder(channels=(6, 5, 4), level=1.0), features.prepare(narrow("vgg19"), winograd=False)
    state = train.init(decoder, optax.sgd(1.0), jax.random.key(0), adain.encode(params, pictures(1)))
    batch = {"content": pictures(8), "style": pictures(8, seed=1) ** 2}
    data = {"network": params, "weights": {"content": 1.0, "style": 10.0}, "content_layers": {"relu4_1": 0.5}}
    data |= {"style_layers": {"relu1_1": 1.0, "relu2_1": 0.5, "relu4_1": 0.25}, "rate": 0.1}

    def make(axis=None):
        return train.make_step(adain.loss(decoder), optax.sgd(1.0), axis=axis)

    return state, make, batch, data


CASES = {
    "texture": functools.partial(textures, content=False),
    "ulyanov": functools.partial(textures, content=True),
    "adain": arbitrary,
}


@pytest.mark.parametrize("case", CASES)
def test_the_other_losses_step_on_eight_devices_as_on_one(case):
    state, make, batch, data = CASES[case]()
    alone, terms = jax.jit(make())(state, batch, data)
    step = parallel.data_parallel(make("devices"))
    together, its_terms = step(*parallel.replicate((state,)), batch, parallel.replicate(data))
    assert ("content" in terms) == (case != "texture") and ("tv" in terms) == (case != "adain")
    assert float(terms["loss"]) == pytest.approx(sum(float(terms[name]) for name in terms if name != "loss"), rel=1e-5)
    for name in terms:
        assert float(its_terms[name]) == pytest.approx(float(terms[name]), rel=1e-4), name
    moved = 0.0
    trees = [(each.params, each.stats) for each in (state, alone, together)]
    for before, a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 + 1e-3 * float(np.abs(a - before).max()))
        moved = max(moved, float(np.abs(a - before).max()))
    assert moved > 0.01


def test_adains_terms_are_the_papers():
    state, make, batch, data = arbitrary()
    _, terms = jax.jit(make())(state, batch, data)
    params, decoder = data["network"], nets.Decoder(channels=(6, 5, 4), level=1.0)
    content = style = 0.0
    for photograph, painting in zip(batch["content"], batch["style"], strict=True):
        x, y = (np.asarray(vgg.features(params, p)["relu4_1"]) for p in (photograph, painting))
        mean, std = x.mean((0, 1)), np.sqrt(x.var((0, 1)) + 1e-5)
        wanted = (x - mean) / std * np.sqrt(y.var((0, 1)) + 1e-5) + y.mean((0, 1))
        acts = vgg.features(params, decoder.apply({"params": state.params}, wanted[None])[0])
        painted = vgg.features(params, painting)
        content += 0.5 * float(((acts["relu4_1"] - wanted) ** 2).mean()) / 8
        for name, weight in data["style_layers"].items():
            for statistic in (np.mean, lambda x, axis: np.sqrt(np.var(x, axis) + 1e-5)):
                d = statistic(np.asarray(acts[name]), (0, 1)) - statistic(np.asarray(painted[name]), (0, 1))
                style += 10 * weight / 2 * float((d**2).mean()) / 8
    assert float(terms["content"]) == pytest.approx(content, rel=1e-3)
    assert float(terms["style"]) == pytest.approx(style, rel=1e-3)


def test_a_decoder_learns_to_paint_photographs_from_their_features():
    state, _, batch, data = arbitrary()
    decoder, params = nets.Decoder(channels=(6, 5, 4), level=1.0), data["network"]
    painted = decoder.apply({"params": state.params}, adain.encode(params, batch["content"]))
    step = jax.jit(train.make_step(adain.reconstruction(decoder), optax.sgd(0.5)))
    new, terms = step(state, batch, data)
    assert float(terms["loss"]) == pytest.approx(float(((painted - batch["content"]) ** 2).mean()), rel=1e-4)
    for _ in range(5):
        new, after = step(new, batch, data)
    assert float(after["pixels"]) < 0.9 * float(terms["pixels"])


def test_noise_is_a_pictures_own_wherever_it_is_computed():
    keys = jax.random.split(jax.random.key(0), 4)
    whole, half = (texture.noises(k, (8, 12), scales=2) for k in (keys, keys[2:]))
    for a, b in zip(whole, half, strict=True):
        np.testing.assert_array_equal(a[2:], b)
    assert [z.shape for z in whole] == [(4, 8, 12, 3), (4, 4, 6, 3)]


def test_one_process_gathers_its_own_number():
    assert parallel.gather(3).tolist() == [3]


def test_a_loss_that_is_not_finite_goes_back_with_half_the_rate(tmp_path, capsys):
    """A step that fails whenever the rate is above a quarter."""

    def step(state, batch, data):
        rate = float(data["rate"])
        broken = rate > 0.3 and int(state.step) >= 5
        state = state._replace(step=state.step + 1, params=state.params + rate)
        return state, {"loss": np.nan if broken else 1.0 / (1 + int(state.step))}

    start = train.State(np.int32(0), np.float32(0), {}, (), jax.random.key(0))

    def stream(position):
        number = position or 0
        while True:
            number += 1
            yield np.zeros(1), number

    end = train.fit(step, start, stream, {}, steps=12, folder=tmp_path, every=2)
    assert int(end.step) == 12
    # Four steps at the full rate were saved; the others were made at a quarter.
    assert float(end.params) == 4 + 8 * 0.25
    assert "0.25 of the learning rate" in capsys.readouterr().out

    def hopeless(state, batch, data):
        return state, {"loss": np.inf}

    with pytest.raises(InputError, match="--learning-rate"):
        train.fit(hopeless, start, stream, {}, steps=12, folder=tmp_path / "other")
