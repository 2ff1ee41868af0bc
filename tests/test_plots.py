"""Contact sheets."""

import numpy as np

from nstjax import plots


def test_a_contact_sheet_shows_every_picture_in_its_place():
    red, blue = (np.broadcast_to(np.array(c, np.float32), (30, 20, 3)) for c in ((1, 0, 0), (0, 0, 1)))
    sheet = plots.contact_sheet(
        [[(red, "red"), (blue, "blue")], [(None, ""), (red, "a long label that is cut off")]], cell=64
    )
    h, w, _ = sheet.shape
    middle = [(i, j) for i in (40, 40 + h // 2 - 6) for j in (44, w - 44)]
    colours = [tuple(np.round(sheet[at]).astype(int)) for at in middle]
    assert colours == [(1, 0, 0), (0, 0, 1), (1, 1, 1), (1, 0, 0)]
    assert sheet.min() >= 0 and sheet.max() <= 1


def test_labels_are_written():
    picture = np.ones((10, 10, 3), np.float32)
    plain, labelled = (plots.contact_sheet([[(picture, label)]]) for label in ("", "Starry Night"))
    assert plain.min() == 1
    assert labelled.min() < 0.2
