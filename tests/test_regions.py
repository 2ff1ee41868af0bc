"""Masks of one color for each region."""

import numpy as np
import pytest

from nstjax import regions
from nstjax.errors import InputError

RED, WHITE, BLACK, GREEN = ([1.0, 0, 0], [1.0, 1, 1], [0.0, 0, 0], [0.0, 1, 0])


def halves(left, right, shape=(20, 30)):
    mask = np.empty((*shape, 3), np.float32)
    mask[:, : shape[1] // 2], mask[:, shape[1] // 2 :] = left, right
    return mask


def test_colors_pair_the_regions_of_two_masks():
    found = regions.paired(halves(RED, BLACK), halves(BLACK, RED, (12, 16)))
    assert sorted(region.name for region in found) == ["#000000", "#ff0000"]
    for name, content, style in found:
        assert content.shape == (20, 30) and style.shape == (12, 16)
        assert (content[:, :15] == (name == "#ff0000")).all() and (content[:, 15:] == (name == "#000000")).all()
        assert (style[:, 8:] == (name == "#ff0000")).all()


def test_soft_edges_and_jpegs_noise_make_no_regions():
    rng = np.random.default_rng(0)
    mask = halves(WHITE, BLACK)
    mask[:, 15] = 0.5  # antialiased
    mask = np.clip(mask + rng.integers(-3, 4, mask.shape) / 255, 0, 1).astype(np.float32)
    style = halves([0.98, 1, 0.99], [0.02, 0, 0.01])
    found = regions.paired(mask, style)
    assert len(found) == 2
    np.testing.assert_array_equal(sum(region.content for region in found), 1)


def test_a_color_that_the_style_lacks_is_rejected_by_name_and_one_that_it_has_alone_is_told():
    with pytest.raises(InputError, match="b.png: lacks the color #ff0000 of a.png"):
        regions.paired(halves(RED, WHITE), halves(GREEN, WHITE), names=("a.png", "b.png"))
    with pytest.raises(InputError, match="lacks colors #(ff0000, #000000|000000, #ff0000) of"):
        regions.paired(halves(RED, BLACK), halves(GREEN, WHITE))
    three = np.concatenate([halves(RED, WHITE), halves(GREEN, GREEN)])
    assert len(regions.paired(halves(RED, WHITE), three)) == 2
    assert regions.unused(halves(RED, WHITE), three) == ["#00ff00"]


def test_what_is_no_mask_is_rejected():
    noise = np.random.default_rng(0).random((40, 40, 3)).astype(np.float32)
    with pytest.raises(InputError, match="b.png: has no area of one color"):
        regions.paired(noise, noise, names=("photo.png", "b.png"))
    tiles = np.random.default_rng(0).permutation(np.stack(np.meshgrid(*[[0, 0.3, 0.6, 0.9]] * 3), -1).reshape(-1, 3))
    many = np.kron(tiles.reshape(8, 8, 3), np.ones((4, 4, 1))).astype(np.float32)
    with pytest.raises(InputError, match="more than 32 colors"):
        regions.palette(many, "many.png")


def test_a_single_pixel_belongs_to_what_is_nearest_and_small_regions_are_skipped():
    mask = halves(RED, WHITE)
    mask[5, 5] = GREEN
    assert len(regions.palette(mask, "a")) == 2
    mask[8:12, 20:24] = [0, 0, 1]
    kept, lines = regions.large_enough(regions.paired(mask, mask))
    assert [region.name for region in kept] == ["#ff0000", "#ffffff"]
    (line,) = lines
    assert line.startswith("region #0000ff: 16 px")
    with pytest.raises(InputError, match="there is no other"):
        regions.large_enough(regions.paired(mask, mask), least=1000)
