"""Where weights come from: bundled with the package, downloaded with a checksum, or read from a file.

Whatever the source, `load` returns one form: kernels [3, 3, in, out] and biases of `conv(image - mean)` for an RGB
image in [0, 1]. Caffe's and Torchvision's preprocessing are folded into the first kernel; the mean stays apart, since
zeros are padded after its subtraction.
"""

import hashlib
import importlib
import json
import os
import re
from pathlib import Path

import numpy as np

from nstjax import torchfile
from nstjax.errors import InputError

# Convolutions in each of the five blocks, and their channels (Simonyan and Zisserman 2015, table 1, columns D and E).
BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)

# What the networks expect: (picture in [0, 1], RGB) * scale - offset, channels in RGB order or reversed.
CAFFE_MEAN = np.array([123.68, 116.779, 103.939], np.float32) / 255
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)

KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
TORCHVISION_URL = "https://download.pytorch.org/models"
# The official files: name, checksum (Torchvision publishes only the start of its SHA-256, in the name), bytes.
DOWNLOADS = {
    ("vgg16", "keras"): (
        "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5:6d6bbae143d832006294945121d1f1fc",
        58_889_256,
    ),
    ("vgg19", "keras"): (
        "vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5:253f8cb515780f3b799900260a226db6",
        80_134_624,
    ),
    ("vgg16", "torchvision"): ("vgg16-397923af.pth", "sha256:397923af", 553_433_881),
    ("vgg19", "torchvision"): ("vgg19-dcbb9e9d.pth", "sha256:dcbb9e9d", 574_673_361),
}


def load(network, source="bundled"):
    """Weights {"mean": [3], "conv1_1": {"kernel": [3, 3, in, out], "bias": [out]}, ...}, float32 numpy arrays.

    network: "vgg16" or "vgg19". source: "bundled"; "keras" or "torchvision", downloaded once; or a .h5, .pth, .onnx,
    .npz or .safetensors file, whose preprocessing is told by its names (features.0.weight: Torchvision's; others:
    Caffe's). Raises InputError with one line that names the file.
    """
    if network not in BLOCKS:
        raise InputError(f"no network {network!r}; there are {', '.join(BLOCKS)}")
    if source == "bundled":
        path = bundled(f"{network}.safetensors")
    elif source in ("keras", "torchvision"):
        path = download(network, source)
    else:
        path = Path(source)
    return assemble(path, read(path), network)


def bundled_folder():
    """The folder of the bundled weights: beside the code in an installed wheel, at the top of a checkout."""
    installed = Path(__file__).parent / "bundled"
    return installed if installed.exists() else Path(__file__).parent.parent / "weights"


def bundled(name):
    """Path of a bundled file, after comparing its SHA-256 with the manifest's."""
    path = bundled_folder() / name
    try:
        expected = json.loads((bundled_folder() / "manifest.json").read_text())[name]["sha256"]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: the bundled weights are missing or unreadable ({error}); install nstjax again"
        ) from error
    if found != expected:
        raise InputError(
            f"{path}: the bundled weights are changed or cut short (checksum); restore them or install nstjax again"
        )
    return path


def download(network, source):
    """Path of an official file in the cache ($NSTJAX_CACHE or the user's own), downloaded if it is not there yet."""
    import pooch

    name, checksum, size = DOWNLOADS[network, source]
    url = f"{KERAS_URL if source == 'keras' else TORCHVISION_URL}/{name}"
    folder = os.environ.get("NSTJAX_CACHE") or pooch.os_cache("nstjax")
    algorithm, expected = checksum.split(":")

    def verify(path, action, downloader):
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if not found.startswith(expected) or os.path.getsize(path) != size:
            os.remove(path)
            raise ValueError("the file is damaged (checksum) and was removed; try again")
        return path

    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, None, fname=Path(name).name, path=folder, processor=verify, progressbar=True))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot download {url}: {_line(error)}; with the file at hand, use --weights PATH, or --weights bundled"
        ) from error


def read(path):
    """The arrays {name: array} in a .safetensors, .npz, .h5, .onnx, .pth, .pt or .bin file; InputError if unreadable."""
    readers = {
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        ".h5": _read_h5,
        ".hdf5": _read_h5,
        ".onnx": _read_onnx,
        ".pth": torchfile.load,
        ".pt": torchfile.load,
        ".bin": torchfile.load,
    }
    if path.suffix not in readers:
        raise InputError(f"{path}: weights are read from {', '.join(readers)} files (or: bundled, keras, torchvision)")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        return readers[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # a damaged file makes each library's reader fail in its own ways
        raise InputError(f"{path}: not a readable {path.suffix} file: {_line(error)}") from error


def assemble(path, arrays, network):
    """The tree that `load` returns, from a file's arrays by any of the usual names; the path is for the messages."""
    torchvision = any(name.startswith("features.") for name in arrays)
    rename = _torchvision_layers(network) if torchvision else {}
    found: dict[str, dict] = {}
    for name, array in arrays.items():
        layer = rename.get(name.rpartition(".")[0]) if torchvision else layer_of(name)
        if layer:
            found.setdefault(layer, {})[kind_of(name, array)] = array
    tree: dict = {"mean": IMAGENET_MEAN if torchvision else CAFFE_MEAN}
    for layer, shape in shapes(network).items():
        tree[layer] = _convolution(path, layer, found.get(layer, {}), shape)
    first = tree["conv1_1"]
    # RGB in [0, 1] -> what the network expects: divided by the deviation, or BGR in 0..255.
    first["kernel"] = (
        first["kernel"] / IMAGENET_STD[:, None] if torchvision else first["kernel"][:, :, ::-1] * np.float32(255)
    )
    return tree


def shapes(network):
    """{layer: kernel shape [3, 3, in, out]} of a network's convolutions, in order."""
    result, before = {}, 3
    for block, (count, channels) in enumerate(zip(BLOCKS[network], CHANNELS, strict=True), 1):
        for i in range(1, count + 1):
            result[f"conv{block}_{i}"] = (3, 3, before, channels)
            before = channels
    return result


def _torchvision_layers(network):
    """{"features.0": "conv1_1", ...}: Torchvision numbers convolutions, ReLUs and pools in one sequence."""
    names, number = {}, 0
    for block, count in enumerate(BLOCKS[network], 1):
        for i in range(1, count + 1):
            names[f"features.{number}"] = f"conv{block}_{i}"
            number += 2
        number += 1
    return names


def layer_of(name):
    """ "conv1_2" of "block1_conv2/kernel:0", "conv1_2/bias" and the like, or None."""
    match = re.search(r"block(\d)_conv(\d)", name) or re.search(r"conv(\d)_(\d)", name)
    return match and f"conv{match[1]}_{match[2]}"


def kind_of(name, array):
    if array.dtype == np.uint8:
        return "codes"
    if name.endswith(("palette", "_W_table")):
        return "palette"
    return "bias" if array.ndim == 1 else "kernel"


def _convolution(path, layer, parts, shape):
    """{"kernel", "bias"} in float32, from a kernel in either layout, or from its codes and palette."""
    if "codes" in parts and "palette" in parts and parts["codes"].max() < len(parts["palette"]):
        parts = parts | {"kernel": parts["palette"][parts["codes"]]}
    if "kernel" not in parts or "bias" not in parts:
        raise InputError(f"{path}: no weights of {layer}; is it a file of another network?")
    kernel, bias = parts["kernel"], parts["bias"]
    if kernel.shape == (shape[3], shape[2], 3, 3):
        kernel = kernel.transpose(2, 3, 1, 0)
    if kernel.shape != shape or bias.shape != shape[3:]:
        raise InputError(f"{path}: the kernel of {layer} is {kernel.shape}, but {shape} is expected: another network?")
    kernel, bias = np.ascontiguousarray(kernel, np.float32), np.asarray(bias, np.float32)
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise InputError(f"{path}: the weights of {layer} are not all finite numbers")
    return {"kernel": kernel, "bias": bias}


def _read_safetensors(path):
    from safetensors.numpy import load_file

    return load_file(path)


def _read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _read_h5(path):
    arrays = {}
    with _extra("h5py", path).File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if hasattr(item, "dtype") else None)
    return arrays


def _read_onnx(path):
    onnx = _extra("onnx", path)
    numpy_helper = importlib.import_module("onnx.numpy_helper")
    return {
        each.name: numpy_helper.to_array(each) for each in onnx.load(path, load_external_data=False).graph.initializer
    }


def _extra(package, path):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f'{path}: reading it needs {package}: pip install "nstjax[convert]"') from error


def _line(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__
