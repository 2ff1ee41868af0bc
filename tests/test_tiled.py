"""Transform nets in strips of rows: the whole's picture, with less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import SMALL, jit, pictures, trained

from nstjax import nets
from nstjax.nets import layers, tiled
from nstjax.nets.transform import TransformNet

FORMS = SMALL | {
    "without norms": SMALL["fast"].clone(norm=None),
    "johnson with instance norm": SMALL["johnson"].clone(norm=layers.InstanceNorm),
    "two blocks": SMALL["fast"].clone(blocks=2),
}


def difference(net, shape, rows):
    images = pictures(*shape)
    variables = trained(net, images)
    whole = jit(partial(net.apply, train=False))(variables, images)
    strips = jit(partial(tiled.apply, net, rows=rows))(variables, images)
    assert strips.shape == whole.shape
    assert np.std(whole) > 0.01
    return np.abs(strips - whole).max()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_strips_equal_the_whole(name, fast):
    assert difference(FORMS[name].clone(fast=fast), (1, 103, 38), 16) < 1e-4


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 17, 33), (2, 41, 20), (1, 64, 16), (1, 65, 21), (1, 75, 16)])
@pytest.mark.parametrize("rows", [4, 16, 24])
def test_any_shape_and_rows(shape, rows):
    assert difference(SMALL["fast"], shape, rows) < 1e-4


def temporary(net, shape, rows):
    """Bytes that XLA sets aside for activations and workspace."""
    images = jax.ShapeDtypeStruct((*shape, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    compiled = jit(partial(tiled.apply, net, rows=rows)).lower(variables, images).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", ["fast", "depsep-nn-bil"])
def test_strips_take_the_memory_that_the_plan_counts(name, fast):
    net, shape = nets.NETS[name].clone(blocks=1, fast=fast), (1, 1024, 256)
    pixels, whole = 1024 * 256, temporary(nets.NETS[name].clone(blocks=1, fast=fast), shape, None)
    limit = int(0.6 * whole)
    rows = tiled.plan(net, (*shape, 3), limit=limit)
    assert 16 <= rows < 1024
    assert temporary(net, shape, rows) <= limit
    assert temporary(net, shape, 16) < 4 * tiled.KEPT * pixels + 2e7 < whole


def test_plans_use_strips_only_where_they_must():
    net, shape = TransformNet(), (1, 1000, 800, 3)
    whole = 4 * tiled.WORKSPACE * 1000 * 800
    assert tiled.plan(net, shape, limit=whole) is None
    assert tiled.plan(net, shape, limit=whole - 1) % 4 == 0
    assert tiled.plan(net, shape, limit=0) == tiled.LEAST
    assert tiled.plan(nets.NETS["johnson"], shape, limit=whole) < 1000
