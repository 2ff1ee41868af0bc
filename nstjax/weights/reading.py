"""Named arrays from files of other libraries: .safetensors, .npz, .h5, .onnx and Torch's, none of which are trusted.

No file can run code, include data of another file, or unpack to more than a limit.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nstjax import files
from nstjax.errors import InputError, reason
from nstjax.optional import needed
from nstjax.weights import torchfile

MAX_BYTES = 2**31  # twice the size of the largest network with its dense layers, in double precision

Wanted = Callable[[str], object]


def read(path: str | os.PathLike[str], wanted: Wanted = lambda name: True) -> dict[str, np.ndarray]:
    """Return the arrays of a .safetensors, .npz, .h5, .onnx, .pth, .pt or .bin file whose names are `wanted`.

    A text "preprocessing" in the metadata of a .safetensors file counts as one of them. bfloat16 becomes float32.

    Raises:
        InputError: one line that names the file, if it is missing, damaged or dangerous.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise files.refusal(path, f"is no {', '.join(READERS)} file (and not: bundled, keras, torchvision, random)")
    try:
        path.stat()
        if not path.is_file():
            raise files.refusal(path, "is not a file; give the name of one")
        return {name: _plain(np.asarray(array)) for name, array in READERS[suffix](path, wanted).items()}
    except InputError:
        raise
    except OSError as error:
        raise files.refusal(path, f"cannot be read ({reason(error)}); check the path and the file") from error
    except ImportError as error:  # of a package that a reader imports while it reads
        package = (error.name or "").partition(".")[0]
        advice = f"pip install {package}" if package else "install it again"
        raise files.refusal(path, f"a package to read it is missing or broken ({reason(error)}): {advice}") from error
    except Exception as error:  # a damaged file makes each library's reader fail in its own ways
        raise files.refusal(path, f"is not an intact {suffix} file ({reason(error)}); download it again") from error


def _plain(array: np.ndarray) -> np.ndarray:
    """bfloat16 as float32, since numpy treats it as a kind of its own rather than as a float."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _check_size(size: int) -> None:
    if size > MAX_BYTES:  # small compressed files could unpack to more than the memory
        raise ValueError(f"it would unpack to {size / 2**30:.0f} GiB, more than any of the networks")


def _read_safetensors(path: Path, wanted: Wanted) -> dict[str, Any]:
    safetensors = needed("safetensors", f"{path}: reading it", "safetensors")
    needed("ml_dtypes", f"{path}: reading it", "ml_dtypes")  # comes with jax, and teaches numpy bfloat16
    with safetensors.safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118 (it is no dict)
        arrays = {name: file.get_tensor(name) for name in names}
        about = file.metadata() or {}
    return arrays | {name: np.array(text) for name, text in about.items() if name == "preprocessing"}


def _read_npz(path: Path, wanted: Wanted) -> dict[str, Any]:
    # np.load itself leaves a damaged file open.
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
        _check_size(sum(member.file_size for member in file.zip.infolist()))
        return {name: file[name] for name in file.files if wanted(name)}


def _read_h5(path: Path, wanted: Wanted) -> dict[str, Any]:
    h5py = needed("h5py", f"{path}: reading it", '"nstjax[convert]"')
    datasets: dict[str, Any] = {}
    links: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            datasets[name] = item

    def visit_link(name: str, link: Any) -> None:
        if not isinstance(link, h5py.HardLink):
            links.append(name)

    with h5py.File(path) as file:
        file.visititems(visit)  # follows none of the links
        file.visititems_links(visit_link)
        # Any of these could include data of any other file that the user can read.
        links += [name for name, item in datasets.items() if item.external or item.is_virtual]
        if links:
            raise ValueError(f"its {links[0]!r} refers to something else, maybe in another file")
        found = {name: item for name, item in datasets.items() if wanted(name)}
        for name, item in found.items():
            _check_filters(name, item.id.get_create_plist())
        _check_size(sum(item.nbytes for item in found.values()))
        return {name: item[()] for name, item in found.items()}


def _check_filters(name: str, properties: Any) -> None:
    """Allow only HDF5's own filters (1 to 6) and h5py's LZF: for any other, HDF5 would load a plugin's code."""
    for number in range(properties.get_nfilters()):
        code = properties.get_filter(number)[0]
        if code not in (1, 2, 3, 4, 5, 6, 32000):
            raise ValueError(f"its {name!r} is compressed by a plugin (filter {code})")


def _read_onnx(path: Path, wanted: Wanted) -> dict[str, Any]:
    onnx = needed("onnx", f"{path}: reading it", '"nstjax[convert]"')
    to_array = needed("onnx.numpy_helper", f"{path}: reading it", '"nstjax[convert]"').to_array
    tensors = [t for t in onnx.load(path, load_external_data=False).graph.initializer if wanted(t.name)]
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors):
        raise ValueError("its numbers are in another file")
    return {t.name: to_array(t) for t in tensors}


READERS: dict[str, Callable[[Path, Wanted], dict[str, Any]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".onnx": _read_onnx,
    ".pth": torchfile.load,
    ".pt": torchfile.load,
    ".bin": torchfile.load,
}
