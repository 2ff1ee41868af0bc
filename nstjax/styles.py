"""Trained transform nets: one safetensors file each, bundled in weights/styles or made by experiments/train_*.py.

Others' nets are read too (`nstjax.foreign`).
"""

import json
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

from nstjax import files, foreign, nets
from nstjax.errors import InputError
from nstjax.weights import bundled, bundled_folder


def save(path, variables, about):
    """Write a net's variables in half precision, whole or not at all. about: {"net": a name in `nets.NETS`, ...}."""
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float16)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    files.write(path, safetensors.numpy.save(arrays, metadata={"nstjax": json.dumps(about)}))


def load(style):
    """(net, variables in single precision, about) of a bundled style's name or a file.

    InputError, one line, for names and files that are none, and for files that are damaged or of another net.
    """
    path = Path(style)
    if not path.suffix:
        there = sorted(each.stem for each in (bundled_folder() / "styles").glob("*.safetensors"))
        if str(style) not in there:
            raise InputError(
                f"no style {str(style)!r}; there are {', '.join(there) or 'none'}, or name a .safetensors file"
            )
        path = bundled(f"styles/{style}.safetensors")
    files.check_file(path, "name a bundled style, or a file that training wrote")
    if path.suffix.lower() in foreign.SUFFIXES:
        return foreign.load(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {})["nstjax"])
        net = nets.NETS[about["net"]]
    except (OSError, safetensors.SafetensorError, LookupError, TypeError, ValueError) as error:
        raise files.refusal(path, f"is no trained style, or is damaged ({type(error).__name__})") from error
    variables: dict = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        inner = variables
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = array
    return net, variables, about
