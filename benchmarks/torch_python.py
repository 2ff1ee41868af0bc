"""The Python with Torch that benchmarks run beside this one: an environment of its own."""

import subprocess
import sys

PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "ml_dtypes": "ml_dtypes",  # for safetensors to read arrays for numpy; elsewhere it comes with jax
}


def check(python: str) -> None:
    """Exit with status 2 and one line unless `python`, a program, starts and has all PACKAGES."""
    code = f"import importlib.util as u; print(*[name for name in {list(PACKAGES)} if u.find_spec(name) is None])"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"--torch-python {python}: is no Python that starts ({error})", file=sys.stderr)
        sys.exit(2)
    if missing := [PACKAGES[name] for name in found.split()]:
        names = " ".join(missing)
        print(f"--torch-python {python}: lacks {names}: {python} -m pip install {names}", file=sys.stderr)
        sys.exit(2)
