"""experiments/photo.py end to end at tiny size with a narrow network, and what it is made of."""

import os
import signal

import jax
import numpy as np
import pytest
from commands import smooth
from PIL import Image

from nstjax import features, images, matting, metrics, nets, photorealism, weights
from nstjax.nets import io
from nstjax.nets.decoder import LEVELS


def write(path, image):
    Image.fromarray(np.rint(255 * np.asarray(image)).astype(np.uint8)).save(path)
    return path


def halves(shape, left, right):
    mask = np.empty((*shape, 3))
    mask[:, : shape[1] // 2], mask[:, shape[1] // 2 :] = left, right
    return mask


RED, BLUE, WHITE, BLACK, GREEN = (1, 0, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0), (0, 1, 0)


@pytest.fixture
def photos(tmp_path):
    write(tmp_path / "a.png", smooth(1, (48, 64)))
    # The reference is bright orange at the left and dark blue at the right.
    right = 0.2 * smooth(3, (40, 60)) * [0.3, 0.5, 1]
    write(
        tmp_path / "b.png",
        np.where(np.arange(60)[:, None] < 30, 0.6 + 0.4 * smooth(2, (40, 60)) * [1, 0.6, 0.2], right),
    )
    write(tmp_path / "mask_a.png", halves((48, 64), RED, BLUE))
    write(tmp_path / "mask_b.png", halves((40, 60), BLUE, RED))
    return tmp_path


@pytest.fixture
def photo(experiment, photos, quickly):
    """Run the command with the photos; returns the image."""

    def run(*flags, content="a.png"):
        output = photos / "out.png"
        experiment("photo", "--content", photos / content, "--style", photos / "b.png", "--output", output, *flags)
        return images.load(output)

    return run


def masks(folder, *names):
    return [f"--{kind}-mask={folder / name}" for kind, name in zip(("content", "style"), names, strict=True)]


def test_regions_get_the_light_of_their_own(photo, photos, capsys):
    result = photo("--size=64", "--steps=2", *masks(photos, "mask_a.png", "mask_b.png"))
    content, style = images.load(photos / "a.png"), images.load(photos / "b.png")
    assert result.shape == content.shape and "saved" in capsys.readouterr().out
    # Red is left in the content image, and right in the reference.
    for x, y in ((np.s_[:, :28], np.s_[:, 32:]), (np.s_[:, 36:], np.s_[:, :28])):
        before, after = (np.abs(image[x].mean((0, 1)) - style[y].mean((0, 1))).max() for image in (content, result))
        assert after < 0.3 * before
    assert images.metadata(photos / "out.png")["Command"].startswith("python photo.py")


def test_what_is_rendered_is_locally_affine_and_keeps_what_already_is():
    content, style = smooth(1, (48, 64)), smooth(2, (48, 64))
    noise = np.random.default_rng(0).uniform(size=content.shape).astype(np.float32)
    pairs = [(np.ones((48, 64), np.float32),) * 2]
    result = photorealism.rendered(content, content, noise, pairs)
    assert matting.energy(content, result) < 0.01 * matting.energy(content, noise)
    start = photorealism.recolored(content, style, pairs)
    kept = photorealism.rendered(content, content, start, pairs)
    assert np.abs(kept - start).mean() < 0.01


def test_regions_have_functions_of_their_own():
    """A sky that was light becomes dark, and the tower before it stays: no one function of the colors does both."""
    content = np.full((48, 64, 3), 0.8, np.float32)
    content[16:, 24:40] = 0.2
    tower = np.zeros((48, 64), np.float32)
    tower[16:, 24:40] = 1
    painted = np.where(tower[..., None] > 0, 0.2, 0.05) * np.ones(3, np.float32)
    pairs = [(tower, tower), (1 - tower, 1 - tower)]
    apart = photorealism.rendered(content, content, painted.astype(np.float32), pairs)
    np.testing.assert_allclose(apart, painted, atol=0.03)


def test_strength_0_returns_the_photo_and_method_color_is_its_own(photo, photos):
    content = images.load(photos / "a.png")
    np.testing.assert_array_equal(photo("--size=64", "--method=color", "--strength=0"), content)
    color = photo("--size=64", "--method=color")
    assert np.abs(color - content).max() > 0.1
    half = photo("--size=64", "--method=color", "--strength=0.5")
    np.testing.assert_allclose(half, (color + content) / 2, atol=0.03)


def test_large_photos_are_painted_small(photo, photos, monkeypatch):
    monkeypatch.setattr(photorealism, "SIZE", 48)
    seen = []
    monkeypatch.setattr(photorealism, "paint", lambda content, *_, **__: seen.append(content.shape) or iter([]))
    with pytest.raises(SystemExit):
        photo("--size=96")
    assert seen == [(36, 48, 3)]


def test_black_and_white_masks_belong_together_by_their_places(photo, photos):
    write(photos / "left.png", halves((48, 64), WHITE, BLACK))
    write(photos / "right.png", halves((48, 64), BLACK, WHITE))
    wide = [
        write(photos / f"{i}.png", halves((40, 60), *colors))
        for i, colors in enumerate(((BLACK, WHITE), (WHITE, BLACK)))
    ]
    several = photo(
        "--size=64",
        "--method=color",
        "--content-mask",
        photos / "left.png",
        photos / "right.png",
        "--style-mask",
        *wide,
    )
    colored = photo("--size=64", "--method=color", *masks(photos, "mask_a.png", "mask_b.png"))
    np.testing.assert_allclose(several, colored, atol=0.02)


def test_gray_photos_get_colors(photo, photos):
    Image.open(photos / "a.png").convert("L").save(photos / "gray.png")
    result = photo("--size=64", "--method=color", content="gray.png")
    assert np.ptp(result, axis=-1).mean() > 0.05


def refused(photo, capsys, *flags, **more):
    with pytest.raises(SystemExit) as stop:
        photo(*flags, **more)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    return line


def test_bad_masks_are_refused_in_one_line(photo, photos, capsys):
    write(photos / "tall.png", halves((64, 48), RED, BLUE))
    write(photos / "green.png", halves((40, 60), BLUE, GREEN))
    write(photos / "black.png", halves((48, 64), BLACK, BLACK))
    write(photos / "noise.png", np.random.default_rng(0).random((48, 64, 3)))
    assert "another aspect" in refused(photo, capsys, *masks(photos, "tall.png", "mask_b.png"))
    assert "lacks the color #ff0000" in refused(photo, capsys, *masks(photos, "mask_a.png", "green.png"))
    assert "as many as of --content-mask: 1" in refused(photo, capsys, f"--content-mask={photos / 'mask_a.png'}")
    two = ["--content-mask", photos / "mask_a.png", photos / "black.png"]
    line = refused(photo, capsys, *two, "--style-mask", photos / "mask_b.png", photos / "mask_b.png")
    assert "black.png" in line and "all black" in line
    assert "no area of one color" in refused(photo, capsys, *masks(photos, "noise.png", "mask_b.png"))


def test_small_regions_are_skipped_with_a_line_and_unused_colors_are_told(photo, photos, capsys):
    mask, other = halves((48, 64), RED, BLUE), halves((40, 60), BLUE, RED)
    mask[4:8, 4:8], other[:20, :20] = GREEN, GREEN
    write(photos / "small.png", mask), write(photos / "green.png", other)
    photo("--size=64", "--method=color", *masks(photos, "small.png", "green.png"))
    assert "region #00ff00: 16 px" in capsys.readouterr().out
    photo("--size=64", "--method=color", *masks(photos, "mask_a.png", "green.png"))
    assert "has no #00ff00" in capsys.readouterr().out


def test_flags_that_are_wrong_are_refused_and_inputs_stay(photo, photos, capsys):
    assert "--strength" in refused(photo, capsys, "--strength=1.5")
    assert "--steps: would change nothing" in refused(photo, capsys, "--method=color", "--steps=3")
    before = (photos / "a.png").read_bytes()
    assert "is an input" in refused(photo, capsys, f"--output={photos / 'a.png'}")
    assert (photos / "a.png").read_bytes() == before


def test_ctrl_c_saves_the_image_so_far(photo, photos, monkeypatch, capsys):
    """A signal after the first of two steps: what that step painted is rendered and saved."""
    whole, steps = photorealism.paint, []

    def interrupted(*args, **options):
        for progress in whole(*args, **options):
            yield progress
            steps.append(progress.step)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(photorealism, "paint", interrupted)
    with pytest.raises(SystemExit) as stop:
        photo("--size=64", "--steps=5")
    assert stop.value.code == 130 and "stopped by" in capsys.readouterr().out
    content, result = images.load(photos / "a.png"), images.load(photos / "out.png")
    assert steps == [1] and result.shape == content.shape and np.abs(result - content).mean() > 0.05


def test_method_wct_decodes_features_region_by_region(photo, photos, monkeypatch, narrow_vgg):
    """With a narrow network and a random decoder: each region follows its own part of the reference."""
    channels = tuple(narrow_vgg[f"conv{block}_1"]["bias"].shape[0] for block in (3, 2, 1))
    net = nets.Decoder(channels=channels, level=1.0, unpool=True)
    relu4_1 = np.zeros((1, 2, 2, narrow_vgg["conv4_1"]["bias"].shape[0]), np.float32)
    monkeypatch.setattr(io, "load", lambda name: (net, net.init(jax.random.key(0), relu4_1), {}))
    seen = []
    whole = photorealism.decoded
    monkeypatch.setattr(photorealism, "decoded", lambda *args, **by: seen.append(args) or whole(*args, **by))
    result = photo("--size=64", "--method=wct", *masks(photos, "mask_a.png", "mask_b.png"))
    assert result.shape == (48, 64, 3) and np.isfinite(result).all()
    ((_, _, pairs),) = seen
    lefts = sorted((region[:, :28].mean() > 0.5, learned[:, 32:].mean() > 0.5) for region, learned in pairs)
    assert lefts == [(False, False), (True, True)]


def test_the_bundled_decoder_gives_photos_the_light_of_others():
    """With the bundled VGG-19 and decoder: the reference's colors, by locally affine functions of the photo's."""
    net, variables, _ = io.load("wct")
    params = features.load("vgg19", layers=tuple(LEVELS))
    content = images.load(weights.PICTURES / "astronaut.jpg", size=(64, 96))
    style = np.clip(smooth(2, (64, 80)) * [1, 0.6, 0.2], 0, 1).astype(np.float32)
    pairs = [(np.ones(content.shape[:2], np.float32), np.ones(style.shape[:2], np.float32))]
    painted = photorealism.decoded(content, style, pairs, params=params, decoder=net, variables=variables)
    result = photorealism.rendered(content, content, painted, pairs)
    before, after = (np.abs(x.mean((0, 1)) - style.mean((0, 1))).max() for x in (content, result))
    assert after < 0.3 * before
    # The decoder's grain is no function of the photo's colors, and goes.
    assert metrics.edge_ssim(result, content) > 1.5 * metrics.edge_ssim(painted, content)
    assert metrics.outside_affine(result, content) < 0.2 * metrics.outside_affine(painted, content)
    same = photorealism.decoded(content, content, [pairs[0][:1] * 2], params=params, decoder=net, variables=variables)
    assert np.square(same - content).mean() < 0.1 * content.var()
