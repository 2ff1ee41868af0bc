"""What the tests of the experiments share: their modules, the commands run in this process, networks, images."""

import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro
from networks import narrow_vgg
from PIL import Image

from nstjax import features, terminal
from nstjax.studies import runner

ROOT = Path(__file__).parent.parent
PARAMS = {name: features.prepare(narrow_vgg(name), winograd=False) for name in ("vgg19", "vgg16")}


def smooth(seed, shape=(32, 40)):
    """A smooth random image [h, w, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC), np.float32) / 255


def module(name):
    """A module of experiments/, whose folder is on the path only while it is imported."""
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def run(patch, name, *flags):
    """Run experiments/`name`.py with flags; `patch` is a pytest.MonkeyPatch."""
    patch.setattr(sys, "argv", [f"experiments/{name}.py", *map(str, flags)])
    with terminal.refusals(f"{name}.py"):
        main = module(name).main
        tyro.cli(main) if inspect.signature(main).parameters else main()


def assert_refused(study, told, capsys, patch):
    """That study() ends with status 2 and one line that holds `told`, before any run of it begins."""
    patch.setattr(runner, "run", lambda *args, **kwargs: pytest.fail("began to work"))
    with pytest.raises(SystemExit) as error:
        study()
    line = capsys.readouterr().err
    assert error.value.code == 2 and told in line and line.count("\n") == 1
