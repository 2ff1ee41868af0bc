"""The losses of the documents (docs/documents.md), computed from their equations in float64 by loops and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nstjax import losses, methods, objectives

C = 4  # channels
IMAGE, CONTENT, PAINTING = (np.random.default_rng(i).uniform(size=(16, 12, 3)).astype(np.float32) for i in range(3))
KERNEL = np.random.default_rng(0).normal(size=(3, C)).astype(np.float32)
WEIGHTS = {"shallow": 0.5, "deep": 2.0}  # of layers
close = np.testing.assert_allclose


def features(seed):
    return np.random.default_rng(seed).normal(1, 2, size=(5, 7, C)).astype(np.float32)


def product(x):
    """F F^T of features [H, W, C], entry by entry."""
    rows, columns, c = x.shape
    g = np.zeros((c, c))
    for i in range(rows):
        for j in range(columns):
            g += np.outer(np.float64(x[i, j]), np.float64(x[i, j]))
    return g


def norm(x):
    """The Frobenius norm."""
    return float(np.sqrt(sum(float(each) ** 2 for each in np.ravel(np.float64(x)))))


# (document's content loss, style loss) of features x with those of the content image c and of the style image s, and
# how the project names them: content distance, style distance, Gram normalization.
EQUATIONS = {
    "Kitov": (
        lambda x, c: norm(np.float64(x) - c) ** 2 / (x.shape[2] * x[..., 0].size),
        lambda x, s: norm(product(x) / x[..., 0].size - product(s) / s[..., 0].size) ** 2 / x.shape[2] ** 2,
        ("mse", "mse", "hw"),
    ),
    "Pandey": (
        lambda x, c: norm(np.float64(x) - c),
        lambda x, s: norm(product(x) - product(s)),
        ("frobenius", "frobenius", "none"),
    ),
    "RestyNet, Gatys": (
        lambda x, c: norm(np.float64(x) - c) ** 2 / 2,
        lambda x, s: norm(product(x) - product(s)) ** 2 / (2 * x.size) ** 2,
        ("half-squares", "squares", "2chw"),
    ),
    "RestyNet, Johnson": (
        lambda x, c: norm(np.float64(x) - c) ** 2 / x.size,
        lambda x, s: norm(product(x) / x.size - product(s) / s.size) ** 2,
        ("mse", "squares", "chw"),
    ),
}


@pytest.mark.parametrize("document", EQUATIONS)
def test_losses_of_a_layer(document):
    content, style, (kept, wanted, normalization) = EQUATIONS[document]
    x, other = features(1), features(2)
    close(methods.DISTANCES[kept](x, other), content(x, other), rtol=1e-5)
    grams = [losses.gram(each, normalization=normalization) for each in (x, other)]
    close(methods.DISTANCES[wanted](*grams), style(x, other), rtol=1e-4)


def extract(params, image):
    """Two layers, of different sizes."""
    x = jnp.tanh((image - 0.5) @ params)
    return {"shallow": x, "deep": (x * jnp.roll(x, 1, axis=0))[::2, ::2]}


@pytest.mark.parametrize("document", EQUATIONS)
def test_the_weighted_sum_over_layers(document):
    """Kitov's w_l, Pandey's w_k and w_l, RestyNet's lambda, and weights of both losses."""
    content, style, (kept, wanted, normalization) = EQUATIONS[document]
    objective, targets = objectives.neural_style(
        extract,
        statistic=lambda x, **more: losses.gram(x, normalization=normalization, **more),
        style_distance=methods.DISTANCES[wanted],
        content_distance=methods.DISTANCES[kept],
    )
    weights = {"content": 3.0, "style": 0.7}
    layers = {"content_layers": WEIGHTS, "style_layers": WEIGHTS}
    data = targets(KERNEL, CONTENT, [objectives.Style(PAINTING)], weights=weights, **layers)
    _, terms = jax.jit(objective)(IMAGE, data)
    x, c, s = (extract(KERNEL, each) for each in (IMAGE, CONTENT, PAINTING))
    of_content = sum(w * content(np.asarray(x[name]), np.asarray(c[name])) for name, w in WEIGHTS.items())
    of_style = sum(w * style(np.asarray(x[name]), np.asarray(s[name])) for name, w in WEIGHTS.items())
    close(terms["content"], 3 * of_content, rtol=1e-4)
    close(terms["style"], 0.7 * of_style, rtol=1e-4)


@pytest.mark.parametrize("power", [2, 1])
def test_kitovs_total_variation_squared_and_absolute(power):
    expected = variation(IMAGE, lambda a, b: abs(a) ** power + abs(b) ** power)
    close(losses.total_variation(IMAGE, power=power), expected, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1, 1.25])
def test_kitovs_third_total_variation(gamma):
    expected = variation(IMAGE, lambda a, b: (a**2 + b**2) ** gamma)
    close(losses.isotropic_variation(IMAGE, gamma=gamma), expected, rtol=1e-3)
    if gamma == 1:
        close(losses.isotropic_variation(IMAGE, gamma=1), losses.total_variation(IMAGE, power=2), rtol=1e-5)


def variation(image, term):
    """Sum over i, j of a term of both differences, as a mean over pixels; there is none past the border."""
    h, w, c = image.shape
    x, total = np.float64(image), 0.0
    for i in range(h):
        for j in range(w):
            for k in range(c):
                down = x[i + 1, j, k] - x[i, j, k] if i + 1 < h else 0.0
                right = x[i, j + 1, k] - x[i, j, k] if j + 1 < w else 0.0
                total += term(down, right)
    return total / (h * w)


def test_charbonnier_of_pandey():
    x, other = features(1), features(2)
    each = [(float(d) ** 2 + 1e-3**2) ** 0.5 for d in np.ravel(np.float64(x) - other)]
    close(losses.charbonnier(x, other), sum(each) / len(each), rtol=1e-5)


def test_laplacian_of_iit_roorkee():
    """Li 2017: the sum of squared differences of Laplacians, after average pooling; here their mean."""

    def laplacian(image):
        x = np.float64(image).reshape(4, 4, 3, 4, 3).mean((1, 3))
        out = np.zeros_like(x)
        for i in range(4):
            for j in range(3):
                near = [(max(i - 1, 0), j), (min(i + 1, 3), j), (i, max(j - 1, 0)), (i, min(j + 1, 2))]
                out[i, j] = 4 * x[i, j] - sum(x[place] for place in near)
        return out

    ours = losses.mse(losses.laplacian(IMAGE), losses.laplacian(CONTENT))
    close(ours, np.mean((laplacian(IMAGE) - laplacian(CONTENT)) ** 2), rtol=1e-4)


@pytest.mark.parametrize("equal", [True, False])
def test_the_frobenius_norm_of_equals_has_a_finite_gradient(equal):
    x, other = features(1), features(1 if equal else 2)
    value, gradient = jax.value_and_grad(losses.frobenius)(jnp.asarray(x), other)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    close(norm(gradient), 0 if equal else 1, atol=1e-5)  # a norm's slope is 1
