"""nstjax.studies.terms and measures: targets, units and figures, with narrow networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import PARAMS, smooth

from nstjax import losses, metrics, patches
from nstjax.studies import measures, terms

pytestmark = pytest.mark.usefixtures("quickly")


def scene(names):
    content, style, other = (jnp.asarray(smooth(i)) for i in range(3))
    return content, style, terms.targets(names, PARAMS, content, style, other, None)


def test_units_are_those_of_the_content_image_and_a_blank():
    content, _, targets = scene(terms.TERMS)
    unit = jax.jit(terms.units)(PARAMS, content, targets)
    assert set(unit) == set(terms.TERMS) and all(x > 0 for x in unit.values())
    data = {"params": PARAMS, "targets": targets, "weights": {name: 1 / x for name, x in unit.items()}}
    blank = jnp.broadcast_to(content.mean((0, 1)), content.shape)
    evaluate = jax.jit(terms.objective)
    for image, kind in ((content, "change"), (blank, "keep")):
        values = evaluate(image, data)[1]
        for name, term in terms.TERMS.items():
            if term.kind == kind:
                assert float(values[name]) == pytest.approx(1, rel=1e-3)
    assert unit["gatys_style"] == unit["gatys_content"] == 1


def test_augustins_loss_is_that_of_gatys():
    content, style, targets = scene(("gatys_content", "gatys_style"))
    image = jnp.asarray(smooth(5))
    x, kept, wanted = (measures.networks(PARAMS, each)["vgg19"] for each in (image, content, style))
    difference = np.asarray(x["relu4_2"] - kept["relu4_2"], np.float64)
    expected = 0.0
    for name, weight in zip(measures.STYLE_LAYERS, (0.2, 0.2, 0.4, 0.2, 0.0), strict=True):
        f, a = (np.asarray(each[name], np.float64).reshape(-1, each[name].shape[2]) for each in (x, wanted))
        m, n = f.shape
        expected += weight * ((f.T @ f - a.T @ a) ** 2).sum() / (4 * n**2 * m**2)
    of_content, of_style = (
        float(terms.TERMS[name].loss({"vgg19": x}, image, targets[name])) for name in ("gatys_content", "gatys_style")
    )
    assert of_content == pytest.approx(0.5 * (difference**2).sum(), rel=1e-4)
    assert of_style == pytest.approx(expected, rel=1e-3)


def test_cells_ask_for_the_whole_style_and_composition_for_its_places():
    _, style, targets = scene(("cells", "composition"))
    x = measures.networks(PARAMS, style)["vgg19"]["relu1_1"]
    whole = losses.gram(x)
    assert np.ptp(np.asarray(targets["cells"]["of"]["relu1_1"]), axis=0).max() == 0
    np.testing.assert_allclose(targets["cells"]["of"]["relu1_1"][3], whole, rtol=1e-4)
    own = patches.patchwise(x, statistic=losses.gram)
    np.testing.assert_allclose(targets["composition"]["of"]["relu1_1"], own, rtol=1e-5)


def test_figures_of_the_content_and_of_another_image():
    content, style = smooth(0), smooth(1)
    at = {name: float(x) for name, x in measures.figures(PARAMS, content, content, style).items()}
    same = {"content_distance": 0, "style_distance": 1, "moments_distance": 1, "mse": 0, "ssim": 1, "lpips": 0}
    assert at == pytest.approx(same | {"roughness": 1}, abs=1e-5)
    other = {name: float(x) for name, x in measures.figures(PARAMS, style, content, style).items()}
    assert other["style_distance"] == other["moments_distance"] == 0 and other["content_distance"] > 0.5
    assert other["mse"] == pytest.approx(float(metrics.mse(content, style)))
