"""The matting Laplacian against the sparse matrix of Levin 2008 in float64; the guided filter against its windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from commands import smooth

from nstjax import matting

RNG = np.random.default_rng(0)
STEP = np.repeat((RNG.random((14, 17, 1)) > 0.5).astype(np.float32), 3, -1)  # black and white: collinear colors
GUIDES = {"smooth": smooth(1, (15, 19)), "noise": RNG.random((14, 17, 3)).astype(np.float32), "step": STEP}
GUIDES["flat"] = np.full((9, 10, 3), 0.3, np.float32)


def levin(guide, epsilon):
    """M = D - W as a sparse matrix, window by window (Levin 2008, eq. 12)."""
    h, w, _ = guide.shape
    index, entries = np.arange(h * w).reshape(h, w), []
    for y in range(1, h - 1):
        for x in range(1, w - 1):
            window = np.s_[y - 1 : y + 2, x - 1 : x + 2]
            pixels, colors = index[window].ravel(), guide[window].reshape(9, 3).astype(np.float64)
            colors = colors - colors.mean(0)
            covariance = colors.T @ colors / 9 + epsilon / 9 * np.eye(3)
            weights = (1 + colors @ np.linalg.solve(covariance, colors.T)) / 9
            entries.append((np.repeat(pixels, 9), np.tile(pixels, 9), (np.eye(9) - weights).ravel()))
    rows, columns, values = map(np.concatenate, zip(*entries, strict=True))
    return scipy.sparse.csr_matrix((values, (rows, columns)), (h * w, h * w))


def flat(x):
    return np.asarray(x, np.float64).reshape(-1, x.shape[-1])


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("epsilon", [1e-7, 1e-3])
def test_product_energy_and_gradient_equal_the_matrix(name, epsilon):
    guide = GUIDES[name]
    p = RNG.random((*guide.shape[:2], 2)).astype(np.float32)
    matrix = levin(guide, epsilon)
    wanted = matrix @ flat(p)
    np.testing.assert_allclose(
        flat(matting.product(guide, p, epsilon=epsilon)), wanted, atol=1e-5 * np.abs(wanted).max()
    )
    energy, gradient = jax.jit(jax.value_and_grad(lambda p: 3 * matting.energy(guide, p, epsilon=epsilon)))(p)
    np.testing.assert_allclose(energy, 3 * (flat(p) * wanted).sum(), rtol=1e-5)
    np.testing.assert_allclose(flat(gradient), 6 * wanted, atol=6e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_strips_change_nothing(rows):
    guide, p = GUIDES["smooth"], smooth(2, (15, 19))
    np.testing.assert_allclose(matting.product(guide, p, rows=rows), matting.product(guide, p), atol=1e-6)
    np.testing.assert_allclose(matting.energy(guide, p, rows=rows), matting.energy(guide, p), rtol=1e-5)


def test_strips_bound_the_memory():
    def temporary(height, rows):
        like = jax.ShapeDtypeStruct((height, 64, 3), jnp.float32)
        compiled = jax.jit(lambda guide, p: matting.energy(guide, p, rows=rows)).lower(like, like).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    image = 64 * 3 * 4  # bytes of a row
    assert temporary(1024, 8) - temporary(256, 8) < 6 * 768 * image  # guide and p, as planes and back
    assert temporary(1024, 1024) > 2 * temporary(1024, 8)


def test_the_energy_has_the_gradient_of_its_finite_differences():
    guide, p, direction = GUIDES["noise"], *(RNG.random((2, 14, 17, 3)).astype(np.float32))
    ahead, behind = (matting.energy(guide, p + step * direction) for step in (0.1, -0.1))
    gradient = jax.grad(matting.energy, argnums=1)(guide, p)
    np.testing.assert_allclose((gradient * direction).sum(), (ahead - behind) / 0.2, rtol=1e-3)  # exact for a quadratic


def test_an_affine_function_of_the_colors_costs_nothing_and_noise_does():
    guide = GUIDES["noise"]
    p = guide @ RNG.normal(size=(3, 3)).astype(np.float32) + 0.2
    noise = p + RNG.normal(0, 0.01, p.shape).astype(np.float32)
    assert matting.energy(guide, p) < 1e-3 * matting.energy(guide, noise)


def test_vmap_equals_one_after_another():
    guides, p = np.stack([smooth(1, (9, 10)), smooth(2, (9, 10))]), np.stack([smooth(3, (9, 10)), smooth(4, (9, 10))])
    together = jax.vmap(jax.value_and_grad(matting.energy, argnums=1))(guides, p)
    apart = [jax.value_and_grad(matting.energy, argnums=1)(*each) for each in zip(guides, p, strict=True)]
    for i, each in enumerate(apart):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), together, each)


def test_the_degree_is_the_number_of_windows():
    guide = GUIDES["smooth"]
    weights = scipy.sparse.diags(matting.degree(guide.shape).ravel()) - levin(guide, 1e-7)
    np.testing.assert_allclose(weights.sum(1).ravel(), matting.degree(guide.shape)[..., 0].ravel()[None], rtol=1e-6)


@pytest.mark.parametrize("attraction", [0.0, 0.99])
def test_smoothing_solves_the_linear_system(attraction):
    guide, p = GUIDES["smooth"], GUIDES["smooth"][::-1, ::-1].copy()
    root = scipy.sparse.diags(matting.degree(guide.shape).ravel().astype(float) ** -0.5)
    identity = scipy.sparse.identity(15 * 19)
    affinity = identity - root @ levin(guide, 1e-4) @ root  # S
    wanted = scipy.sparse.linalg.spsolve((identity - attraction * affinity).tocsc(), (1 - attraction) * flat(p))
    smoothed = matting.smoothed(guide, p, attraction=attraction, epsilon=1e-4, tolerance=1e-6)
    np.testing.assert_allclose(flat(smoothed), wanted, atol=2e-4)


def test_the_guided_filter_equals_ridge_regressions_of_the_windows():
    guide, p, radius, epsilon = smooth(1, (12, 14)), smooth(2, (12, 14))[..., :2], 2, 1e-3
    windows = [[np.s_[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] for x in range(14)] for y in range(12)]
    fits = np.zeros((12, 14, 4, 2))
    for y in range(12):
        for x in range(14):
            colors, values = guide[windows[y][x]].reshape(-1, 3), p[windows[y][x]].reshape(-1, 2)
            design = np.c_[colors, np.ones(len(colors))].astype(np.float64)
            ridge = len(colors) * epsilon * np.diag([1, 1, 1, 0])
            fits[y, x] = np.linalg.solve(design.T @ design + ridge, design.T @ values)
    means = np.array([[fits[windows[y][x]].mean((0, 1)) for x in range(14)] for y in range(12)])
    wanted = np.einsum("hwi,hwic->hwc", np.concatenate([guide, np.ones((12, 14, 1))], -1), means)
    np.testing.assert_allclose(matting.guided(guide, p, radius=radius, epsilon=epsilon), wanted, atol=1e-5)


def test_pixels_without_weight_have_no_influence():
    guide, p = smooth(1, (12, 14)), smooth(2, (12, 14))
    mask = np.zeros((12, 14), np.float32)
    mask[:, :7] = 1
    changed = np.where(mask[..., None] > 0, p, 0.5).astype(np.float32)
    one, other = (matting.affine(guide, x, radius=2, weights=mask) for x in (p, changed))
    np.testing.assert_allclose(one.slope, other.slope, atol=1e-5)
    alone = matting.affine(guide[:, :7], p[:, :7], radius=2)
    np.testing.assert_allclose(one.slope[:, :7], alone.slope, atol=1e-3)


def test_the_guided_filter_keeps_what_is_affine_in_the_guide():
    guide = smooth(1, (20, 24))
    p = guide @ np.array([[0.5, 0, 0.2], [0, 0.3, 0], [0.1, 0, 0.9]], np.float32) + 0.1
    np.testing.assert_allclose(matting.guided(guide, p, radius=4, epsilon=1e-8), p, atol=2e-3)


def test_what_has_no_window_is_rejected():
    with pytest.raises(ValueError, match="3x3"):
        matting.product(np.zeros((2, 5, 3), np.float32), np.zeros((2, 5, 1), np.float32))
