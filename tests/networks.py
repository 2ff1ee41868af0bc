"""Networks for tests: extractors, and transform nets with their inputs."""

import functools
import math

import jax
import numpy as np

from nstjax import nets
from nstjax.features import vgg
from nstjax.nets import transform
from nstjax.nets.decoder import LEVELS
from nstjax.nets.transform import TransformNet

# What takes time here is compiling.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = {name: net.clone(width=2, blocks=1) for name, net in nets.NETS.items() if isinstance(net, TransformNet)}
TINY = TransformNet(width=4, blocks=1)


def narrow_vgg(network="vgg19", seed=0, width=1):
    """Random weights of a VGG with few channels, as `vgg.load` returns them."""
    rng = np.random.default_rng(seed)
    before, tree = 3, {"mean": rng.uniform(0.3, 0.6, 3).astype(np.float32)}
    for name in vgg.shapes(network):
        channels = width * (3 + vgg.place(name).block)
        kernel = rng.normal(0, (2 / 9 / before) ** 0.5, (3, 3, before, channels)).astype(np.float32)
        tree[name] = {"kernel": kernel, "bias": rng.normal(0, 0.1, channels).astype(np.float32)}
        before = channels
    return tree


def levels(params):
    """What `nets.decoder.LEVELS` has for a narrow network: the root mean square of each layer."""
    acts = vgg.features(vgg.until(params, LEVELS), pictures(32, 32))
    return {name: float(np.sqrt(np.square(acts[name]).mean())) for name in LEVELS}


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=(*shape, 3)).astype(np.float32)


def trained(net, *inputs, seed=0):
    """Variables as if trained: norms' scales, biases and averages are not those they start with."""
    variables = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        kind = path[-1].key
        # As training makes them, since the output takes a tenth.
        ten = 10 if path[-2].key == "conv4" and getattr(net, "output", None) is transform.squash else 1
        if kind in ("kernel", "depthwise", "pointwise"):
            fan = math.prod(leaf.shape[:3])
            return rng.normal(0, ten * fan**-0.5, leaf.shape).astype(np.float32)
        low = {"scale": 0.5, "var": 0.5}.get(kind, -0.5)
        return ten * rng.uniform(low, low + 1, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, variables)
