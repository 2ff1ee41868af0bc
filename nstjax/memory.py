"""How much memory there is, and what fits into it."""

import jax

from nstjax import host, stream
from nstjax.errors import InputError

RUNTIME = 600e6  # bytes of the program itself
HISTORY, LEAST_HISTORY = 20, 3  # pairs that L-BFGS remembers where there is room, and where there is little
KEPT_BY_MALLOC = 3  # times what is in use that `terminal.tune_malloc` may keep (measured at 512 and 1024 px: 2.4, 2.7)
CONTENT = 8  # numbers for a pixel of the picture in a content layer such as relu4_2


def available():
    """Bytes that the default device has free (on CPU, of the machine or of the container)."""
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else host.free_memory()


def for_images(limit: float) -> float:
    """Bytes that reading an image may take where the program may take `limit` bytes in all."""
    return max(limit - RUNTIME, limit / 4)


def fit(shape, params, *, limit, contents=1):
    """(pairs that L-BFGS may remember, bytes left to the network) for a picture [H, W, 3] within `limit` bytes in all.

    Of what is left after 3 pairs and the least that the network can do with, three fifths go to more pairs, up to 20.
    Raises InputError where there is not even that, and says how much is needed.
    """
    pixels = shape[0] * shape[1]
    picture = 12 * pixels
    fixed = RUNTIME + sum(x.nbytes for x in jax.tree.leaves(params)) + 4 * CONTENT * contents * pixels + 8 * picture
    least = 4 * stream.KEPT * pixels + 4 * stream.WORKSPACE[1, 2] * shape[1] * (16 + 16)
    spare = limit - fixed - least - 2 * LEAST_HISTORY * picture
    if spare < 0:
        what = f"a picture of {shape[1]}x{shape[0]} px needs {(limit - spare) / 1e9:.1f} GB of memory"
        raise InputError(f"{what}, and {limit / 1e9:.1f} GB may be used: lower --size or raise --memory-limit")
    history = min(HISTORY, LEAST_HISTORY + int(0.6 * spare / (2 * picture)))
    return history, limit - fixed - 2 * history * picture
