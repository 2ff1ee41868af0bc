"""The objective put together from losses: terms, weights, regions, blends, strength."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nstjax import losses, matting, objectives, whole

KERNEL = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
LAYERS = {"content_layers": {"deep": 1.0}, "style_layers": {"shallow": 0.5, "deep": 2.0}}
WEIGHTS = {"content": 2.0, "style": 3.0, "tv": 5.0, "laplacian": 7.0, "matting": 11.0}


def features(params, image):
    """Two layers that see single pixels and pairs of pixels."""
    x = jnp.tanh((image - 0.5) @ params)
    return {"shallow": x, "deep": (x * jnp.roll(x, 1, axis=0))[::2, ::2]}


def picture(seed, shape=(16, 12, 3)):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def style(seed, *, weight=1.0, mask=None, region=None):
    return objectives.Style(picture(seed, (20, 14, 3)), mask, region, weight)


def evaluate(image, styles, *, weights=WEIGHTS, **options):
    objective, targets = objectives.neural_style(features, **options)
    data = jax.jit(targets)(KERNEL, picture(0), styles, weights=weights, **LAYERS)
    return jax.jit(objective)(image, data)


def test_terms_are_the_losses_times_their_weights():
    image, content, painting = picture(3), picture(0), style(1)
    loss, terms = evaluate(image, [painting])
    acts, wanted, styled = (features(KERNEL, x) for x in (image, content, painting.image))
    gram = {name: np.mean((losses.gram(acts[name]) - losses.gram(styled[name])) ** 2) for name in acts}
    expected = {
        "content": 2 * np.mean((acts["deep"] - wanted["deep"]) ** 2),
        "style": 3 * (0.5 * gram["shallow"] + 2 * gram["deep"]),
        "tv": 5 * losses.total_variation(image),
        "laplacian": 7 * np.mean((losses.laplacian(image) - losses.laplacian(content)) ** 2),
        "matting": 11 * matting.energy(content, image) / (16 * 12),
    }
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-5), name
    assert float(loss) == pytest.approx(sum(map(float, terms.values())), rel=1e-6)


def test_terms_without_weights_are_left_out():
    assert set(evaluate(picture(3), [style(1)], weights={"style": 1.0})[1]) == {"style"}


def test_blending_with_mse_pulls_to_the_mean_gram():
    image = jnp.asarray(picture(3))
    grad = lambda styles: jax.grad(lambda x: evaluate(x, styles, weights={"style": 1.0})[0])(image)  # noqa: E731
    both = grad([style(1, weight=0.25), style(2, weight=0.75)])
    mixed = 0.25 * grad([style(1)]) + 0.75 * grad([style(2)])
    np.testing.assert_allclose(both, mixed, rtol=1e-4, atol=1e-7)


def test_a_region_takes_its_style_there_and_only_there():
    left = np.zeros((16, 12), np.float32)
    left[:, :4] = 1

    def loss(image):
        return evaluate(image, [style(1, region=left)], weights={"style": 1.0})[0]

    grad = jax.grad(loss)(jnp.asarray(picture(3)))
    assert np.abs(grad[:, :4]).max() > 0
    assert np.abs(grad[:, 8:]).max() == 0


def test_masks_of_ones_change_nothing():
    ones, wide = np.ones((16, 12), np.float32), np.ones((20, 14), np.float32)
    plain = evaluate(picture(3), [style(1)])[0]
    assert float(evaluate(picture(3), [style(1, mask=wide, region=ones)])[0]) == pytest.approx(float(plain), rel=1e-5)


def test_wasserstein_targets_with_their_roots_prepared():
    options = {"statistic": losses.gaussian, "style_distance": losses.wasserstein2}
    plain = evaluate(picture(3), [style(1)], **options)[1]["style"]
    prepared = evaluate(picture(3), [style(1)], **options, prepare=losses.with_root)[1]["style"]
    assert float(prepared) == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_strength_is_a_ratio_in_the_terms_own_units(strength):
    statistic = losses.gram
    objective, targets = objectives.neural_style(features, statistic=statistic)
    content = picture(0)
    data = targets(KERNEL, content, [style(1)], weights={"content": 9.0, "style": 9.0}, **LAYERS)
    balanced = objectives.balance(objective, data, content, strength=strength, ratio=50.0)
    deep = features(KERNEL, content)["deep"]
    unit = {"content": np.mean((deep - deep.mean((0, 1))) ** 2), "style": objective(content, data)[1]["style"] / 9}
    shares = {name: float(balanced["weights"][name] * unit[name]) / objectives.SCALE for name in unit}
    assert shares["content"] == pytest.approx((1 - strength) ** 2, rel=1e-4)
    assert shares["style"] == pytest.approx(50 * strength**2, rel=1e-4)


RAMP = np.linspace([0, 0.3, 1], [1, 0.1, 0.5], 16 * 12, dtype=np.float32).reshape(16, 12, 3)
FLAT = {
    "content": (np.full((16, 12, 3), 0.3, np.float32), RAMP),
    "style": (RAMP, np.full((16, 12, 3), 0.9, np.float32)),
    "both": (np.zeros((16, 12, 3), np.float32), np.full((16, 12, 3), [0.9, 0.2, 0.6], np.float32)),
    "the same": (RAMP, RAMP),
    "both the same": (np.zeros((16, 12, 3), np.float32), np.zeros((16, 12, 3), np.float32)),
}
WASSERSTEIN = {
    "statistic": losses.gaussian,
    "style_distance": losses.wasserstein2,
    "prepare": losses.with_root,
    "centered": True,
}


@pytest.mark.parametrize("options", [{}, WASSERSTEIN], ids=["gram", "wasserstein"])
@pytest.mark.parametrize("case", FLAT)
def test_strength_of_what_has_no_structure_or_no_difference(case, options):
    content, painting = FLAT[case]
    objective, targets = objectives.neural_style(features, **options)
    data = jax.jit(targets)(KERNEL, content, [objectives.Style(painting)], weights={}, **LAYERS)
    data = jax.jit(lambda data, image: objectives.balance(objective, data, image, strength=0.5))(data, content)
    noise = picture(9, content.shape)
    ones = data | {"weights": {"content": 1.0, "style": 1.0}}
    _, unit = objective(noise, ones)
    least = objectives.LEAST
    for name, largest in (("content", 0.25 / least["content"]), ("style", 300 * 0.25 / least["style"])):
        # At most so much for an image of noise, whatever the content is.
        assert 0 < float(data["weights"][name] * unit[name]) < 2 * objectives.SCALE * largest
    (loss, _), grad = jax.jit(jax.value_and_grad(objective, has_aux=True))(content, data)
    assert np.isfinite(loss) and np.isfinite(grad).all()
    if "same" not in case:
        lower = content - 0.01 * float(loss) / float((grad**2).sum()) * grad
        assert objective(lower, data)[0] < loss


def test_strength_does_not_depend_on_the_scale_of_features():
    def gradient(scale):
        scaled = lambda params, image: {k: scale * x for k, x in features(params, image).items()}  # noqa: E731
        objective, targets = objectives.neural_style(scaled)
        data = targets(KERNEL, picture(0), [style(1)], weights={"content": 1.0, "style": 1.0}, **LAYERS)
        data = objectives.balance(objective, data, picture(0), strength=0.4)
        return jax.grad(lambda x: objective(x, data)[0])(jnp.asarray(picture(3)))

    np.testing.assert_allclose(gradient(57.0), gradient(1.0), rtol=1e-3, atol=1.0)


def test_regions_that_share_the_picture_each_want_their_own():
    """Styles taken from the two halves of the picture itself cost nothing there; exchanged they do."""
    image, (left, right) = picture(0), np.zeros((2, 16, 12), np.float32)
    left[:, :6], right[:, 6:] = 1, 1

    def cost(masks):
        pairs = zip(masks, (left, right), strict=True)
        styles = [objectives.Style(image, mask, region) for mask, region in pairs]
        return float(evaluate(image, styles, weights={"style": 1.0})[0])

    assert cost((left, right)) < 1e-11
    assert cost((right, left)) > 1e-6


@pytest.mark.parametrize("name", ["tv", "laplacian", "matting"])
def test_losses_of_whole_images_have_the_same_priors(name):
    content, image, params = picture(0), picture(1), jnp.asarray(KERNEL)
    own = {"weights": {name: 3.0}, "image": image, "key": jax.random.key(0)} | LAYERS
    values = []
    for pair in (objectives.neural_style(features), whole.neural_style(features, style=whole.SLICED)):
        objective, targets = pair
        total, terms = objective(image, targets(params, content, [style(2)], **own))
        assert set(terms) == {name} and total == terms[name] > 0
        values.append(float(total))
    assert values[0] == values[1]
