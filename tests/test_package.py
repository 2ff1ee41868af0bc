"""The package as a whole: what importing it costs, and that nothing runs at import."""

import subprocess
import sys

HEAVY = {
    "jaxopt",
    "tensorflow",
    "tensorflow_datasets",
    "matplotlib",
    "optax",
    "flax",
    "h5py",
    "onnx",
    "torch",
    "pooch",
    "PIL",
}


def imported(module):
    code = f"import sys, {module}; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_losses_import_little_more_than_jax():
    assert not imported("nstjax.losses") & HEAVY


def test_the_package_alone_imports_nothing():
    assert not imported("nstjax") & (HEAVY | {"jax", "numpy"})


def test_importing_solvers_warns_of_nothing():
    command = [sys.executable, "-W", "error", "-c", "import nstjax.solvers"]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""
