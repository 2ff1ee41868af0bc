"""What statistics, distances and priors mean, against numpy in float64."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from nstjax import losses, roots
from nstjax.losses import Gaussian

SEEDS = st.integers(0, 10_000)
few = settings(max_examples=10, deadline=None, derandomize=True)
close = np.testing.assert_allclose
# Compiled once for each shape, which is faster than operation by operation.
wasserstein2, with_root, sqrtm = map(jax.jit, (losses.wasserstein2, losses.with_root, roots.sqrtm))


def randoms(seed=0, *shape):
    """float32 of a shape, [5, 7, 4] by default, with a mean per channel as features have."""
    rng = np.random.default_rng(seed)
    shape = shape or (5, 7, 4)
    return (rng.normal(size=shape) + rng.normal(size=shape[-1:])).astype(np.float32)


def covariance(seed=0, c=4, floor=0.1):
    """Symmetric positive definite [c, c], float32."""
    a = np.random.default_rng(seed).normal(size=(c, c))
    return (a @ a.T / c + floor * np.eye(c)).astype(np.float32)


def oracle_moments(x, mask=None):
    """Mean [C] and covariance [C, C] of feature vectors, in float64."""
    x = np.asarray(x, np.float64)
    weights = np.ones(x.shape[:2]) if mask is None else np.asarray(mask, np.float64)
    return np.average(x.reshape(-1, x.shape[2]), axis=0, weights=weights.ravel()), np.cov(
        x.reshape(-1, x.shape[2]).T, bias=True, aweights=weights.ravel()
    )


def oracle_wasserstein2(mean_a, a, mean_b, b, jitter=1e-4):
    c = len(mean_a)
    ridge = jitter * np.trace(b) / c * np.eye(c)
    a, b = a.astype(np.float64) + ridge, b.astype(np.float64) + ridge
    root = scipy.linalg.sqrtm(b)
    cross = scipy.linalg.sqrtm(root @ a @ root)
    return (np.sum((mean_a - mean_b) ** 2.0) + np.trace(a + b - 2 * np.real(cross))) / c


# The Gram matrix


@pytest.mark.parametrize("name, divisor", [("none", 1), ("hw", 5 * 7), ("chw", 5 * 7 * 4), ("2chw", 2 * 5 * 7 * 4)])
def test_gram_against_einsum(name, divisor):
    x = randoms()
    oracle = np.einsum("hwc,hwd->cd", x.astype(np.float64), x.astype(np.float64)) / divisor
    close(losses.gram(x, normalization=name), oracle, rtol=1e-5, atol=1e-6)


def test_gram_is_johnsons_by_default():
    close(losses.gram(randoms()), losses.gram(randoms(), normalization="chw"), rtol=0)


@few
@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_gram_forgets_position(seed, h, w, c):
    x = randoms(seed, h, w, c)
    shuffled = np.random.default_rng(seed).permutation(x.reshape(-1, c)).reshape(w, h, c)
    close(losses.gram(shuffled), losses.gram(x), rtol=1e-4, atol=1e-5)


@few
@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_gram_is_symmetric_and_positive(seed, h, w, c):
    g = np.asarray(losses.gram(randoms(seed, h, w, c)), np.float64)
    close(g, g.T, rtol=1e-6)
    assert np.linalg.eigvalsh(g).min() > -1e-5 * np.trace(g)


def test_kitovs_gram_does_not_depend_on_the_size():
    x = randoms()
    close(losses.gram(np.tile(x, (3, 2, 1))), losses.gram(x), rtol=1e-5, atol=1e-6)


def test_gatyss_style_loss_is_that_of_restynets_grams():
    """Gatys: sum (G - A)^2 / (4 C^2 (HW)^2); restynet's matrices have the factor within, and mse divides by C^2."""
    x, y, (h, w, c) = randoms(1), randoms(2), (5, 7, 4)
    g, a = (np.asarray(losses.gram(each, normalization="none"), np.float64) for each in (x, y))
    paper = np.sum((g - a) ** 2) / (4 * c**2 * (h * w) ** 2)
    g, a = (losses.gram(each, normalization="2chw") for each in (x, y))
    close(losses.mse(g, a) * c**2, paper, rtol=1e-5)


def test_unknown_normalization():
    with pytest.raises(ValueError, match="'vgg'.*none.*2chw"):
        losses.gram(randoms(), normalization="vgg")


# Masks

STATISTICS = {
    "activations": losses.activations,
    "swag": losses.swag,
    "gram of swag": lambda x, mask=None: losses.gram(losses.swag(x, mask=mask), mask=mask),
    "moments": losses.moments,
    "gaussian": losses.gaussian,
    **{
        f"gram-{name}": lambda x, mask=None, name=name: losses.gram(x, mask=mask, normalization=name)
        for name in losses.GRAM_NORMALIZATIONS
    },
}


@pytest.mark.parametrize("name", STATISTICS)
def test_a_mask_of_ones_is_no_mask(name):
    x = randoms()
    masked, plain = STATISTICS[name](x, mask=np.ones((5, 7), np.float32)), STATISTICS[name](x)
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-5, atol=1e-6), masked, plain)


@pytest.mark.parametrize("name", [name for name in STATISTICS if name not in ("activations", "swag")])
def test_a_mask_cuts_out_its_region(name):
    x, mask = randoms(), np.zeros((5, 7), np.float32)
    mask[1:4, 2:6] = 1
    x[0] = 1e3  # would be seen
    masked, cropped = STATISTICS[name](x, mask=mask), STATISTICS[name](x[1:4, 2:6])
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=1e-5), masked, cropped)


@pytest.mark.parametrize("name", ["moments", "gaussian", "gram-hw"])
def test_only_the_ratios_in_a_mask_matter(name):
    x, mask = randoms(), np.random.default_rng(1).uniform(0, 1, (5, 7)).astype(np.float32)
    a, b = STATISTICS[name](x, mask=mask), STATISTICS[name](x, mask=3 * mask)
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=1e-5), a, b)


def test_a_soft_mask_weights_the_pixels():
    x, mask = randoms(), np.random.default_rng(1).uniform(0, 1, (5, 7)).astype(np.float32)
    close(losses.gram(x, mask=mask), np.einsum("hw,hwc,hwd->cd", mask, x, x) / mask.sum() / 4, rtol=1e-4, atol=1e-5)
    close(
        losses.gram(x, mask=mask, normalization="none"), np.einsum("hw,hwc,hwd->cd", mask, x, x), rtol=1e-4, atol=1e-5
    )
    close(losses.activations(x, mask=mask), np.einsum("hw,hwc->hwc", mask, x), rtol=1e-6)
    mean, cov = oracle_moments(x, mask)
    close(losses.moments(x, mask=mask), [mean, np.sqrt(np.diag(cov))], rtol=1e-4, atol=1e-5)
    close(losses.gaussian(x, mask=mask).covariance, cov, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STATISTICS)
def test_an_empty_mask_gives_finite_statistics_and_gradients(name):
    def total(x):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(STATISTICS[name](x, mask=jnp.zeros((5, 7)))))

    assert all(np.isfinite(each).all() for each in jax.value_and_grad(total)(randoms()))


# Moments and Gaussians


@few
@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.integers(2, 6))
def test_moments_and_gaussian_against_numpy(seed, h, w, c):
    x = randoms(seed, h, w, c)
    mean, cov = oracle_moments(x)
    close(jax.jit(losses.moments)(x), [mean, np.sqrt(np.diag(cov) + 1e-5)], rtol=1e-4, atol=1e-5)
    g = jax.jit(losses.gaussian)(x)
    close(g.mean, mean, rtol=1e-4, atol=1e-5)
    close(g.covariance, cov, rtol=1e-4, atol=1e-5)


@few
@given(SEEDS, st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.floats(0.1, 10))
def test_swag_is_the_softmax_of_everything_times_its_size(seed, h, w, c, temperature):
    x = randoms(seed, h, w, c)
    expected = scipy.special.softmax(np.float64(x) / temperature) * x.size
    close(losses.swag(x, temperature=temperature), expected, rtol=1e-4, atol=1e-6)
    close(losses.swag(x + 3, temperature=temperature), expected, rtol=1e-4, atol=1e-6)


def test_swag_of_a_region_does_not_see_the_rest():
    x, mask = randoms(), np.zeros((5, 7), np.float32)
    mask[1:4, 2:6] = 0.3
    x[0, 0] = 1e4  # its exponential is infinite
    found = losses.swag(x, mask=mask)
    close(found[1:4, 2:6], losses.swag(x[1:4, 2:6]), rtol=1e-4)
    assert not found[0].any()
    soft = np.random.default_rng(1).uniform(0, 1, (5, 7)).astype(np.float32)
    close(np.average(losses.swag(randoms(), mask=soft).mean(2), weights=soft), 1, rtol=1e-5)


def test_swag_raises_the_entropy_of_peaked_features():
    """What it is for: a single large activation no longer makes up the Gram matrix."""
    x = np.abs(randoms(0, 8, 8, 6))
    x[3, 4, 2] = 40
    share = lambda x: float(losses.gram(x).max() / losses.gram(x).sum())  # noqa: E731
    assert share(losses.swag(x, temperature=20.0)) < 0.3 * share(x)


def test_swag_of_large_activations_is_finite():
    x = 1e6 * randoms()
    found, gradient = jax.value_and_grad(lambda x: losses.swag(x)[1, 2].sum())(x)
    assert np.isfinite(found) and np.isfinite(gradient).all()


def test_moments_keep_precision_far_from_zero():
    x = randoms() * 1e-2 + 100
    close(losses.moments(x, epsilon=0.0)[1], x.astype(np.float64).std((0, 1)), rtol=2e-3)


def test_the_deviation_of_a_constant_channel_has_a_finite_gradient():
    assert np.isfinite(jax.grad(lambda x: losses.moments(x).sum())(jnp.ones((4, 4, 2)))).all()


# Distances

DISTANCES = [losses.mse, losses.charbonnier, losses.squares, losses.half_squares, losses.frobenius]


def test_mse_and_charbonnier_against_numpy():
    a, b = randoms(1), randoms(2)
    difference = a.astype(np.float64) - b
    close(losses.mse(a, b), np.mean(difference**2), rtol=1e-5)
    close(losses.charbonnier(a, b, epsilon=0.3), np.mean(np.hypot(difference, 0.3)), rtol=1e-5)


def test_charbonnier_tends_to_the_absolute_difference():
    a, b = randoms(1), randoms(2)
    absolute = np.abs(a.astype(np.float64) - b).mean()
    errors = [float(losses.charbonnier(a, b, epsilon=epsilon)) - absolute for epsilon in (1.0, 0.1, 0.01, 1e-6)]
    assert errors[0] > errors[1] > errors[2] > 0
    assert abs(errors[3]) < 1e-5


def test_charbonnier_of_equals_is_epsilon_with_a_finite_gradient():
    value, grad = jax.value_and_grad(losses.charbonnier)(jnp.ones(5), jnp.ones(5))
    close(value, 1e-3, rtol=1e-5)
    close(grad, 0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_of_trees_sum_over_leaves(distance):
    a, b = (Gaussian(randoms(seed, 4), covariance(seed)) for seed in (1, 2))
    leaves = distance(a.mean, b.mean) + distance(a.covariance, b.covariance)
    close(distance(a, b), leaves, rtol=1e-6)
    close(distance(tuple(a[:2]), tuple(b[:2])), leaves, rtol=1e-6)
    assert abs(float(leaves - distance(a.mean, b.mean))) > 1e-3


# Wasserstein


@few
@given(SEEDS, st.sampled_from([1, 3, 8]))
def test_sqrtm_against_scipy(seed, c):
    a = covariance(seed, c)
    root, inverse = sqrtm(a)
    close(root, np.real(scipy.linalg.sqrtm(a.astype(np.float64))), rtol=1e-3, atol=1e-3)
    close(root @ a @ inverse, a, rtol=1e-2, atol=1e-2)
    close(root @ inverse, np.eye(c), atol=1e-2)


def test_sqrtm_of_a_wide_spectrum():
    """Eigenvalues from 1 to 1e-4, as covariances of features have."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))
    values = np.geomspace(1, 1e-4, 16)
    root, _ = sqrtm((q * values @ q.T).astype(np.float32))
    close(root, q * np.sqrt(values) @ q.T, atol=1e-3)


def test_sqrtm_of_zero_is_finite():
    assert all(np.isfinite(each).all() for each in sqrtm(jnp.zeros((4, 4))))


@few
@given(SEEDS, st.sampled_from([1, 3, 8]))
def test_wasserstein2_against_scipy(seed, c):
    a, b = (Gaussian(randoms(seed + i, c), covariance(seed + i, c)) for i in (0, 1))
    value = float(wasserstein2(a, b))
    close(value, oracle_wasserstein2(*a[:2], *b[:2]), rtol=1e-3, atol=1e-4)
    assert value > 0
    close(wasserstein2(b, a), value, rtol=1e-2, atol=1e-3)
    close(wasserstein2(a, with_root(b)), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_wasserstein2_of_equals_is_zero(seed):
    a = Gaussian(randoms(seed, 8), covariance(seed, 8))
    assert abs(float(wasserstein2(a, a))) < 1e-4


def degenerate():
    """Features [12, 10, 6] that hardly vary, or in few directions, as networks make them of one colour."""
    varied = 40 * np.abs(randoms(1, 12, 10, 6))
    one = np.broadcast_to(np.float32([300, 0, 20, 500, 1, 80]), varied.shape)
    return {
        "varied": varied,
        "one colour": one,
        "another": 0.1 * one[..., ::-1],
        "zeros": np.zeros_like(varied),
        "a level of noise": one + 0.3 * randoms(2, 12, 10, 6),
        "one spot": one + 100 * (np.indices((12, 10, 6)).sum(0) == 5),
        "two tones": np.where(np.indices((12, 10, 6))[0] > 5, one, 0.5 * one),
        "one pixel": varied[:1, :1],
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("style", ["varied", "one colour", "zeros", "one pixel"])
def test_wasserstein2_of_degenerate_features_is_finite_and_can_be_lowered(style, masked):
    origin = jnp.asarray(degenerate()["varied"].mean((0, 1)), jnp.float32)
    spots = lambda x: jnp.zeros(x.shape[:2]).at[0, 0].set(1).at[-1, -1].set(0.5) if masked else None  # noqa: E731
    measured = jax.jit(lambda x: losses.gaussian(losses.sums(x, mask=spots(x), origin=origin)))
    target = with_root(measured(jnp.asarray(degenerate()[style], jnp.float32)))
    evaluate = jax.jit(jax.value_and_grad(lambda x: losses.wasserstein2(measured(x), target)))
    for name, x in degenerate().items():
        x = jnp.asarray(x, jnp.float32)
        scale = float((target.mean**2).mean() + (measured(x).mean ** 2).mean() + (origin**2).mean())
        loss, grad = evaluate(x)
        assert np.isfinite(loss) and np.isfinite(grad).all(), name
        assert loss >= -1e-5 * scale
        if loss > 1e-2 * scale:  # two different ones
            lower = x - 0.1 * float(loss) / float((grad**2).sum()) * grad
            assert evaluate(lower)[0] < loss, name
        if style == name:
            assert loss <= 1e-3 * scale, name


def test_wasserstein2_of_two_colours_is_their_difference():
    one, another = (jnp.asarray(degenerate()[name], jnp.float32) for name in ("one colour", "another"))
    origin = jnp.asarray(degenerate()["varied"].mean((0, 1)), jnp.float32)
    a, b = (jax.jit(lambda x: losses.gaussian(losses.sums(x, origin=origin)))(x) for x in (one, another))
    expected = np.mean((np.asarray(one, np.float64)[0, 0] - np.asarray(another)[0, 0]) ** 2)
    assert float(wasserstein2(a, b)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mask", [None, np.eye(256, dtype=np.float32)], ids=["whole", "diagonal"])
def test_the_variance_of_one_colour_is_not_negative(mask):
    """Of a whole image: thousands of equal products must not each be rounded in the same direction."""
    x = jnp.broadcast_to(jnp.asarray(np.abs(randoms(3, 16)) * 100), (256, 256, 16))
    for origin in (jnp.zeros(16), x[0, 0] + 1, 3 * x[0, 0]):
        g = losses.gaussian(losses.sums(x, mask=mask, origin=origin))
        distance = float(((x[0, 0] - origin) ** 2).max())
        assert np.linalg.eigvalsh(np.asarray(g.covariance, np.float64)).min() > -4e-6 * distance
        np.testing.assert_allclose(g.mean, x[0, 0], rtol=1e-5)


def test_sums_about_an_origin_have_the_gradient_of_those_about_zero():
    x, origin = jnp.asarray(randoms(1, 5, 4, 3)), jnp.asarray(randoms(2, 3))
    mask = jnp.abs(jnp.asarray(randoms(4, 5, 4)))
    ours = jax.grad(lambda x: jnp.sum(jnp.sin(losses.gram(losses.sums(x, mask=mask, origin=origin)))))(x)
    plain = jax.grad(lambda x: jnp.sum(jnp.sin(losses.gram(x, mask=mask))))(x)
    np.testing.assert_allclose(ours, plain, atol=1e-4)


@few
@given(seed=SEEDS, rank=st.integers(0, 5), negative=st.sampled_from([0.0, 1e-7, 1e-5, 1e-3, 0.3]))
def test_sqrtm_of_rank_deficient_and_indefinite_matrices_is_finite(seed, rank, negative):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    values = np.r_[rng.uniform(0.5, 1, rank), np.full(6 - rank, -negative)] * 10.0 ** rng.integers(-12, 12)
    a = ((basis * values) @ basis.T).astype(np.float32)
    root, inverse = sqrtm(a)
    assert np.isfinite(root).all() and np.isfinite(inverse).all()
    if rank and negative <= 1e-5:
        kept = (basis * np.sqrt(np.maximum(values, 0))) @ basis.T
        np.testing.assert_allclose(root, kept, atol=0.02 * np.abs(kept).max())


def test_wasserstein2_of_few_pixels():
    """Fewer positions than channels: singular covariances, where the jitter is what makes a root."""
    a, b = (losses.gaussian(randoms(seed, 2, 3, 12)) for seed in (1, 2))
    value, grad = jax.jit(jax.value_and_grad(lambda x: losses.wasserstein2(losses.gaussian(x), b)))(
        randoms(1, 2, 3, 12)
    )
    close(value, oracle_wasserstein2(*map(np.asarray, (*a[:2], *b[:2]))), rtol=1e-2)
    assert np.isfinite(grad).all()


@few
@given(SEEDS, st.sampled_from([1, 3, 8]))
def test_wasserstein2_of_diagonal_gaussians_in_closed_form(seed, c):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.3, 3, (2, c))
    means = rng.normal(size=(2, c))
    closed = np.mean((means[0] - means[1]) ** 2 + (a - b) ** 2)
    args = (
        Gaussian(m.astype(np.float32), np.diag(s**2).astype(np.float32)) for m, s in zip(means, (a, b), strict=True)
    )
    close(wasserstein2(*args, jitter=1e-7), closed, rtol=1e-3, atol=1e-4)


def test_wasserstein2_of_shifted_features_is_the_shift():
    x = randoms()
    shifted = wasserstein2(losses.gaussian(x + np.float32(2)), losses.gaussian(x))
    close(shifted, 4, rtol=1e-4)


# Priors


def oracle_total_variation(image, power):
    image = image.astype(np.float64)
    total = sum(np.sum(np.abs(np.diff(image, axis=axis)) ** power) for axis in (0, 1))
    return total / (image.shape[0] * image.shape[1])


@few
@given(SEEDS, st.sampled_from([(1, 1), (1, 4), (7, 1), (6, 9)]), st.sampled_from([0.5, 1, 1.25, 1.5, 2, 2.5, 3]))
def test_total_variation_against_numpy(seed, shape, power):
    image = randoms(seed, *shape, 3)
    close(
        jax.jit(losses.total_variation, static_argnames="power")(image, power=power),
        oracle_total_variation(image, power),
        rtol=1e-4,
        atol=1e-6,
    )


def test_total_variation_is_squared_by_default():
    close(losses.total_variation(randoms()), oracle_total_variation(randoms(), 2), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1, 1.0, 1.5])
def test_isotropic_variation_of_a_flat_image(gamma):
    value, grad = jax.value_and_grad(lambda x: losses.isotropic_variation(x, gamma=gamma))(jnp.full((6, 5, 3), 0.3))
    assert 0 <= value < 1e-3
    close(grad, 0, atol=1e-9)


@pytest.mark.parametrize("power", [1, 1.0, 1.5, 2, 2.0])
def test_total_variation_of_a_flat_picture(power):
    value, grad = jax.value_and_grad(lambda x: losses.total_variation(x, power=power))(jnp.full((6, 5, 3), 0.3))
    assert 0 <= value < 1e-7
    close(grad, 0, atol=1e-9)


def oracle_laplacian(image, pool):
    h, w, c = (n // s for n, s in zip(image.shape, (pool, pool, 1), strict=True))
    means = np.zeros((h, w, c))
    for i in range(h):
        for j in range(w):
            means[i, j] = image[i * pool : (i + 1) * pool, j * pool : (j + 1) * pool].astype(np.float64).mean((0, 1))
    out = np.zeros_like(means)
    for i in range(h):
        for j in range(w):
            for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                out[i, j] += means[i, j] - means[np.clip(i + di, 0, h - 1), np.clip(j + dj, 0, w - 1)]
    return out


@few
@given(SEEDS, st.integers(4, 17), st.integers(4, 17), st.integers(1, 4))
def test_laplacian_against_loops(seed, h, w, pool):
    image = randoms(seed, h, w, 3)
    close(
        jax.jit(losses.laplacian, static_argnames="pool")(image, pool=pool),
        oracle_laplacian(image, pool),
        rtol=1e-4,
        atol=1e-5,
    )


def test_laplacian_of_a_ramp_is_zero_inside_and_of_an_edge_is_not():
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None], (24, 24, 1)) / 24
    found = np.asarray(losses.laplacian(ramp + ramp.swapaxes(0, 1)))
    close(found[1:-1, 1:-1], 0, atol=1e-6)
    assert np.abs(losses.laplacian(np.round(ramp))).max() > 0.5


@pytest.mark.parametrize("shape", [(3, 8, 3), (8, 3, 3)])
def test_laplacian_of_a_tiny_picture(shape):
    with pytest.raises(ValueError, match=f"{shape[0]}x{shape[1]} pixels"):
        losses.laplacian(np.zeros(shape, np.float32))


# Sums over layers

FEATURES = {"relu1_1": randoms(1), "relu2_1": randoms(2, 3, 4, 6), "relu3_1": randoms(3, 2, 2, 5)}
OTHERS = {"relu1_1": randoms(4), "relu2_1": randoms(5, 3, 4, 6), "relu3_1": randoms(6, 2, 2, 5)}
WEIGHTS = {"relu1_1": 0.5, "relu2_1": 3.0, "relu3_1": 0.25}


def test_layerwise_is_a_weighted_sum():
    targets = {name: losses.gram(x) for name, x in OTHERS.items()}
    each = {name: losses.mse(losses.gram(FEATURES[name]), targets[name]) for name in targets}
    close(losses.layerwise(FEATURES, targets), sum(each.values()), rtol=1e-5)
    weighted = sum(WEIGHTS[name] * each[name] for name in each)
    close(losses.layerwise(FEATURES, targets, weights=WEIGHTS), weighted, rtol=1e-5)
    close(losses.style(FEATURES, targets, weights=WEIGHTS), weighted, rtol=1e-5)
    del targets["relu2_1"]  # layers without a target do not count
    close(losses.layerwise(FEATURES, targets), each["relu1_1"] + each["relu3_1"], rtol=1e-5)


def test_layerwise_with_masks():
    masks = {name: np.zeros(x.shape[:2], np.float32) for name, x in FEATURES.items()}
    for mask in masks.values():
        mask[1:, :-1] = 1
    targets = {name: losses.moments(x) for name, x in OTHERS.items()}
    cropped = {name: x[1:, :-1] for name, x in FEATURES.items()}
    for loss in (losses.layerwise, losses.style):
        masked = loss(FEATURES, targets, statistic=losses.moments, masks=masks)
        close(masked, loss(cropped, targets, statistic=losses.moments), rtol=1e-4)


def test_layerwise_with_gaussians():
    targets = {name: losses.with_root(losses.gaussian(x)) for name, x in OTHERS.items()}
    total = losses.style(FEATURES, targets, statistic=losses.gaussian, distance=losses.wasserstein2)
    oracle = 0
    for name, x in FEATURES.items():
        oracle += oracle_wasserstein2(*oracle_moments(x), *oracle_moments(OTHERS[name]))
    close(total, oracle, rtol=1e-2)


def test_content_is_the_distance_of_features():
    each = {name: np.mean((FEATURES[name].astype(np.float64) - x) ** 2) for name, x in OTHERS.items()}
    close(losses.content(FEATURES, OTHERS), sum(each.values()), rtol=1e-5)
    close(losses.content(FEATURES, OTHERS, weights=WEIGHTS), sum(WEIGHTS[k] * each[k] for k in each), rtol=1e-5)
    close(
        losses.content(FEATURES, OTHERS, distance=losses.charbonnier),
        sum(losses.charbonnier(FEATURES[k], OTHERS[k]) for k in each),
        rtol=1e-5,
    )


@pytest.mark.parametrize("loss", [losses.layerwise, losses.content, losses.style])
def test_unknown_layer(loss):
    with pytest.raises(ValueError, match="'relu9_9'.*relu1_1, relu2_1"):
        loss(FEATURES, {"relu9_9": FEATURES["relu1_1"]})


# Sums over parts of a picture


@pytest.mark.parametrize("origin", [None, 0.3, 5.0], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("statistic", [losses.gram, losses.moments, losses.gaussian])
def test_statistics_of_the_parts_sums_are_the_wholes(statistic, masked, origin):
    x = randoms()
    mask = np.random.default_rng(5).uniform(size=x.shape[:2]).astype(np.float32) if masked else None
    origin = origin and jnp.full(x.shape[2], origin)
    parts = [
        losses.sums(x[at], mask=mask if mask is None else mask[at], origin=origin) for at in (np.s_[:2], np.s_[2:])
    ]
    whole = jax.tree.map(jnp.add, *(part._replace(origin=None) for part in parts))._replace(origin=origin)
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=1e-5), statistic(whole), statistic(x, mask=mask))


def test_an_origin_near_the_mean_keeps_covariances_exact():
    x = (randoms() + 1000).astype(np.float32)
    _, covariance = oracle_moments(x)
    sums = losses.sums(x, origin=jnp.full(x.shape[2], 1000.0))
    close(losses.gaussian(sums).covariance, covariance, rtol=1e-3, atol=1e-4)


# Under jit, grad and vmap

FILES = (losses.__name__, roots.__name__)
MASK = np.random.default_rng(5).uniform(size=(5, 7))
OTHER, B = randoms(9), Gaussian(randoms(9, 4), covariance(9))
CASES = {
    "activations": losses.activations,
    "sums": lambda x: losses.sums(x, mask=MASK, origin=jnp.arange(4.0))._replace(origin=None),
    "gram": losses.gram,
    "moments": losses.moments,
    "gaussian": losses.gaussian,
    "swag": lambda x: losses.swag(x, mask=MASK, temperature=2.0),
    "mse": lambda x: losses.mse(x, OTHER),
    "charbonnier": lambda x: losses.charbonnier(x, OTHER),
    "squares": lambda x: losses.squares(x, OTHER),
    "half_squares": lambda x: losses.half_squares(x, OTHER),
    "frobenius": lambda x: losses.frobenius(x, OTHER),
    "root": lambda x: roots.root(jnp.sum(x**2)),
    "sqrtm-trace": lambda x: roots.trace_sqrtm(losses.gaussian(x).covariance),
    "wasserstein2": lambda x: losses.wasserstein2(losses.gaussian(x), B),
    "with_root": lambda x: losses.with_root(losses.gaussian(x)),
    "sqrtm": lambda x: roots.sqrtm(losses.gaussian(x).covariance),
    "total_variation": losses.total_variation,
    "isotropic_variation": losses.isotropic_variation,
    "isotropic_variation-1": lambda x: losses.isotropic_variation(x, gamma=1),
    "laplacian": lambda x: losses.laplacian(x, pool=2),
    "layerwise": lambda x: losses.layerwise({"a": x}, {"a": losses.gram(OTHER)}),
    "content": lambda x: losses.content({"a": x}, {"a": OTHER}),
    "style": lambda x: losses.style({"a": x}, {"a": losses.gram(OTHER)}, weights={"a": 2.0}),
    "lpips": lambda x: losses.lpips({"a": x}, {"a": OTHER}, heads={"a": jnp.arange(4.0)}),
    "total_variation-1.5": lambda x: losses.total_variation(x, power=1.5),
    "wasserstein2-second": lambda x: losses.wasserstein2(B, losses.gaussian(x)),
    "wasserstein2-rooted": lambda x: losses.wasserstein2(losses.gaussian(x), losses.with_root(B)),
}


def test_every_public_function_has_a_case():
    functions = {
        name
        for name, each in (vars(losses) | vars(roots)).items()
        if inspect.isfunction(each) and each.__module__ in FILES and not name.startswith("_")
    }
    assert functions - {"check_layers"} == {name for name in CASES if "-" not in name}


@pytest.mark.parametrize("name", CASES)
def test_under_jit_and_vmap(name):
    f = CASES[name]
    x = np.stack([randoms(seed) for seed in range(3)])
    expected = [f(each) for each in x]
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=1e-5), jax.jit(f)(x[0]), expected[0])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4, atol=1e-5), jax.jit(jax.vmap(f))(x), stacked)


@pytest.mark.parametrize("name", CASES)
def test_gradient_against_finite_differences(name):
    """Along a random direction, in float64; with random weights for functions of many values."""
    # jax.experimental has it before jax 0.8.
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        rng = np.random.default_rng(0)
        x, direction = randoms().astype(np.float64), rng.normal(size=(5, 7, 4))

        def f(x):
            leaves = jax.tree.leaves(CASES[name](x))
            weights = [np.random.default_rng(i).normal(size=leaf.shape) for i, leaf in enumerate(leaves)]
            return sum(jnp.sum(weight * leaf) for weight, leaf in zip(weights, leaves, strict=True))

        along = jnp.vdot(jax.jit(jax.grad(f))(x), direction)
        f = jax.jit(f)
        step = 1e-4
        close(along, (f(x + step * direction) - f(x - step * direction)) / (2 * step), rtol=2e-4, atol=1e-7)
