"""docs/paint.ipynb: stored as it ran, with its images, and its cells from first to last at tiny size."""

import base64
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nstjax import features, images, terminal

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "paint.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_stored_as_it_ran_with_its_images(tmp_path):
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1)) and len(CODE) == 10
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert all(cell["outputs"] for cell in CODE) and not [o for o in outputs if o["output_type"] == "error"]
    shown = [data for output in outputs for kind, data in output.get("data", {}).items() if kind.startswith("image/")]
    assert len(shown) == 8 and NOTEBOOK.stat().st_size < 1_500_000
    for data in shown:
        (tmp_path / "image").write_bytes(base64.b64decode("".join(data)))
        assert Image.open(tmp_path / "image").width > 500


@pytest.mark.trained
@pytest.mark.usefixtures("quickly")
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, narrow_vgg, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "load", lambda *args, **kwargs: narrow_vgg)
    monkeypatch.setattr(terminal, "cache_compilations", lambda: None)
    display = types.ModuleType("IPython.display")
    display.Image = lambda data, **_: data
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    ran: dict = {}
    for number, cell in enumerate(CODE):
        source = "".join(cell["source"])
        if number == 0:
            source, changed = re.subn(r"SIZE, STEPS = \d+, \d+", "SIZE, STEPS = 48, 2", source)
            assert changed == 1
        exec(compile(source, f"cell {number + 1}", "exec"), ran)
    said = capsys.readouterr().out
    assert ran["painted"].shape == (48, 48, 3) and ran["gradient"].shape == (48, 48, 3)
    assert np.abs(ran["painted"] - ran["content"]).mean() > 1e-3
    assert len({image.tobytes() for image in ran["strengths"].values()}) == 3
    assert said.count("Gram matrices") == 3 and said.count("SSIM") == 3 and "nan" not in said
    assert images.load("stylized.png").shape == (48, 48, 3)
