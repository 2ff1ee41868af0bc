"""docs/paint.ipynb: stored as it ran, with its images, and its cells from first to last at tiny size."""

import base64
import io
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nstjax import features, images, recipes, terminal

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "paint.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_stored_as_it_ran_with_its_images():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1)) and len(CODE) == 10
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert all(cell["outputs"] for cell in CODE) and not [o for o in outputs if o["output_type"] == "error"]
    shown = [data for output in outputs for kind, data in output.get("data", {}).items() if kind.startswith("image/")]
    assert not [output for output in outputs if output.get("name") == "stderr"]  # it would name folders
    assert len(shown) == 8 and NOTEBOOK.stat().st_size < 1_500_000
    for data in shown:
        assert Image.open(io.BytesIO(base64.b64decode("".join(data)))).width > 500


@pytest.mark.trained
@pytest.mark.usefixtures("quickly")
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, narrow_vgg, capsys):
    pytest.importorskip("matplotlib", reason="the notebook draws curves (the plots extra)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "load", lambda *args, **kwargs: narrow_vgg)
    monkeypatch.setattr(terminal, "cache_compilations", lambda: None)
    display = types.ModuleType("IPython.display")
    display.Image = lambda data, **_: data
    shallow = {"content_layers": ("relu2_2",), "style_layers": ("relu1_1", "relu2_1"), "style_layer_weights": ()}
    monkeypatch.setitem(recipes.PRESETS, "fast", recipes.PRESETS["fast"]._replace(**shallow))  # compiles sooner
    ipython = types.ModuleType("IPython")
    ipython.version_info = (9, 0)  # matplotlib asks for it
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    ran: dict = {}
    for number, cell in enumerate(CODE):
        source = "".join(cell["source"])
        if number == 0:
            source, changed = re.subn(r"SIZE, STEPS = \d+, \d+", "SIZE, STEPS = 48, 3", source)
            assert changed == 1
        exec(compile(source, f"cell {number + 1}", "exec"), ran)
    said = capsys.readouterr().out
    assert ran["painted"].shape == (48, 48, 3) and ran["gradient"].shape == (48, 48, 3)
    assert np.abs(ran["painted"] - ran["content"]).mean() > 1e-3
    assert len({image.tobytes() for image in ran["strengths"].values()}) == 3
    assert said.count("Gram matrices") == 3 and said.count("SSIM") == 3 and "nan" not in said
    assert images.load("stylized.png").shape == (48, 48, 3)
