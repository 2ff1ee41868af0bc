"""Square roots of numbers and of matrices, with gradients that stay finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Scalar = Float[Array, ""]
Matrix = Float[Array | np.ndarray, "c c"]


def root(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square roots of numbers >= 0 whose gradient at 0 is 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def sqrtm(a: Matrix, *, iterations: int = 15) -> tuple[Matrix, Matrix]:
    """Square root and inverse square root of a symmetric positive semidefinite matrix.

    Newton-Schulz iterations (Higham 2008, Functions of Matrices, eq. 6.35): matrix products alone, which every
    accelerator does well. Eigenvalues under about 1e-5 of the largest are not resolved: the root's are too small there,
    and the inverse's stay under 1.5^iterations. Iterations end early where rounding has made eigenvalues so negative
    that they would diverge, so that both are finite for every finite matrix.
    """
    norm = jnp.maximum(jnp.linalg.norm(a), jnp.finfo(a.dtype).tiny)
    identity = jnp.eye(a.shape[0], dtype=a.dtype)

    def iterate(_: Any, yz: tuple[Array, Array]) -> tuple[Array, Array]:
        y, z = yz
        product = z @ y
        # The eigenvalues of z y rise from 0..1 to 1; only negative ones grow without bound.
        converges = jnp.sum(product**2) <= 2 * a.shape[0]
        t = 1.5 * identity - 0.5 * product
        return jnp.where(converges, y @ t, y), jnp.where(converges, t @ z, z)

    y, z = jax.lax.fori_loop(0, iterations, iterate, (a / norm, identity))
    return y * jnp.sqrt(norm), z / jnp.sqrt(norm)


# d tr(A^1/2) = tr(A^-1/2 dA) / 2, and the iterations give A^-1/2 for nothing.
@jax.custom_vjp
def trace_sqrtm(a: Matrix) -> Scalar:
    """Trace of `sqrtm`'s root."""
    return jnp.trace(sqrtm(a)[0])


def _forward(a: Matrix) -> tuple[Scalar, Matrix]:
    root, inverse = sqrtm(a)
    return jnp.trace(root), inverse


trace_sqrtm.defvjp(_forward, lambda inverse, g: (0.5 * g * inverse.T,))
