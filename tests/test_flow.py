"""Flow between images whose motion is known, and what is derived from it."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from nstjax import flow

pytestmark = pytest.mark.usefixtures("quickly")
H, W = 80, 112
Y, X = np.mgrid[:H, :W].astype(float)
CENTER = np.array([(W - 1) / 2, (H - 1) / 2])
VELOCITY = np.array([5.0, 3.0])  # of the moving patch


def texture(seed):
    """A function of places (x, y) in pixels: colors [h, w, 3] of a texture with shapes of many sizes."""
    rng = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(rng.normal(size=(200, 240, 3)), (s, s, 0)) * s**1.2 for s in (1.2, 3, 8)]
    image = ndimage.gaussian_filter(sum(layers), (0.7, 0.7, 0))
    image = (image - image.min()) / np.ptp(image)

    def colors(x, y):
        each = [ndimage.map_coordinates(image[..., c], [y + 60, x + 60], order=3, mode="mirror") for c in range(3)]
        return np.stack(each, -1).clip(0, 1).astype(np.float32)

    return colors


GROUND, PATCH = texture(0), texture(1)


def moved(linear, shift=(0.0, 0.0)):
    """(an image, another whose point `linear (p - center) + center + shift` shows p of the first, the flow)."""
    linear = np.asarray(linear)
    places = np.stack([X, Y], -1) - CENTER
    target = places @ linear.T + CENTER + shift
    source = (places - shift) @ np.linalg.inv(linear).T + CENTER
    return GROUND(X, Y), GROUND(source[..., 0], source[..., 1]), target - np.stack([X, Y], -1)


def patch_at(t):
    return ((np.stack([X, Y], -1) - CENTER - t * VELOCITY) ** 2).sum(-1) < 22**2


def moving_patch():
    """(image, other, flow, flow back, hidden in the other) of a disk that moves over a ground that stands still."""
    images = [np.where(patch_at(t)[..., None], PATCH(X - 5 * t, Y - 3 * t), GROUND(X, Y)) for t in (0, 1)]
    there, back = (np.where(patch_at(t)[..., None], (1 - 2 * t) * VELOCITY, 0.0) for t in (0, 1))
    return *images, there, back, ~patch_at(0) & patch_at(1)


def inside(truth):
    ends = truth + np.stack([X, Y], -1)
    return ((ends >= 0) & (ends <= [W - 1, H - 1])).all(-1)


def errors(found, truth):
    """End-point errors in pixels."""
    return np.linalg.norm(found - truth, axis=-1)


TURN = np.deg2rad(2)
MOTIONS = {
    "shift": (np.eye(2), (4.3, -2.6)),
    "long shift": (np.eye(2), (-14.0, 9.0)),
    "zoom": (1.04 * np.eye(2),),
    "rotation": ([[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]],),
}


@pytest.mark.parametrize("name", MOTIONS)
def test_tv_l1_finds_motion(name):
    image, other, truth = moved(*MOTIONS[name])
    e = errors(flow.tv_l1(image, other), truth)[inside(truth)]
    assert e.mean() < 0.06 and np.percentile(e, 95) < 0.2
    assert np.linalg.norm(truth, axis=-1).mean() > 5 * e.mean()


@pytest.mark.parametrize("name", MOTIONS)
def test_tv_l1_is_no_worse_than_dis(name):
    cv2 = pytest.importorskip("cv2")
    image, other, truth = moved(*MOTIONS[name])
    gray = [cv2.cvtColor((255 * x).round().astype(np.uint8), cv2.COLOR_RGB2GRAY) for x in (image, other)]
    oracle = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*gray, None)
    where = inside(truth)
    ours, theirs = (errors(found, truth)[where].mean() for found in (flow.tv_l1(image, other), oracle))
    assert ours < theirs
    assert np.median(errors(flow.tv_l1(image, other), oracle)[where]) < 0.5


def test_a_moving_patch_and_what_it_hides_are_found():
    image, other, truth, _, hidden = moving_patch()
    there, back = flow.tv_l1(image, other), flow.tv_l1(other, image)
    e = errors(there, truth)
    assert e[~hidden].mean() < 0.3 and np.median(e[patch_at(0)]) < 0.2 and np.median(e[~patch_at(1)]) < 0.05
    seen = np.asarray(flow.consistent(there, back))
    assert seen[hidden].mean() < 0.15  # of what becomes hidden
    assert seen[ndimage.binary_erosion(patch_at(0), iterations=4)].mean() > 0.9
    assert seen[~ndimage.binary_dilation(patch_at(0) | patch_at(1), iterations=10)].mean() > 0.99


def test_occlusion_of_true_flows_is_exact():
    _, _, there, back, hidden = moving_patch()
    found = np.asarray(flow.occluded(jnp.asarray(there), jnp.asarray(back)))
    np.testing.assert_array_equal(found[5:-5, 5:-5] > 0, hidden[5:-5, 5:-5])


def test_occlusion_by_hand():
    """Ruder's eq. 5: |3 - 2|^2 = 1 is above 0.01 (9 + 4) + 0.5 = 0.63, and 0.7^2 = 0.49 is not; outside is hidden."""
    there = np.zeros((3, 20, 2), np.float32)
    there[..., 0] = 3
    back = np.zeros_like(there)
    back[:, :10, 0], back[:, 10:, 0] = -2, -2.3
    found = np.asarray(flow.occluded(there, back))
    np.testing.assert_array_equal(found[1], [1] * 7 + [0] * 10 + [1] * 3)


def test_motion_edges_by_hand():
    """Ruder's eq. 6, with central differences: at a step of h the slope is h / 2 in the two columns beside it."""
    field = np.zeros((4, 12, 2), np.float32)
    field[:, 6:, 1] = 0.08  # 0.04^2 is under 0.002
    assert not np.any(flow.motion_edges(field))
    field[:, 6:, 1] = 0.1
    np.testing.assert_array_equal(np.asarray(flow.motion_edges(field))[2], [0] * 5 + [1] * 2 + [0] * 5)
    assert not np.any(flow.motion_edges(field + [8.0, 0.0]))  # the faster, the more is allowed


def test_warp_is_bilinear_with_a_repeated_border():
    rng = np.random.default_rng(3)
    image, field = rng.random((11, 14, 3)).astype(np.float32), rng.normal(0, 6, (11, 14, 2)).astype(np.float32)
    y, x = np.mgrid[:11, :14]
    at = [y + field[..., 1], x + field[..., 0]]
    expected = [ndimage.map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(3)]
    np.testing.assert_allclose(flow.warp(image, field), np.stack(expected, -1), atol=2e-6)
    np.testing.assert_array_equal(flow.warp(image, np.zeros_like(field)), image)
    np.testing.assert_array_equal(flow.warp(image[:1, :1], field[:1, :1]), image[:1, :1])


def test_warp_undoes_known_motion():
    image, other, truth = moved(*MOTIONS["rotation"])
    difference = np.abs(flow.warp(other, jnp.asarray(truth)) - image)[inside(truth)]
    assert difference.mean() < 0.01 < np.abs(other - image).mean()


def test_warp_has_the_gradients_of_finite_differences():
    rng = np.random.default_rng(4)
    image, field = (rng.normal(0.4, 0.2, (5, 6, c)).astype(np.float32) for c in (3, 2))
    field = np.round(field * 2) / 2 + 0.25  # away from the kinks at whole pixels

    def loss(image, field):
        return (flow.warp(image, field) ** 2).sum()

    check_grads(loss, (image, field), order=1, modes=["rev"], eps=1e-2, rtol=2e-2)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_flat_images_have_no_flow(value):
    image = np.full((H, W, 3), value, np.float32)
    np.testing.assert_array_equal(flow.tv_l1(image, image), 0)
    np.testing.assert_allclose(flow.tv_l1(image, 0.9 * image), 0, atol=1e-4)
    np.testing.assert_array_equal(flow.consistent(jnp.zeros((H, W, 2)), jnp.zeros((H, W, 2))), 1)


def test_equal_images_have_no_flow():
    np.testing.assert_allclose(flow.tv_l1(GROUND(X, Y), GROUND(X, Y)), 0, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 2), (3, 50), (33, 17)])
def test_small_and_odd_shapes(shape):
    rng = np.random.default_rng(0)
    found = flow.tv_l1(*rng.random((2, *shape, 3)).astype(np.float32), warps=1, iterations=2)
    assert found.shape == (*shape, 2) and np.isfinite(found).all()


def test_other_shapes_are_rejected():
    with pytest.raises(ValueError, match="one shape"):
        flow.tv_l1(np.zeros((8, 8, 3), np.float32), np.zeros((8, 9, 3), np.float32))


def test_the_median_is_that_of_nine():
    x = np.random.default_rng(5).random((9, 12)).astype(np.float32)
    np.testing.assert_array_equal(flow._median(x), ndimage.median_filter(x, 3, mode="nearest"))
