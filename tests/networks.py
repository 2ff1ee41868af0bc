"""Networks for tests."""

import numpy as np

from nstjax.features import vgg


def narrow_vgg(network="vgg19", seed=0):
    """Random weights of a VGG with few channels, as `vgg.load` returns them."""
    rng = np.random.default_rng(seed)
    before, tree = 3, {"mean": rng.uniform(0.3, 0.6, 3).astype(np.float32)}
    for name in vgg.shapes(network):
        channels = 3 + vgg.place(name).block
        kernel = rng.normal(0, (2 / 9 / before) ** 0.5, (3, 3, before, channels)).astype(np.float32)
        tree[name] = {"kernel": kernel, "bias": rng.normal(0, 0.1, channels).astype(np.float32)}
        before = channels
    return tree
