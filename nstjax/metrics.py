"""How far two pictures are from each other: numbers of pictures [H, W, 3] in [0, 1]."""

import jax
import jax.numpy as jnp


def mse(a, b):
    """Mean squared error, from 0 (equal) to 1."""
    return jnp.mean((jnp.asarray(a) - jnp.asarray(b)) ** 2)


def ssim(a, b):
    """Structural similarity (Wang 2004) with a Gaussian window of 11 pixels: 1 is equal, 0 is unrelated."""
    window = jnp.exp(-0.5 * (jnp.arange(-5, 6) / 1.5) ** 2)
    window = window / window.sum()

    def blur(x):
        for axis in (0, 1):
            x = (
                jax.vmap(jax.vmap(lambda line: jnp.convolve(line, window, mode="valid"), 1, 1), 2, 2)(x)
                if axis == 0
                else jax.vmap(jax.vmap(lambda line: jnp.convolve(line, window, mode="valid"), 0, 0), 2, 2)(x)
            )
        return x

    a, b = jnp.asarray(a), jnp.asarray(b)
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return jnp.mean((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
