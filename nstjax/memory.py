"""How much memory there is, and what fits into it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from nstjax import host, stream
from nstjax.errors import InputError
from nstjax.features import vgg

# Bytes, measured on CPU as resident memory of whole runs of experiments/gatys.py (benchmarks/memory.py).
RESIDENT = 430e6  # libraries, executables, and what is left of compiling
SCALE = 30e6  # what is left of compiling for each further scale
COMPILING = 350e6 if jax.__version_info__ >= (0, 9) else 600e6  # what XLA's compiler takes for a moment
RUNTIME = RESIDENT + COMPILING  # of a program that leaves malloc as it is, which keeps what the compiler freed
TRANSFORMED = 80e6  # what `convolve.compact` makes of kernels for a moment
STYLE_COMPILING = 30e6  # and more for each further style
HISTORY, LEAST_HISTORY = 20, 3  # pairs that L-BFGS remembers where there is memory enough, and where it is scarce
KEPT_BY_MALLOC = 3  # times what is in use that `terminal.tune_malloc` may keep (measured at 512 and 1024 px: 2.4, 2.7)
IMAGE = 12  # bytes of a pixel
IMAGES = 12  # images at full size beside L-BFGS's: content, iterate, gradient, direction, average, ...


class Scene(NamedTuple):
    """What the memory of a run depends on."""

    shape: tuple[int, int]  # height and width of the largest content image at full size
    network: str  # "vgg16" or "vgg19"
    content_layers: tuple[str, ...]
    style_layers: tuple[str, ...]
    styles: tuple[tuple[int, int], ...] = ()  # heights and widths of the style images at full size
    regions: int = 0  # masks at the content's size
    results: int = 1  # stylized images kept until the end
    reading: float = 0  # bytes that reading the largest file takes for a moment (`images.reading_bytes`)
    scales: int = 1
    at_once: bool = False  # whether all the features of an image are needed at once
    variables: float = 1  # numbers that are optimized, for each of the image's
    held: float = 0  # numbers that the losses hold for each pixel beside the network's


class Budget(NamedTuple):
    """How a run stays within its limit."""

    history: int  # pairs that L-BFGS remembers
    network: float  # bytes for the network's activations (`stream.plan`)
    together: int  # images that may be optimized at once
    compact: bool  # whether kernels are kept as `convolve.compact`
    tuned: bool  # whether the allocator may keep freed memory (`terminal.tune_malloc`)


def available() -> float:
    """Bytes that the default device has free (on CPU: that the machine or the container has)."""
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else host.free_memory()


def for_images(limit: float) -> float:
    """Bytes that reading an image may take where the program may take `limit` bytes in all."""
    return max(limit - RUNTIME, limit / 4)


def fit(scene: Scene, *, limit: float, devices: int = 1) -> Budget:
    """Return the `Budget` of a run within `limit` bytes in all.

    Kernels are transformed in advance if L-BFGS can still remember 20 steps beside them. Of what is left after 3 steps
    and the least that the network needs, three fifths go to more steps, up to 20. Raises InputError if the limit does
    not suffice for that minimum; the message says how much would.
    """
    pair = 3 * IMAGE * scene.variables * math.prod(scene.shape)  # two images, one of which XLA copies
    layers = scene.content_layers + scene.style_layers
    whole = stream.whole((*scene.shape, 3), layers) + 4 * scene.held * math.prod(scene.shape)
    least = whole if devices > 1 or scene.at_once else stream.least((*scene.shape, 3), layers)
    for compact in (False, True):
        parameters = devices * _parameters(scene.network, layers, compact=compact) + TRANSFORMED * compact
        fixed = RESIDENT + SCALE * (scene.scales - 1) + parameters + _images(scene)
        targets = _targets(scene, layers, least)
        spare = limit - fixed - max(LEAST_HISTORY * pair + max(COMPILING, least), targets, scene.reading)
        history = min(HISTORY, LEAST_HISTORY + int(0.6 * max(spare, 0) / pair))
        if history == HISTORY:
            break
    if spare < 0:
        h, w = scene.shape
        what = f"an image of {w}x{h} px needs {math.ceil((limit - spare) / 1e7) / 100:.2f} GB of memory"
        why = f"{what}, and {limit / 1e9:.2f} GB may be used: raise it, or paint a smaller image"
        raise InputError(why, argument="memory_limit")
    network = min(limit - fixed - history * pair, limit - fixed - targets + least)
    together = 1 + int(max(network - whole, 0) / (history * pair + _images(scene) + whole))
    used = limit - network + max(COMPILING, min(network, whole))
    return Budget(history, network, together, compact, KEPT_BY_MALLOC * used <= limit)


def groups(items: Sequence, most: int) -> list[list]:
    """Items in groups of one size, `most` or fewer each; the last is filled up with the last item."""
    size = math.ceil(len(items) / math.ceil(len(items) / most))
    split = [list(items[i : i + size]) for i in range(0, len(items), size)]
    return [group + group[-1:] * (size - len(group)) for group in split]


def _parameters(network: str, layers: Sequence[str], *, compact: bool) -> float:
    """Bytes of a VGG's parameters on the CPU, in the form of `features.prepare`."""
    kernels = {name: parts["kernel"] for name, parts in vgg.until(vgg.shapes(network), layers).items()}
    forms = {name: 2 if name in vgg.FIRST else 1 if compact else 8 for name in kernels}
    return sum(4 * forms[name] * math.prod(shape) for name, shape in kernels.items())


def _images(scene: Scene) -> float:
    """Bytes of all arrays of the content's size while it is optimized, beside L-BFGS's pairs."""
    features = sum(vgg.numbers(name) for name in scene.content_layers)
    images = IMAGES * (2 * scene.variables - 1) + scene.results  # levels, and what they are enlarged to
    held = math.prod(scene.shape) * (4 * features + IMAGE * images + 8 * scene.regions)
    return held + sum(IMAGE * math.prod(shape) for shape in scene.styles)


def _targets(scene: Scene, layers: Sequence[str], least: float) -> float:
    """Bytes that are taken for a moment while the targets are computed, before L-BFGS remembers anything."""
    images = sum(3 * IMAGE * math.prod(shape) for shape in scene.styles)
    largest = max((stream.least((*shape, 3), layers) for shape in scene.styles), default=0)
    return images + max(COMPILING + STYLE_COMPILING * (len(scene.styles) - 1), largest, least)
