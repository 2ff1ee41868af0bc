"""Solvers: they minimise within the gamut, count evaluations, and recover from losses that are not finite or jump."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from nstjax import solvers

SHAPE = (5, 4, 3)
SOLVERS = {
    "lbfgs": solvers.lbfgs,
    "lbfgs-optax": lambda f: solvers.gradient(f, optax.lbfgs(1.0, linesearch=None), jump=solvers.JUMP),
    "adam": lambda f: solvers.gradient(f, optax.adam(0.05)),
    "adamw": lambda f: solvers.gradient(f, optax.adamw(0.05, weight_decay=1e-6)),
    "gd": lambda f: solvers.gradient(f, optax.chain(solvers.by_first_gradient(), optax.sgd(0.05)), jump=solvers.JUMP),
}


def quadratic(seed=0):
    """An ill-conditioned convex quadratic whose minimum lies outside the gamut, as (objective, data)."""
    rng = np.random.default_rng(seed)
    n = np.prod(SHAPE)
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    a = basis @ np.diag(np.geomspace(1, 100, n)) @ basis.T
    data = {"a": jnp.asarray(a, jnp.float32), "centre": jnp.asarray(rng.uniform(-0.5, 1.5, n), jnp.float32)}

    def objective(image, data):
        d = image.reshape(-1) - data["centre"]
        loss = d @ data["a"] @ d
        return loss, {"content": loss}

    return objective, data


def solve(solver, image, data, steps):
    history = []
    for _, picture, terms in solvers.run(solver, image, data, steps=steps):
        assert ((picture >= 0) & (picture <= 1)).all()
        history.append((picture, terms))
    return history


@pytest.fixture
def start():
    return jax.random.uniform(jax.random.key(1), SHAPE)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_lowers_the_loss_in_gamut(name, start):
    objective, data = quadratic()
    history = solve(SOLVERS[name](objective), start, data, 60)
    assert len(history) == 60
    assert history[0][1]["loss"] == pytest.approx(float(objective(start, data)[0]), rel=1e-5)
    assert history[-1][1]["loss"] < 0.7 * history[0][1]["loss"]


def test_lbfgs_finds_the_minimum_under_bounds(start):
    objective, data = quadratic()
    history = solve(solvers.lbfgs(objective), start, data, 150)
    a, centre = np.asarray(data["a"], np.float64), np.asarray(data["centre"], np.float64)
    oracle = scipy.optimize.minimize(
        lambda x: ((x - centre) @ a @ (x - centre), 2 * a @ (x - centre)),
        np.asarray(start, np.float64).ravel(),
        jac=True,
        bounds=[(0, 1)] * centre.size,
        method="L-BFGS-B",
    )
    assert (oracle.x == 0).any() and (oracle.x == 1).any()
    assert history[-1][1]["loss"] == pytest.approx(oracle.fun, rel=0.02)


def counting(objective):
    """The objective, and a list that grows by one at each evaluation."""
    calls = []

    def counted(image, data):
        jax.debug.callback(lambda: calls.append(1))
        return objective(image, data)

    return counted, calls


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_is_one_evaluation(name, start):
    objective, data = quadratic()
    counted, calls = counting(objective)
    solve(SOLVERS[name](counted), start, data, 7)
    jax.effects_barrier()
    assert len(calls) == 7


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30], ids=["nan", "inf", "jump"])
@pytest.mark.parametrize("name", ["lbfgs", "lbfgs-optax", "gd"])
def test_recovers_from_a_bad_region(name, bad, start):
    objective, data = quadratic()
    objective = with_cliff(objective, bad)
    before = float(objective(start, data)[0])
    history = solve(SOLVERS[name](objective), start, data, 120)
    assert any(terms["failures"] for _, terms in history)
    picture = history[-1][0]
    assert float(objective(picture, data)[0]) < 0.8 * before


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30], ids=["nan", "inf", "jump"])
@pytest.mark.parametrize("name", ["lbfgs", "lbfgs-optax", "gd"])
def test_every_image_on_the_way_is_a_good_one(name, bad, start):
    """A run may end at any step, and its last image is saved: never one that was proposed and not yet evaluated."""
    objective, data = quadratic()
    objective = with_cliff(objective, bad)
    shown = []
    for picture, terms in solve(SOLVERS[name](objective), start, data, 120):
        loss = float(objective(picture, data)[0])
        assert loss <= 1.01 * solvers.JUMP * min([*shown, np.inf])
        if not terms["failures"]:
            assert loss == pytest.approx(terms["loss"], rel=1e-4)
        shown.append(loss)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_loss_that_is_infinite_from_the_start_is_a_failure(name, start):
    def objective(image, data):
        return jnp.sum(image) + jnp.inf, {"content": jnp.inf}

    with pytest.raises(FloatingPointError, match="inf at step 10"):
        solve(SOLVERS[name](objective), start, None, 20)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_gradient_that_is_not_finite_is_a_failure(name, start):
    """The square root of an exact zero has a finite value and an infinite slope: here, far from the start."""
    objective, data = quadratic()

    def rooted(image, data):
        loss, terms = objective(image, data)
        inside = jnp.mean((image - start) ** 2) < 0.03
        return loss + jnp.sqrt(jnp.where(inside, 1.0, 0.0 * image.sum())), terms

    history = solve(SOLVERS[name](rooted), start, data, 60)
    assert np.isfinite(history[-1][0]).all()
    assert any(terms["failures"] for _, terms in history)
    assert all(np.isfinite(terms["loss"]) or terms["failures"] for _, terms in history)
    assert float(objective(history[-1][0], data)[0]) < 0.8 * float(objective(start, data)[0])


def with_cliff(objective, bad):
    """The same loss, but bad where a pixel's neighbourhood of the start is left by more than 0.2 in the mean square."""
    start = jax.random.uniform(jax.random.key(1), SHAPE)

    def cliff(image, data):
        loss, terms = objective(image, data)
        return jnp.where(jnp.mean((image - start) ** 2) > 0.03, bad, loss), terms

    return cliff


def test_gives_up_with_the_last_good_picture(start):
    def objective(image, data):
        loss = jnp.where(jnp.all(image == data), jnp.sum(image), jnp.nan)
        return loss, {"content": loss}

    pictures = []
    with pytest.raises(FloatingPointError, match="10 times in a row"):
        for _, picture, _ in solvers.run(solvers.lbfgs(objective), start, start, steps=100):
            pictures.append(picture)
    assert np.array_equal(pictures[-1], start)


def test_average_is_the_bias_corrected_moving_average(start):
    objective, data = quadratic()
    plain = solve(solvers.lbfgs(objective), start, data, 12)
    smooth = solve(solvers.averaged(solvers.lbfgs(objective), decay=0.8), start, data, 12)
    weights = 0.8 ** np.arange(11, -1, -1)
    expected = np.tensordot(weights / weights.sum(), np.stack([picture for picture, _ in plain]), 1)
    np.testing.assert_allclose(smooth[-1][0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
def test_steps_work_under_vmap(name, start):
    objective, data = quadratic()
    solver = SOLVERS[name](objective)
    starts = jnp.stack([start, 1 - start])
    images, states = starts, jax.vmap(solver.init, (0, None))(starts, data)
    for _ in range(5):
        images, states, _ = jax.vmap(solver.step, (0, 0, None))(images, states, data)
    for image, alone in zip(images, starts, strict=True):
        np.testing.assert_allclose(image, solve(solver, alone, data, 5)[-1][0], atol=2e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_steps_are_compiled_once(name, start):
    objective, data = quadratic()
    traced = []

    def noted(image, data):
        traced.append(1)
        return objective(image, data)

    steps = solvers.run(SOLVERS[name](noted), start, data, steps=4)
    next(steps)
    first = len(traced)
    list(steps)
    assert len(traced) == first


def test_the_same_start_gives_the_same_picture(start):
    objective, data = quadratic()
    first, second = (solve(solvers.lbfgs(objective), start, data, 20)[-1][0] for _ in range(2))
    assert np.array_equal(first, second)


def test_a_keyed_solver_gives_another_key_at_each_step_and_the_same_again():
    def objective(image, data):
        loss = (image * jax.random.normal(data["key"], image.shape)).sum()
        return loss, {"draw": jax.random.normal(data["key"])}

    solver = solvers.keyed(solvers.gradient(objective, optax.sgd(0.01)))

    def draws(seed):
        data = {"key": jax.random.key(seed)}
        return [terms["draw"] for _, _, terms in solvers.run(solver, np.full((4, 4, 3), 0.5), data, steps=4)]

    assert draws(0) == draws(0) and len(set(draws(0) + draws(1))) == 8
