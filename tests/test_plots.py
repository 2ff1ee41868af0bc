"""Contact sheets."""

import numpy as np
import pytest

from nstjax import plots


def test_a_contact_sheet_shows_every_picture_in_its_place():
    red, blue = (np.broadcast_to(np.array(c, np.float32), (30, 20, 3)) for c in ((1, 0, 0), (0, 0, 1)))
    sheet = plots.contact_sheet(
        [[(red, "red"), (blue, "blue")], [(None, ""), (red, "a long label that is cut off")]], cell=64
    )
    h, w, _ = sheet.shape
    middle = [(i, j) for i in (27, 27 + (h - 12) // 2) for j in (44, w - 44)]  # rows are as high as their images
    colours = [tuple(np.round(sheet[at]).astype(int)) for at in middle]
    assert colours == [(1, 0, 0), (0, 0, 1), (1, 1, 1), (1, 0, 0)]
    assert sheet.min() >= 0 and sheet.max() <= 1


def test_labels_are_written():
    picture = np.ones((10, 10, 3), np.float32)
    plain, labelled = (plots.contact_sheet([[(picture, label)]]) for label in ("", "Starry Night"))
    assert plain.min() == 1
    assert labelled.min() < 0.2


@pytest.mark.parametrize(
    ("label", "drawn"),
    [
        ("α = 300", "alpha = 300"),
        ("5×10⁻⁶ at 128 px", "5x10^-6 at 128 px"),
        ("λ², σ", "lambda^2, sigma"),
        ("Café", "Café"),
    ],
)
def test_labels_that_the_font_lacks_are_spelled_out(label, drawn):
    picture = np.ones((10, 10, 3), np.float32)
    sheets = [plots.contact_sheet([[(picture, each)]]) for each in (label, drawn)]
    np.testing.assert_array_equal(*sheets)
    assert sheets[0].min() < 0.2
