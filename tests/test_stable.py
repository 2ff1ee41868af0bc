"""Painted frames that hold still: flicker falls, what moves is followed, and nothing is left behind."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from nstjax import flow, stable


def painted(frame):
    """As nervous as a net: small changes of its input are large ones of its output."""
    return 0.5 + 0.5 * np.sin(40 * frame)


pytestmark = pytest.mark.usefixtures("quickly")
HOLD = jax.jit(stable.steady)


def held(frames, strength, paint=painted):
    before, pictures = None, []
    for frame in frames:
        before = before or stable.first(frame, paint(frame))
        before, picture = HOLD(before, frame, paint(frame), strength=strength)
        pictures.append(np.asarray(picture))
    return np.stack(pictures)


def scene(n=20, noise=0.01, moving=False):
    """A still picture with a camera's noise, over which a bright square may move."""
    rng = np.random.default_rng(0)
    still = np.kron(rng.uniform(0.1, 0.4, (8, 12, 3)), np.ones((8, 8, 1)))
    for i in range(n):
        frame = still.copy()
        if moving:
            frame[24:40, 3 * i : 3 * i + 16] = 0.9
        yield (frame + rng.normal(0, noise, frame.shape)).clip(0, 1).astype(np.float32)


def test_flicker_of_a_still_noisy_clip_falls():
    nervous, calm = (held(scene(), strength)[5:] for strength in (0.0, 0.8))
    flicker = [np.abs(np.diff(frames, axis=0)).mean() for frames in (nervous, calm)]
    assert flicker[0] > 0.1
    assert flicker[1] < 0.35 * flicker[0]
    assert np.abs(calm.mean(0) - nervous.mean(0)).mean() < 0.05


def test_what_moves_leaves_no_trail():
    frames = list(scene(moving=True, noise=0))
    pictures = held(frames, 0.9)
    for i in (5, 10, 19):
        square = (slice(20, 44), slice(max(0, 3 * i - 20), 3 * i + 20))
        error = np.abs(pictures[i] - painted(frames[i]))[square]
        assert error.mean() < 0.01 and np.percentile(error, 99) < 0.1


def test_slow_changes_and_cuts_are_followed():
    fade = [np.full((64, 96, 3), 0.2 + 0.004 * i, np.float32) for i in range(40)]
    before = stable.first(fade[0], fade[0])
    for frame in fade:
        before, picture = HOLD(before, frame, frame, strength=1.0)
        assert np.abs(picture - frame).max() < 2 * stable.TOLERANCE
    _, picture = HOLD(before, 1 - fade[0], fade[3], strength=1.0)
    np.testing.assert_allclose(picture, fade[3], atol=1e-6)
    np.testing.assert_array_equal(held(fade[:5], 0.0), painted(np.stack(fade[:5])).astype(np.float32))


SPEED = (1.3, 0.6)  # pixels a frame: right, down


def pan(n=12):
    """A camera that moves over a texture, with noise."""
    rng = np.random.default_rng(1)
    ground = sum(s**1.2 * ndimage.gaussian_filter(rng.normal(size=(96, 128, 3)), (s, s, 0)) for s in (1.2, 3, 8))
    ground = 0.2 + 0.6 * (ground - ground.min()) / np.ptp(ground)
    for i in range(n):
        view = ndimage.shift(ground, (-SPEED[1] * i, -SPEED[0] * i, 0), order=3, mode="nearest")[8:72, 8:104]
        yield (view + rng.normal(0, 0.01, view.shape)).clip(0, 1).astype(np.float32)


def nervous(frame):
    """The frame, with much noise of its own."""
    return frame + np.random.default_rng(int(1e6 * frame.mean())).normal(0, 0.2, frame.shape).astype(np.float32)


def test_flicker_falls_along_the_motion_of_the_camera():
    """Without compensation nothing could be kept here, as every pixel changes."""
    frames = list(pan())
    plain, calm = (held(frames, strength, nervous)[6:] for strength in (0.0, 0.8))
    along = np.broadcast_to(np.float32(SPEED), (64, 96, 2))
    flicker = []
    for pictures in (plain, calm):
        moved = [np.asarray(flow.warp(x, along)) for x in pictures[:-1]]
        flicker.append(np.mean([np.abs(a - b)[4:-4, 4:-4].mean() for a, b in zip(moved, pictures[1:], strict=True)]))
    assert flicker[1] < 0.4 * flicker[0]
    errors = [np.abs(pictures - np.stack(frames[6:]))[:, 4:-4, 4:-4].mean() for pictures in (plain, calm)]
    assert errors[1] < 0.7 * errors[0]  # noise counts as detail, whose contrast is kept


def test_motion_of_large_frames_is_estimated_at_a_smaller_size():
    a, b = list(pan(2))
    there, seen = stable.motion(b, a)
    small, rough = stable.motion(b, a, side=48)
    assert np.median(np.abs(there - np.float32(SPEED))) < 0.1
    assert small.shape == there.shape and rough.shape == seen.shape
    assert np.median(np.abs(small - np.float32(SPEED))) < 0.3


def test_strokes_keep_their_contrast():
    """The mean of independent strokes at strength s = 0.8 has a third of it: (1 - s) / (1 + s) = 1 / 9 of squares."""
    rng = np.random.default_rng(0)
    frame = np.full((64, 96, 3), 0.5, np.float32)
    strokes = [0.5 + ndimage.gaussian_filter(rng.normal(0, 0.5, frame.shape), (1, 1, 0)) for _ in range(12)]
    before = stable.first(frame, np.float32(strokes[0]))
    for each in strokes:
        before, picture = HOLD(before, frame, np.float32(each.clip(0, 1)), strength=0.8)
    assert 0.65 < np.std(picture) / np.std(strokes[-1]) < 1.1
    assert np.abs(picture - np.float32(strokes[-1])).mean() > 0.3 * np.std(strokes)  # and are not the last ones


def test_the_next_frame_of_a_photo_moves_as_told():
    photo = ndimage.gaussian_filter(np.random.default_rng(0).uniform(size=(40, 56, 3)), (1, 1, 0)).astype(np.float32)
    y, x = np.mgrid[:40, :56].astype(float)
    corners = []
    for i in range(8):
        frame, motion = stable.shaken(photo, jax.random.key(i), noise=0.0)
        px, py = x + motion.flow[..., 0], y + motion.flow[..., 1]
        expected = [ndimage.map_coordinates(c, (py, px), order=1, mode="nearest") for c in np.moveaxis(photo, 2, 0)]
        np.testing.assert_allclose(frame, np.stack(expected, 2), atol=1e-4)
        np.testing.assert_array_equal(motion.seen, (px >= -0.5) & (px <= 55.5) & (py >= -0.5) & (py <= 39.5))
        # A shift, a zoom and a turn: straight on, and square.
        right, down = (np.diff(np.stack([px, py], -1), axis=axis) for axis in (1, 0))
        assert max(np.ptp(right, axis=(0, 1)).max(), np.ptp(down, axis=(0, 1)).max()) < 1e-4
        np.testing.assert_allclose(right[0, 0] * [1, -1], down[0, 0][::-1], atol=1e-4)
        zoom, turn = np.linalg.norm(right[0, 0]), np.arctan2(right[0, 0, 1], right[0, 0, 0])
        assert abs(np.log(zoom)) <= stable.ZOOM + 1e-5 and abs(turn) <= stable.TURN + 1e-5
        center = motion.flow[19:21, 27:29].mean((0, 1))
        assert np.abs(center).max() <= stable.SHIFT
        corners.append([*center, np.log(zoom) * 100, turn * 100])
    assert np.std(corners, axis=0).min() > 0.5  # of all kinds, by the key


def test_the_next_frame_has_a_cameras_noise():
    gray = np.full((64, 64, 3), 0.5, np.float32)
    frame, _ = stable.shaken(gray, jax.random.key(0), noise=0.05)
    assert np.std(frame - gray) == pytest.approx(0.05, rel=0.05)
