"""Any style in closed form: the decoder that passes through VGG's layers, its start, its training, its transforms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import smooth
from networks import levels, narrow_vgg
from scipy import ndimage

from nstjax import features, images, losses, nets, styles
from nstjax.features import vgg
from nstjax.nets import decoder as decoders
from nstjax.nets import inversion, wct
from nstjax.nets.decoder import LEVELS
from nstjax.weights import PICTURES


@pytest.fixture(scope="module")
def network():
    return features.prepare(narrow_vgg("vgg19"), winograd=False)


@pytest.fixture
def params(network, monkeypatch):
    """Of a narrow network, to whose features the layers' scales are set."""
    for name, level in levels(network).items():
        monkeypatch.setitem(LEVELS, name, level)
    return network


def photos(n, h=32, w=32):
    return np.stack([smooth(i, (h, w)) for i in range(n)]).astype(np.float32)


def made(params):
    """A decoder of the narrow network's channels, random."""
    channels = tuple(params[f"conv{block}_1"]["bias"].shape[0] for block in (3, 2, 1))
    decoder, acts = nets.Decoder(channels=channels, level=1.0, unpool=True), wct.encode(params, photos(1))
    return decoder, decoder.init(jax.random.key(0), acts["relu4_1"])


def test_unpooling_puts_each_maximum_back_where_it_was():
    x = np.random.default_rng(0).normal(size=(2, 8, 6, 5)).astype(np.float32)
    where = np.asarray(decoders.places({name: x for name in decoders.POOLED.values()})[2])
    pooled = x.reshape(2, 4, 2, 3, 2, 5).max((2, 4))
    np.testing.assert_array_equal(where * x, np.where(x == pooled.repeat(2, 1).repeat(2, 2), x, 0))
    assert where.sum() == pooled.size
    tied = np.asarray(decoders.places({name: 0 * x for name in decoders.POOLED.values()})[1])
    np.testing.assert_array_equal(tied, 1)


def test_the_places_are_of_vggs_own_pools(params):
    acts = jax.vmap(lambda x: vgg.features(vgg.until(params, LEVELS), x))(photos(2))
    for block, where in decoders.places(acts).items():
        highest = np.asarray(where * acts[decoders.POOLED[block]])
        n, h, w, c = highest.shape
        pooled = highest.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
        np.testing.assert_allclose(pooled, acts[f"pool{block}"], rtol=1e-6)


def test_the_decoder_in_closed_form_gives_photos_back():
    """With the bundled network, a crop never seen; random parameters, and one color, are much farther from it."""
    params = features.load("vgg19", layers=tuple(LEVELS))
    photo = images.load(PICTURES / "astronaut.jpg", size=(192, 192))
    crops = [photo[i : i + 64, j : j + 64] for i in range(0, 129, 32) for j in range(0, 129, 32)]
    unseen = crops.pop(7)
    decoder = nets.Decoder()  # by `nearest`, which needs no training to look right
    x = wct.encode(params, unseen[None])["relu4_1"]
    random = decoder.init(jax.random.key(0), x)
    fitted = inversion.fitted(decoder, params, np.stack(crops))
    assert jax.tree.map(np.shape, fitted) == jax.tree.map(np.shape, random["params"])
    decoded, chance = (np.asarray(decoder.apply(each, x)[0]) for each in ({"params": fitted}, random))
    error, plain, worst = (float(np.square(each - unseen).mean()) for each in (decoded, unseen.mean((0, 1)), chance))
    assert error < 0.5 * plain and error < 0.2 * worst


def test_a_convolution_in_closed_form_is_the_ridge_regression(params, monkeypatch):
    """The first one, from every position, against normal equations of patches that SciPy's filter cuts out."""
    decoder, _ = made(params)
    three = photos(3, 16, 16)
    monkeypatch.setattr(inversion, "SAMPLES", 4000)
    found = inversion.fitted(decoder, params, three)["conv4_1"]
    acts = [vgg.features(vgg.until(params, LEVELS), image) for image in three]
    scale = np.sqrt(np.mean([np.square(each["pool3"]).mean() for each in acts]))
    rows, wanted = [], []
    for each in acts:
        x = np.asarray(each["relu4_1"])
        shifts = [
            ndimage.correlate(x, np.eye(9)[k].reshape(3, 3, 1), mode="mirror").reshape(-1, x.shape[2]) for k in range(9)
        ]
        rows.append(np.concatenate([*shifts, np.ones((len(shifts[0]), 1))], 1))
        wanted.append(np.asarray(each["pool3"]).reshape(len(shifts[0]), -1) / scale)
    a, b = np.concatenate(rows), np.concatenate(wanted)
    ridge = inversion.RIDGE * np.square(a).mean() * len(a)
    expected = np.linalg.solve(a.T @ a + ridge * np.eye(a.shape[1]), a.T @ b)
    predicted = a[:, :-1] @ found["kernel"].reshape(a.shape[1] - 1, -1) + found["bias"]
    np.testing.assert_allclose(predicted, a @ expected, atol=0.1 * np.abs(b).max())
    assert np.square(predicted - a @ expected).mean() < 0.01 * np.square(b - b.mean(0)).mean()


def test_features_get_the_styles_mean_and_covariance(params, monkeypatch):
    decoder, variables = made(params)
    monkeypatch.setattr(wct, "RIDGE", 0.0)
    image, painting = smooth(1, (32, 40)), smooth(2, (24, 48)) ** 2
    target = wct.style(params, painting)
    seen, whole = {}, nets.Decoder.levels

    def spied(self, x, places=None, *, change):
        out = whole(self, x, places, change=change)
        seen.update(out, relu4_1=x)
        return out

    monkeypatch.setattr(nets.Decoder, "levels", spied)
    result = wct.stylize(params, decoder, variables, image, [target])
    assert result.shape == image.shape and np.isfinite(result).all()
    for name, scale in LEVELS.items():
        x = np.asarray(seen[name][0], np.float64).reshape(-1, seen[name].shape[-1]) / scale
        reached = np.cov(x.T, bias=True)
        wanted, rank = np.asarray(target[name].covariance), np.linalg.matrix_rank(reached, tol=1e-4)
        np.testing.assert_allclose(x.mean(0), target[name].mean, rtol=1e-2, atol=1e-3)
        if rank == len(wanted):
            np.testing.assert_allclose(reached, wanted, rtol=0.05, atol=0.02 * np.abs(wanted).max())


def test_regions_and_strength_limit_what_is_transformed(params):
    decoder, variables = made(params)
    image = photos(1)[0]
    targets = [wct.style(params, smooth(i, (24, 24)) ** i) for i in (2, 3)]
    left = (np.arange(32) < 16)[None] * np.ones((32, 1), np.float32)
    stylize = lambda styles, **more: np.asarray(  # noqa: E731
        wct.stylize(params, decoder, variables, image, styles, **more)
    )
    acts = wct.encode(params, image[None])
    plain = decoder.apply(variables, acts["relu4_1"], decoders.places(acts))[0]
    np.testing.assert_allclose(stylize(targets[:1], strength=0.0), plain, atol=1e-4)
    np.testing.assert_allclose(stylize(targets[:1], regions=[0 * left]), plain, atol=1e-4)
    assert np.abs(stylize(targets[:1]) - plain).mean() > 0.01
    both = stylize(targets, regions=[left, 1 - left])
    np.testing.assert_allclose(both, stylize(targets[::-1], regions=[1 - left, left]), atol=1e-4)
    assert np.abs(both - stylize(targets, regions=[1 - left, left])).mean() > 0.01
    halves = [np.full((32, 32), 0.5, np.float32)] * 2
    np.testing.assert_allclose(
        stylize(targets[:1] * 2, regions=halves), stylize(targets[:1]), atol=1e-3 * np.abs(plain).max() + 1e-3
    )


def test_statistics_by_a_mask_are_those_of_its_part(params):
    painting = np.concatenate([smooth(1, (32, 32)), smooth(2, (32, 32)) ** 3], 1)
    mask = (np.arange(64) < 32)[None] * np.ones((32, 1), np.float32)
    found = wct.style(params, painting, mask=mask)
    acts = vgg.features(params, painting)
    for name, scale in LEVELS.items():
        part = np.asarray(acts[name])[:, : acts[name].shape[1] // 2] / scale
        expected = losses.gaussian(part)
        np.testing.assert_allclose(found[name].mean, expected.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[name].covariance, expected.covariance, rtol=1e-3, atol=1e-5)


def test_the_loss_compares_what_some_choice_of_true_features_decodes(params):
    """For each image, one of the 8 choices of layers at which it goes on with VGG's own features."""
    decoder, variables = made(params)
    data = {"network": params, "weights": {"pixels": 1.0, "features": 0.0, "levels": 0.0}}
    batch, loss = photos(1), jax.jit(wct.reconstruction(decoder))
    acts = wct.encode(params, batch)

    def pixels(choice):
        change = lambda name, x: acts[name] if name in choice else x  # noqa: E731
        given = acts["relu4_1"], decoders.places(acts)
        image = decoder.apply(variables, *given, change=change, method=nets.Decoder.levels)["image"]
        return float(jnp.square(image - batch).mean() / wct.PIXELS)

    names = ("relu3_1", "relu2_1", "relu1_1")
    possible = {pixels(c) for n in range(4) for c in itertools.combinations(names, n)}
    found = set()
    for seed in range(16):
        value, (terms, _) = loss(variables["params"], {}, batch, jax.random.split(jax.random.key(seed), 1), data)
        assert float(value) == pytest.approx(float(terms["pixels"]), rel=1e-5)
        near = min(possible, key=lambda p: abs(p - float(value)))
        assert float(value) == pytest.approx(near, rel=1e-3)
        found.add(near)
    assert len(found) > 2


def test_a_decoder_learns_from_its_loss(params):
    decoder, variables = made(params)
    data = {"network": params, "weights": {"pixels": 1.0, "features": 1.0, "levels": 1.0}}
    value = jax.jit(jax.value_and_grad(wct.reconstruction(decoder), has_aux=True))
    keys = jax.random.split(jax.random.key(0), 2)
    (before, (terms, _)), gradient = value(variables["params"], {}, photos(2), keys, data)
    assert all(float(x) > 0 for x in terms.values())
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
    length = sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda p, g: p - 1e-3 * float(before) / length * g, variables["params"], gradient)
    (after, _), _ = value(moved, {}, photos(2), keys, data)
    assert after < before


def test_a_trained_net_of_this_kind_blends_paintings(params, monkeypatch):
    decoder, variables = made(params)
    monkeypatch.setattr(features, "load", lambda *args, **more: params)
    trained = styles.Trained(decoder, variables, {})
    image, (a, b) = photos(1)[0], (smooth(i, (24, 24)) ** i for i in (2, 3))
    alone, blended = (trained.stylize(image, styles=[a, b], blend=blend) for blend in ((1, 0), (1, 1)))
    assert alone.shape == image.shape
    np.testing.assert_allclose(alone, trained.stylize(image, styles=[a]), atol=2e-3)
    assert np.abs(blended - alone).mean() > 1e-3
    pair = trained.stylize(np.stack([image, image[::-1]]), styles=[a])
    np.testing.assert_allclose(pair[0], alone, atol=2e-3)
