"""nstjax/studies/augustins.py: his losses against float64, his schedule by hand, his cycles against SciPy."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from nstjax import objectives, solvers
from nstjax.features import vgg
from nstjax.studies import augustins


@pytest.fixture
def image():
    return networks.pictures(32, 32)


def data_of(params, image, style, weights):
    layers = {"content_layers": {"relu1_1": 1.0}, "style_layers": {"relu1_1": 0.2, "relu2_1": 0.4}}
    objective, targets = augustins.losses_of()
    return objective, targets(params, image, [objectives.Style(style)], weights=weights, **layers)


def test_losses_are_undivided_sums_of_squares(image):
    params, style, other = networks.narrow_vgg(), networks.pictures(32, 32, seed=1), networks.pictures(32, 32, seed=2)
    objective, data = data_of(params, image, style, {"content": 1e-6, "style": 1.0})
    _, terms = objective(other, data)

    def rows(image, layer):
        x = np.asarray(vgg.features(params, image)[layer], np.float64)
        return x.reshape(-1, x.shape[2])

    content = 1e-6 * ((rows(other, "relu1_1") - rows(image, "relu1_1")) ** 2).sum()
    painted = sum(
        weight * ((rows(other, n).T @ rows(other, n) - rows(style, n).T @ rows(style, n)) ** 2).sum()
        for n, weight in {"relu1_1": 0.2, "relu2_1": 0.4}.items()
    )
    np.testing.assert_allclose(terms["content"], content, rtol=1e-5)
    np.testing.assert_allclose(terms["style"], painted, rtol=1e-5)


def test_first_image_is_0_to_1_in_the_networks_units(image):
    params = networks.narrow_vgg()
    units = 255 * (augustins.start(params, image, 0) - params["mean"])
    assert 0 <= units.min() < 0.01 and 0.99 < units.max() <= 1.001


def test_the_table_has_every_layer_and_one_number_of_iterations_in_a_block():
    relus = [name for name in vgg.layer_names("vgg19") if name.startswith("relu")]
    assert list(augustins.TABLE) == relus
    assert [{augustins.TABLE[n].iterations for n in relus if n[4] == block} for block in "12345"] == [{20}] + 4 * [{50}]
    assert [n for n in relus if augustins.TABLE[n].step == 1e-4] == [
        *("relu2_1", "relu2_2", "relu3_1", "relu3_2", "relu3_3", "relu5_1")
    ]


def test_steps_are_those_of_the_networks_units():
    # The loss is |x - 3|^2 of x = 255 image - mean: x - 3 is multiplied by 1 - 2 step, whatever is outside [0, 1].
    mean, first = 100.0, np.zeros((2, 2, 3), np.float32)

    def objective(image, data):
        loss = ((255 * image - mean - 3) ** 2).sum()
        return loss, {"content": loss}

    steps = solvers.run(augustins.descent(objective), first, {"step": jnp.float32(0.25)}, steps=4)
    found = [(255 * np.asarray(image).mean() - mean - 3, terms["loss"]) for _, image, terms in steps]
    expected = [-103 * 0.5**n for n in range(4)]
    np.testing.assert_allclose(found, [(x, 12 * x**2) for x in expected], rtol=1e-4)


def test_descent_that_diverges_keeps_its_last_finite_image():
    def objective(image, data):
        loss = (image**4).sum()
        return loss, {"content": loss}

    first, images, failures = np.ones((1, 1, 3), np.float32), [], []
    for _, image, terms in solvers.run(augustins.descent(objective), first, {"step": jnp.float32(1e8)}, steps=6):
        images.append(np.asarray(image))
        failures.append(terms["failures"])
    assert np.isfinite(images).all() and failures[0] == 0 and failures[-3:] == [2, 3, 4]


def test_cycles_call_scipy_anew_and_count_evaluations(image):
    optimize = pytest.importorskip("scipy.optimize")
    params, style = networks.narrow_vgg(), networks.pictures(32, 32, seed=1)
    objective, data = data_of(params, image, style, {"style": 1.0})
    first = augustins.start(params, image, 0)
    steps = list(augustins.lbfgs(objective)(first, data, steps=4))
    assert [step for step, *_ in steps] == [1, 2, 3, 4]
    np.testing.assert_array_equal(steps[0][1], first)
    evaluate = jax.jit(jax.value_and_grad(lambda x: objective(x, data)[0]))

    def loss(x):
        value, grad = evaluate(jnp.asarray(x.reshape(first.shape) / 255, jnp.float32))
        return float(value), np.asarray(grad, np.float64).ravel() / 255

    x, value, about = optimize.fmin_l_bfgs_b(loss, 255 * first.astype(np.float64).ravel(), maxfun=20)
    _, found, terms = steps[1]
    np.testing.assert_allclose(terms["loss"], value, rtol=1e-2)
    np.testing.assert_allclose(found, x.reshape(first.shape) / 255, atol=1e-2)
    assert terms["evaluations"] == 1 + about["funcalls"]
    assert steps[-1][2]["loss"] < 1e-4 * steps[0][2]["loss"]
