"""Patch-wise style against numpy, patch by patch."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nstjax import losses, objectives, patches

few = settings(max_examples=4, deadline=None, derandomize=True)
# Compiled whole, which is faster than operation by operation.
nearest = jax.jit(patches.nearest, static_argnames=("size", "limit"))
matches = jax.jit(patches.matches, static_argnames=("size", "limit"))
patchwise = jax.jit(patches.patchwise, static_argnames=("statistic", "grid"))
SEEDS, SIDES = st.integers(0, 10_000), st.integers(3, 9)


def randoms(seed=0, *shape):
    return np.random.default_rng(seed).normal(size=shape or (7, 8, 4)).astype(np.float32)


# Statistics by patches


@few
@given(SEEDS, SIDES, SIDES, st.integers(1, 3))
def test_patchwise_is_the_statistic_of_each_cell(seed, h, w, grid):
    x = randoms(seed, h, w, 3)
    found = patchwise(x, grid=grid)
    rows, columns = -(-h // grid), -(-w // grid)
    starts = [[i * (n - m) // max(grid - 1, 1) for i in range(grid)] for n, m in ((h, rows), (w, columns))]
    cells = [x[i : i + rows, j : j + columns].astype(np.float64) for i, j in itertools.product(*starts)]
    expected = [np.einsum("hwc,hwd->cd", cell, cell) / cell.size for cell in cells]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@few
@given(SEEDS, SIDES, SIDES, st.integers(1, 3))
def test_cells_cover_everything(seed, h, w, grid):
    gradient = jax.jit(jax.grad(lambda x: patchwise(x, grid=grid).sum()))(jnp.abs(randoms(seed, h, w, 2)) + 1)
    assert (gradient > 0).all()


def test_mean_of_the_cells_is_the_whole():
    x = randoms(0, 8, 12, 3)
    np.testing.assert_allclose(patchwise(x, grid=4).mean(0), losses.gram(x), rtol=1e-4, atol=1e-5)


def test_patchwise_by_any_statistic_and_mask():
    x, mask = randoms(0, 8, 8, 3), np.random.default_rng(1).uniform(size=(8, 8)).astype(np.float32)
    mean, _ = np.swapaxes(patchwise(x, statistic=losses.moments, grid=2, mask=mask), 0, 1)
    np.testing.assert_allclose(
        mean[3], np.average(x[4:, 4:], axis=(0, 1), weights=mask[4:, 4:].repeat(3).reshape(4, 4, 3)), rtol=1e-4
    )
    gaussians = patchwise(x, statistic=losses.gaussian, grid=2)
    assert gaussians.mean.shape == (4, 3) and gaussians.covariance.shape == (4, 3, 3)


def test_the_same_place_or_everywhere():
    """Halves exchanged: the whole's statistic does not mind, cells at the same place do, cells of a whole less so."""
    painting = np.concatenate([randoms(0, 8, 4, 3), 3 * randoms(1, 8, 4, 3)], axis=1)
    exchanged = np.roll(painting, 4, axis=1)
    loss = partial(losses.style, {"a": exchanged}, statistic=partial(patches.patchwise, grid=2))
    assert float(losses.style({"a": exchanged}, {"a": losses.gram(painting)})) < 1e-9
    placed, anywhere = loss({"a": patchwise(painting, grid=2)}), loss({"a": losses.gram(painting)})
    assert float(placed) > 2 * float(anywhere) > 0.1


def test_cells_need_a_pixel():
    with pytest.raises(ValueError, match="3x9 cannot be cut into 4x4"):
        patchwise(randoms(0, 3, 9, 2))


# The nearest patch


def oracle(x, target, size):
    """Match [H', W', 2] and loss, by all pairs of patches in float64."""

    def cut(x):
        rows, columns = (n - size + 1 for n in x.shape[:2])
        return np.stack([x[i : i + size, j : j + size].ravel() for i in range(rows) for j in range(columns)]), columns

    (a, _), (b, columns) = cut(x.astype(np.float64)), cut(target.astype(np.float64))
    similar = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    best = similar.argmax(1)
    return best // columns, best % columns, ((a - b[best]) ** 2).mean()


@few
@given(SEEDS, SIDES, SIDES, SIDES, SIDES, st.integers(1, 3), st.integers(1, 3000))
def test_nearest_against_all_pairs(seed, h, w, target_h, target_w, size, limit):
    """Whatever the limit of memory, and so the rows at once."""
    x, target = randoms(seed, h, w, 3), randoms(seed + 1, target_h, target_w, 3)
    rows, columns, loss = oracle(x, target, size)
    found = matches(x, target, size=size, limit=limit)
    assert (found[0].ravel() == rows).all() and (found[1].ravel() == columns).all()
    assert float(nearest(x, target, size=size, limit=limit)) == pytest.approx(loss, rel=1e-4)


def test_the_limit_bounds_memory():
    x = jnp.zeros((66, 66, 2))

    def needed(limit):
        compiled = jax.jit(partial(patches.nearest, limit=limit)).lower(x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 4 * 64 * 64 * 64 * 64
    assert needed(whole // 16) < whole / 2 < needed(2**40)


def test_a_part_of_the_painting_costs_nothing():
    painting = randoms(0, 12, 12, 4)
    assert float(nearest(painting[2:9, 3:11], painting)) == 0
    assert float(nearest(2 * painting[2:9, 3:11], painting)) > 0.1  # the same match, not the same patch


def test_empty_patches_are_never_a_match():
    painting = np.concatenate([np.zeros((6, 3, 2)), np.abs(randoms(0, 6, 4, 2))], axis=1).astype(np.float32)
    found = matches(np.abs(randoms(1, 5, 5, 2)), painting)
    assert (found[1] > 0).all()


def test_the_gradient_is_that_of_the_chosen_matches():
    x, target = randoms(0, 6, 7, 3), randoms(1, 8, 5, 3)
    rows, columns = map(np.asarray, matches(x, target))
    h, w = rows.shape

    def chosen(x):
        cells = [
            ((x[i : i + 3, j : j + 3] - target[rows[i, j] :, columns[i, j] :][:3, :3]) ** 2).mean()
            for i in range(h)
            for j in range(w)
        ]
        return sum(cells) / (h * w)

    np.testing.assert_allclose(jax.grad(nearest)(x, target), jax.jit(jax.grad(chosen))(x), rtol=1e-4, atol=1e-6)


def test_descent_makes_patches_of_the_painting():
    target = randoms(1, 10, 10, 3)
    step = jax.jit(lambda x: x - 50 * jax.grad(nearest)(x, target))
    x = start = randoms(0, 8, 8, 3)
    for _ in range(200):
        x = step(x)
    assert float(nearest(x, target)) < 0.4 * float(nearest(start, target))


def test_nearest_under_vmap():
    x, target = randoms(0, 3, 6, 7, 2), randoms(1, 5, 5, 2)
    both = jax.jit(jax.vmap(jax.value_and_grad(patches.nearest), (0, None)))(x, target)
    for i, value, gradient in zip(range(3), *both, strict=True):
        assert float(value) == pytest.approx(float(nearest(x[i], target)), rel=1e-5)
        np.testing.assert_allclose(gradient, jax.grad(nearest)(x[i], target), rtol=1e-4, atol=1e-6)


def test_patches_larger_than_the_features():
    with pytest.raises(ValueError, match="smaller than patches of 3x3"):
        nearest(randoms(0, 2, 5, 4), randoms())


# Put together


def features(params, image):
    x = jnp.tanh((image - 0.5) @ params)
    return {"shallow": x, "deep": (x * jnp.roll(x, 1, axis=0))[::2, ::2]}


KERNEL = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
TERMS = {
    "content": lambda x, image, target: losses.content(x, target),
    "patchwise": lambda x, image, target: losses.style(x, target, statistic=partial(patches.patchwise, grid=2)),
    "nearest": lambda x, image, target: losses.layerwise(
        x, target, statistic=losses.activations, distance=patches.nearest
    ),
    "perceptual": lambda x, image, target: losses.lpips(x, target),
    "reconstruction": lambda x, image, target: losses.mse(image, target),
    "tv": lambda x, image, target: losses.total_variation(image),
}


def problem():
    image, content, painting = (np.abs(randoms(seed, 16, 12, 3)) % 1 for seed in (0, 1, 2))
    wanted, styled = features(KERNEL, content), features(KERNEL, painting)
    targets = {
        "content": {"deep": wanted["deep"]},
        "patchwise": {name: patchwise(x, grid=2) for name, x in styled.items()},
        "nearest": {"deep": styled["deep"]},
        "perceptual": wanted,
        "reconstruction": content,
    }
    return image, {"params": KERNEL, "weights": dict.fromkeys(TERMS, 2.0), "targets": targets}


def test_combined_adds_up_the_terms_with_their_weights():
    image, data = problem()
    data["weights"] = {name: float(i) for i, name in enumerate(TERMS, 1)}
    loss, terms = jax.jit(objectives.combined(features, TERMS))(image, data)
    x = features(KERNEL, image)
    for i, (name, term) in enumerate(TERMS.items(), 1):
        assert float(terms[name]) == pytest.approx(i * float(term(x, image, data["targets"].get(name))), rel=1e-5)
    assert float(loss) == pytest.approx(sum(map(float, terms.values())), rel=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_each_term_alone_goes_down(name):
    image, data = problem()
    data["weights"] = {name: 1.0}
    objective = jax.jit(jax.value_and_grad(objectives.combined(features, TERMS), has_aux=True))
    (loss, terms), gradient = objective(image, data)
    assert set(terms) == {name} and np.isfinite(gradient).all()
    step = 1e-3 * gradient / np.abs(gradient).max()
    assert float(objective(image - step, data)[0][0]) < float(loss)


def test_a_weight_without_its_term():
    image, data = problem()
    with pytest.raises(ValueError, match="no term 'contend'; there are content, patchwise"):
        objectives.combined(features, TERMS)(image, data | {"weights": {"contend": 1.0}})
