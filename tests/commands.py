"""What the tests of the studies share: their modules, the commands run in this process, and what they refuse."""

import importlib
import sys
from pathlib import Path

import pytest
import tyro

from nstjax import terminal
from nstjax.studies import runner

ROOT = Path(__file__).parent.parent


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
        tyro.cli(module(name).main)


def assert_refused(study, told, capsys, patch):
    """That study() ends with status 2 and one line that holds `told`, before any run of it begins."""
    patch.setattr(runner, "run", lambda *args, **kwargs: pytest.fail("began to work"))
    with pytest.raises(SystemExit) as error:
        study()
    line = capsys.readouterr().err
    assert error.value.code == 2 and told in line and line.count("\n") == 1
