"""experiments/colab_tpu.ipynb from its first cell to its last, on eight virtual devices, with tiny nets."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from samples import photo as photograph

from nstjax import images

ROOT = Path(__file__).parent.parent
CELLS = json.loads((ROOT / "experiments" / "colab_tpu.ipynb").read_text())["cells"]

# Instead of VGG and the whole nets, which take minutes here.
TINY = """
import jax
from nstjax import features, nets
from networks import narrow_vgg as narrow

params = features.prepare(narrow("vgg16"), winograd=False)
features.load = lambda *args, **kwargs: params
nets.NETS["depsep-nn"] = nets.NETS["depsep-nn"].clone(width=4, blocks=1)
"""
PARAMETERS = """
SOURCE, STYLE, DATA, FOLDER, NET = "", {style!r}, {data!r}, {folder!r}, "depsep-nn"
STEPS, SHOW_EVERY, CROP, BATCH, STYLE_WEIGHT = {steps}, 2, 32, 1, 1.0
"""


def test_the_notebook_is_kept_without_results():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    (parameters,) = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    names = {name.strip() for line in PARAMETERS.splitlines()[1:] for name in line.partition(" = ")[0].split(",")}
    given: dict = {}
    exec("".join(parameters["source"]), given)
    assert given.keys() - {"__builtins__"} == names


def test_the_notebook_trains_shows_and_paints_and_goes_on(tmp_path):
    pytest.importorskip("grain", reason="training data needs grain (the train extra)")
    for i in range(6):
        photograph(tmp_path / "photos" / f"{i}.png", i, size=(48, 40))
    painting = photograph(tmp_path / "painting.png", 9, size=(40, 40))
    values = {"style": str(painting), "data": str(tmp_path / "photos"), "folder": str(tmp_path / "drive")}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "MPLBACKEND": "agg",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
    }

    def run(steps):
        cells = [TINY]
        for cell in CELLS:
            if cell["cell_type"] == "code":
                parameters = "parameters" in cell["metadata"].get("tags", [])
                cells.append(PARAMETERS.format(steps=steps, **values) if parameters else "".join(cell["source"]))
        (tmp_path / "notebook.py").write_text("\n\n".join(cells))
        done = subprocess.run([sys.executable, "notebook.py"], cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return done.stdout.decode()

    said = run(steps=2)
    assert "8 x cpu" in said and "after 2 of 2 steps" in said
    drive = tmp_path / "drive"
    checkpoints = drive / "checkpoints" / "painting"
    assert (checkpoints / "sample-00000002.jpg").exists()
    painted = images.load(drive / "astronaut, painting.png")
    assert painted.shape == (128, 128, 3) and painted.std() > 1e-3
    # Run again with more steps, it goes on.
    assert "after 3 of 3 steps" in run(steps=3)
    with open(checkpoints / "loss.csv") as file:
        assert [int(float(row["step"])) for row in csv.DictReader(file)] == [1, 2, 3]
    with Image.open(checkpoints / "sample-00000003.jpg") as picture:
        assert picture.width > 4 * 32 and picture.height > 2 * 32  # four photographs, and above or below, painted
