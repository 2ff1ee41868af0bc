"""Run experiments/colab_tpu.ipynb at a small size and store in it what it shows; tests/colab_runtime.sh calls it.

The cells run as they are, in a folder of their own that has nstjax's wheel, but for the first, whose parameters are
SMALL. What they print and show is stored, images as JPEGs; messages on stderr are not, as they name folders.

python tests/colab_store.py WHEEL PHOTOS...
"""

import base64
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

NOTEBOOK = Path(__file__).parent.parent / "experiments" / "colab_tpu.ipynb"
SMALL = {
    "DATA, SPLIT, COUNT": '"photos", None, None',
    "INIT": '"starry_night"',
    "STEPS, SHOW_EVERY": "90, 30",
    "CROP, BATCH": "128, 4",
}
DEVICES = 2


def smaller(source):
    """The first cell with SMALL's parameters."""
    for names, values in SMALL.items():
        source, changed = re.subn(rf"^{names} = .*$", f"{names} = {values}", source, flags=re.MULTILINE)
        assert changed == 1, names
    return source


def stored(output):
    """An output without its number, its image as a JPEG."""
    if "data" in output:
        output.metadata = {}
        if png := output.data.pop("image/png", None):
            file = io.BytesIO()
            Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").save(file, "JPEG", quality=85, optimize=True)
            output.data = {"image/jpeg": base64.b64encode(file.getvalue()).decode()}
    return output


def main(wheel, *photos):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, 4)
    ran = nbformat.read(NOTEBOOK, 4)
    parameters = next(cell for cell in ran.cells if cell.cell_type == "code")
    parameters.source = smaller(parameters.source)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    with tempfile.TemporaryDirectory() as folder:
        for name, paths in {"styles": [wheel], "photos": photos}.items():
            Path(folder, name).mkdir()
            for path in paths:
                shutil.copy(path, Path(folder, name))
        NotebookClient(ran, timeout=3600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    for cell, done in zip(notebook.cells, ran.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = done.execution_count
            cell.outputs = [stored(each) for each in done.outputs if each.get("name") != "stderr"]
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main(*sys.argv[1:])
