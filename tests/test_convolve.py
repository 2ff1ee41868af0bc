"""Winograd's convolution equals XLA's, in value and gradient, at any size and under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nstjax import convolve


def problem(h, w, before=8, after=6, seed=0):
    """A picture [h, w, before], a kernel as VGG's are scaled, a bias, and a cotangent [h, w, after], float32."""
    rng = np.random.default_rng(seed)
    x, kernel, bias, g = (rng.normal(size=s) for s in ((h, w, before), (3, 3, before, after), after, (h, w, after)))
    return [each.astype(np.float32) for each in (x, kernel * (2 / 9 / before) ** 0.5, bias, g)]


def oracle(x, kernel, bias):
    """In float64, tap by tap."""
    h, w, _ = x.shape
    x = np.pad(x.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    return sum(x[i : i + h, j : j + w] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3)) + bias


def assert_near(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("form", [convolve.plain, convolve.direct, convolve.winograd, convolve.compact])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 5), (4, 4), (17, 30)])
def test_value_and_gradient_against_numpy(form, size):
    x, kernel, bias, g = problem(*size)
    # Kernels are arguments of jit, as in the solvers.
    value, gradient = jax.jit(
        lambda x, p, g: (convolve.conv(x, p), jax.vjp(lambda x: convolve.conv(x, p), x)[1](g)[0])
    )(x, form(kernel, bias), g)
    assert_near(value, oracle(x, kernel, bias))
    # The gradient of a correlation is the correlation with the turned kernel.
    assert_near(gradient, oracle(g, kernel[::-1, ::-1].swapaxes(2, 3), 0))


def test_as_precise_as_needed_at_vggs_width():
    x, kernel, bias, _ = problem(12, 12, 256, 256)
    assert_near(
        jax.jit(convolve.conv)(np.maximum(x, 0), convolve.winograd(kernel, bias)),
        oracle(np.maximum(x, 0), kernel, bias),
    )


def test_gradient_of_a_batch():
    """vmap of grad of a loss that is not linear, as training a feed-forward net needs it."""
    kernel, bias = problem(6, 7)[1:3]
    xs = np.stack([problem(6, 7, seed=seed)[0] for seed in range(3)])

    def gradients(p):
        return jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(convolve.conv(x, p) ** 2))))(xs)

    assert_near(gradients(convolve.winograd(kernel, bias)), np.asarray(gradients(convolve.plain(kernel, bias))))


def test_the_bias_has_its_gradient():
    x, kernel, bias, g = problem(5, 6)
    p = convolve.winograd(kernel, bias)
    found = jax.grad(lambda bias: jnp.vdot(convolve.conv(x, p | {"bias": bias}), g))(bias)
    np.testing.assert_allclose(found, g.sum((0, 1)), rtol=1e-4, atol=1e-4)
