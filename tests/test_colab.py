"""experiments/colab_tpu.ipynb from its first cell to its last, as on Colab, on virtual devices, with tiny nets."""

import base64
import csv
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import colab_store
import pytest
from coco_archives import jpeg, write_coco
from PIL import Image
from samples import photo

from nstjax import images

pytest.importorskip("grain", reason="training data needs grain (the train extra)")

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "experiments" / "colab_tpu.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]

# Another Python to run it with, without nstjax, and the wheel on the drive: tests/colab_runtime.sh.
PYTHON, WHEEL = os.environ.get("COLAB_PYTHON"), os.environ.get("COLAB_WHEEL")

# Instead of VGG and the whole nets, which take minutes here.
TINY = """
sys.modules.pop("google.colab")  # of which jax would use more
import jax
from nstjax import features, nets
from networks import narrow_vgg as narrow

params = features.prepare(narrow("vgg16"), winograd=False)
features.load = lambda *args, **kwargs: params
nets.NETS["depsep-nn"] = nets.NETS["depsep-nn"].clone(width=4, blocks=1)
"""
PARAMETERS = """
SOURCE, STYLE, ARCHIVES, FOLDER, NET = "", "drive/MyDrive/painting.png", {archives!r}, "styles", "depsep-nn"
DATA, SPLIT, COUNT = {data!r}, "validation", {count}
STEPS, SHOW_EVERY, CROP, BATCH, STYLE_WEIGHT, INIT = {steps}, 2, 32, 8, 1.0, None
"""
# What the notebook uses of Colab.
COLAB = {
    "__init__": "",
    "drive": "def mount(path):\n    assert path.endswith('drive')\n",
    "files": "def upload():\n    return {'photo.png': b''}\n",
}


def test_the_notebook_is_stored_as_it_ran_with_its_images():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    said = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert not re.search(r"(?<![\w.])/\w|https?:|Error|Traceback|nan", said)  # no folders, hosts, errors
    assert not [output for output in outputs if output.get("name") == "stderr"]
    steps, batch = (eval(colab_store.SMALL[names])[i] for names, i in (("STEPS, SHOW_EVERY", 0), ("CROP, BATCH", 1)))
    assert "2 x cpu, jax 0.7.2" in said and f"{steps} steps of {batch} are {steps * batch} images" in said
    story = " ".join("".join(CELLS[0]["source"]).split())
    for names, values in colab_store.SMALL.items():  # the text tells the parameters of the stored run
        assert names.startswith("DATA") or f"`{names} = {values}`" in story
    shown = [output["data"]["image/jpeg"] for output in outputs if "data" in output]
    assert len(shown) == 6 and NOTEBOOK.stat().st_size < 1_000_000  # painting, three sheets, losses, photo
    for data in shown:
        assert Image.open(io.BytesIO(base64.b64decode("".join(data)))).width > 350


def test_the_parameters_are_in_the_first_cell():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    (parameters,) = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    names = {name.strip() for line in PARAMETERS.splitlines()[1:] for name in line.partition(" = ")[0].split(",")}
    given: dict = {}
    exec("".join(parameters["source"]), given)
    assert given.keys() - {"__builtins__"} == names
    assert given["BATCH"] % 8 == 0 and parameters is code[0]


@pytest.fixture
def drive(tmp_path):
    """A drive with a painting, in a folder like Colab's, where a photo was uploaded."""
    for name, code in COLAB.items():
        (tmp_path / "google" / "colab").mkdir(parents=True, exist_ok=True)
        (tmp_path / "google" / "colab" / f"{name}.py").write_text(code)
    photo(tmp_path / "photo.png", 8, size=(48, 40))
    drive = tmp_path / "drive" / "MyDrive"
    drive.mkdir(parents=True)
    photo(drive / "painting.png", 9, size=(40, 40))
    if WHEEL:
        (drive / "styles").mkdir()
        shutil.copy(WHEEL, drive / "styles")
    return drive


def run(drive, *, data, steps, devices, count=None, archives=None):
    """Run the cells with other parameters and return what they print."""
    values = {"data": data, "steps": steps, "count": count, "archives": archives}
    code = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
    cells = [PARAMETERS.format(**values), code[1], TINY, *code[2:]]  # the second installs nstjax
    here = drive.parent.parent
    (here / "notebook.py").write_text("\n\n".join(cells))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT / "tests"] if PYTHON else [ROOT / "tests", ROOT])),
        "MPLBACKEND": "agg",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(here / "compiled"),
    }
    done = subprocess.run([PYTHON or sys.executable, "notebook.py"], cwd=here, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return done.stdout.decode()


def test_the_notebook_trains_shows_and_stylizes_and_resumes_on_another_kind_of_tpu(drive):
    for i in range(6):
        photo(drive / "photos" / f"{i}.png", i, size=(48, 40))
    said = run(drive, data="drive/MyDrive/photos", steps=2, devices=8)
    assert "8 x cpu" in said and "after 2 of 2 steps" in said
    assert "2 steps of 8 are 16 images: 2.67 epochs of 6 photos" in said
    checkpoints = drive / "styles" / "checkpoints" / "painting"
    assert (checkpoints / "sample-00000002.jpg").exists()
    stylized = images.load(drive / "styles" / "photo, painting.png")
    assert stylized.shape == (107, 128, 3) and stylized.std() > 1e-3
    said = run(drive, data="drive/MyDrive/photos", steps=3, devices=1)
    assert "1 x cpu" in said and "after 3 of 3 steps" in said
    with open(checkpoints / "loss.csv") as file:
        assert [int(float(row["step"])) for row in csv.DictReader(file)] == [1, 2, 3]
    with Image.open(checkpoints / "sample-00000003.jpg") as sheet:
        assert sheet.width > 4 * 32 and sheet.height > 2 * 32  # four photos, and above or below, stylized


@pytest.mark.skipif(
    not PYTHON and not all(map(importlib.util.find_spec, ("tensorflow", "importlib_resources"))),
    reason='TFDS needs TensorFlow to prepare COCO: pip install "nstjax[prepare]"',
)
def test_the_notebook_prepares_coco_once_and_keeps_it_on_the_drive(drive):
    flat = [jpeg(Image.new("RGB", (60, 40), (20 * i, 100, 40))) for i in range(6)]
    write_coco(drive / "archives", {"val2017": flat})
    said = run(drive, data="coco", count=4, steps=1, devices=1, archives="drive/MyDrive/archives")
    assert "1 steps of 8 are 8 images: 2.00 epochs of 4 photos" in said and "after 1 of 1 steps" in said
    # The next machine has nothing but the drive.
    shutil.rmtree(drive.parent.parent / "tfds")
    shutil.rmtree(drive / "archives")
    assert "after 2 of 2 steps" in run(drive, data="coco", count=4, steps=2, devices=1)
