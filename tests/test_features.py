"""SqueezeNet, ResNet-50, DenseNet-121 and ViT-B/16 against numpy, Torch and Keras, from files in the official layouts.

The numpy oracles compute from the files' own arrays, layer by layer in float64, batch norms apart: they know nothing of
how `nstjax` names, folds or turns them. Most tests narrow the networks to a few channels and blocks.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf
from torch_files import refused, torch_legacy, torch_zip

from nstjax import features, losses, objectives, weights
from nstjax.errors import InputError
from nstjax.features import densenet, layers, resnet, squeezenet, vit

OTHERS = ("squeezenet11", "efficientnet_lite0", "resnet50", "densenet121", "vit_b16")


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(squeezenet, "SQUEEZED", {f"fire{i}": 2 + i // 4 for i in range(2, 10)})
    monkeypatch.setattr(resnet, "WIDTH", 4)
    monkeypatch.setattr(resnet, "BLOCKS", (1, 2, 2, 1))
    monkeypatch.setattr(densenet, "GROWTH", 4)
    monkeypatch.setattr(densenet, "BLOCKS", (2, 1, 2, 1))
    monkeypatch.setattr(vit, "WIDTH", 24)
    monkeypatch.setattr(vit, "DEPTH", 2)


def narrow_vgg(least):
    return {
        network: tuple(block._replace(channels=least + i) for i, block in enumerate(blocks))
        for network, blocks in features.vgg.BLOCKS.items()
    }


def picture(h, w, seed=1):
    return np.random.default_rng(seed).uniform(size=(h, w, 3)).astype(np.float32)


def assert_same(found, expected, tolerance=2e-4):
    for name, x in expected.items():
        assert found[name].shape == x.shape, name
        assert np.abs(found[name] - x).max() < tolerance * np.abs(x).max(), name


# Files' arrays by their official names


class Arrays:
    """Random arrays {name: array} of a network's file, in Torch's order or Keras's."""

    def __init__(self, *, torch, seed=0):
        self.torch, self.arrays, self.rng = torch, {}, np.random.default_rng(seed)

    def put(self, name, shape, low=None, high=None):
        values = self.rng.normal(0, 0.1, shape) if low is None else self.rng.uniform(low, high, shape)
        self.arrays[name] = values.astype(np.float32)

    def conv(self, name, size, before, after, *, bias=False):
        shape = (size, size, before, after)
        kernel = self.rng.normal(0, (2 / (size * size * before)) ** 0.5, shape).astype(np.float32)
        if self.torch:
            self.arrays[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        else:
            self.arrays[f"{name}/kernel"] = kernel
        if bias:
            self.put(f"{name}.bias" if self.torch else f"{name}/bias", (after,))

    def norm(self, name, channels):
        kinds = {"gamma": (0.5, 1.5), "beta": (-0.3, 0.3), "moving_mean": (-0.3, 0.3), "moving_variance": (0.3, 2)}
        torchs = ("weight", "bias", "running_mean", "running_var")
        for (kind, span), torch in zip(kinds.items(), torchs, strict=True):
            self.put(f"{name}.{torch}" if self.torch else f"{name}/{kind}", (channels,), *span)
        if self.torch:
            self.arrays[f"{name}.num_batches_tracked"] = np.zeros((), np.float32)


def resnet_arrays(*, torch, width=4, counts=(1, 2, 2, 1)):
    a = Arrays(torch=torch)
    a.conv("conv1" if torch else "conv1_conv", 7, 3, width, bias=not torch)
    a.norm("bn1" if torch else "conv1_bn", width)
    before = width
    for stage, count in enumerate(counts):
        for i in range(count):
            inner = width * 2**stage
            shapes = [(1, before, inner), (3, inner, inner), (1, inner, 4 * inner)]
            if i == 0:
                shapes.append((1, before, 4 * inner))
            for k, shape in enumerate(shapes, 1):
                conv, norm = resnet_names(torch, stage, i, k)
                a.conv(conv, *shape, bias=not torch)
                a.norm(norm, shape[2])
            before = 4 * inner
    if torch:
        a.put("fc.weight", (5, before))
        a.put("fc.bias", (5,))
    return a.arrays


def resnet_names(torch, stage, i, k):
    """Names of a bottleneck's convolution (4 is the shortcut's) and of its norm."""
    if torch:
        block = f"layer{stage + 1}.{i}"
        return (f"{block}.downsample.0", f"{block}.downsample.1") if k == 4 else (f"{block}.conv{k}", f"{block}.bn{k}")
    block = f"conv{stage + 2}_block{i + 1}_{k % 4}"
    return f"{block}_conv", f"{block}_bn"


def densenet_arrays(*, torch, growth=4, old=False):
    a, channels = Arrays(torch=torch), 2 * growth
    a.conv("features.conv0" if torch else "conv1/conv", 7, 3, channels)
    a.norm("features.norm0" if torch else "conv1/bn", channels)
    for block, count in enumerate(densenet.BLOCKS, 1):
        for i in range(1, count + 1):
            names = densenet_names(torch, block, i, old)
            a.norm(names[0], channels)
            a.conv(names[1], 1, channels, 4 * growth)
            a.norm(names[2], 4 * growth)
            a.conv(names[3], 3, 4 * growth, growth)
            channels += growth
        if block < 4:
            a.norm(f"features.transition{block}.norm" if torch else f"pool{block + 1}_bn", channels)
            a.conv(f"features.transition{block}.conv" if torch else f"pool{block + 1}_conv", 1, channels, channels // 2)
            channels //= 2
    a.norm("features.norm5" if torch else "bn", channels)
    return a.arrays


def densenet_names(torch, block, i, old):
    """norm, convolution, norm, convolution of a dense layer; the official Torch file has the old names."""
    if not torch:
        return [f"conv{block + 1}_block{i}_{kind}" for kind in ("0_bn", "1_conv", "1_bn", "2_conv")]
    dot = "." if old else ""
    kinds = (f"norm{dot}1", f"conv{dot}1", f"norm{dot}2", f"conv{dot}2")
    return [f"features.denseblock{block}.denselayer{i}.{kind}" for kind in kinds]


def squeezenet_arrays(*, torch):
    a, before = Arrays(torch=torch), 64
    a.conv("features.0" if torch else "conv1", 3, 3, 64, bias=True)
    for name, channels in squeezenet.SQUEEZED.items():
        number = dict(zip(squeezenet.SQUEEZED, (3, 4, 6, 7, 9, 10, 11, 12), strict=True))[name]
        group = f"features.{number}." if torch else f"{name}/"
        a.conv(f"{group}{'squeeze' if torch else 'squeeze1x1'}", 1, before, channels, bias=True)
        a.conv(f"{group}expand1x1", 1, channels, 4 * channels, bias=True)
        a.conv(f"{group}expand3x3", 3, channels, 4 * channels, bias=True)
        before = 8 * channels
    a.conv("classifier.1" if torch else "conv10", 1, before, 7, bias=True)
    return a.arrays


def vit_arrays(*, width=24, old=True):
    a = Arrays(torch=True)
    a.put("class_token", (1, 1, width))
    a.conv("conv_proj", 16, 3, width, bias=True)
    a.put("encoder.pos_embedding", (1, 197, width), -1, 1)
    for i in range(vit.DEPTH):
        layer = f"encoder.layers.encoder_layer_{i}"
        mlp = ("mlp.linear_1", "mlp.linear_2") if old else ("mlp.0", "mlp.3")
        for name, shape in {
            "self_attention.in_proj_": (3 * width, width),
            "self_attention.out_proj.": (width, width),
            f"{mlp[0]}.": (4 * width, width),
            f"{mlp[1]}.": (width, 4 * width),
        }.items():
            a.arrays[f"{layer}.{name}weight"] = a.rng.normal(0, width**-0.5, shape).astype(np.float32)
            a.put(f"{layer}.{name}bias", shape[:1])
        for name in ("ln_1", "ln_2"):
            a.put(f"{layer}.{name}.weight", (width,), 0.5, 1.5)
            a.put(f"{layer}.{name}.bias", (width,))
    a.put("encoder.ln.weight", (width,), 0.5, 1.5)
    a.put("encoder.ln.bias", (width,))
    a.put("heads.head.weight", (3, width))
    return a.arrays


def write_torch(path, arrays, write=torch_zip):
    path.write_bytes(write(arrays))
    return path


def write_keras(path, arrays):
    """As Keras wrote its applications' files: a group for each layer, whose name its arrays' names repeat."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[f"{name.rpartition('/')[0]}/{name}:0"] = array
        file["avg_pool/nothing"] = "a text"
        file["optimizer_weights/Adam/m/conv1_conv/kernel:0"] = np.zeros(3)
    return path


# numpy


def conv(x, kernel, stride=1, pad=0):
    """kernel [h, w, in, out]."""
    size = kernel.shape[0]
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    h, w = ((side - size) // stride + 1 for side in x.shape[:2])
    parts = (
        x[i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )
    return sum(parts)


def max_pool(x, pad, *, ceil=False):
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)), constant_values=-np.inf)
    rows, columns = (range(0, side - (1 if ceil else 2), 2) for side in x.shape[:2])
    if ceil:  # the last window starts in the picture, and before it another one can not reach the end
        rows, columns = (range(0, max(1, side - 1), 2) for side in x.shape[:2])
    return np.array([[x[i : i + 3, j : j + 3].max((0, 1)) for j in columns] for i in rows])


def relu(x):
    return np.maximum(x, 0)


def normalized(image, *, torch):
    image = np.float64(image)
    if torch:
        return (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return image[..., ::-1] * 255 - [103.939, 116.779, 123.68]


class Numpy:
    """A network's steps by the names in its file."""

    def __init__(self, arrays, *, torch):
        self.arrays, self.torch = {name: np.float64(array) for name, array in arrays.items()}, torch

    def conv(self, x, name, stride=1, pad=0):
        kernel = self.arrays[f"{name}.weight"].transpose(2, 3, 1, 0) if self.torch else self.arrays[f"{name}/kernel"]
        return conv(x, kernel, stride, pad) + self.arrays.get(f"{name}.bias" if self.torch else f"{name}/bias", 0)

    def norm(self, x, name):
        kinds = ("weight", "bias", "running_mean", "running_var")
        keras = ("gamma", "beta", "moving_mean", "moving_variance")
        names = [f"{name}.{kind}" for kind in kinds] if self.torch else [f"{name}/{kind}" for kind in keras]
        gamma, beta, mean, variance = (self.arrays[each] for each in names)
        return (x - mean) / np.sqrt(variance + (1e-5 if self.torch else 1.001e-5)) * gamma + beta


def resnet_numpy(arrays, image, *, torch):
    n, out = Numpy(arrays, torch=torch), {}
    stem = ("conv1", "bn1") if torch else ("conv1_conv", "conv1_bn")
    x = out["conv1"] = n.norm(n.conv(normalized(image, torch=torch), stem[0], 2, 3), stem[1])
    x = out["relu1"] = relu(x)
    x = out["pool1"] = max_pool(x, 1)
    for stage, count in enumerate(resnet.BLOCKS):
        for i in range(count):
            stride = 2 if stage and i == 0 else 1
            strides, pads = ((1, stride, 1, stride) if torch else (stride, 1, 1, stride)), (0, 1, 0, 0)

            def step(x, k, stage=stage, i=i, strides=strides, pads=pads):
                names = resnet_names(torch, stage, i, k)
                return n.norm(n.conv(x, names[0], strides[k - 1], pads[k - 1]), names[1])

            short = step(x, 4) if i == 0 else x
            x = out[f"layer{stage + 1}_{i}"] = relu(step(relu(step(relu(step(x, 1)), 2)), 3) + short)
    return out


def densenet_numpy(arrays, image, *, torch, old=False):
    n, out = Numpy(arrays, torch=torch), {}
    x = n.conv(normalized(image, torch=True), "features.conv0" if torch else "conv1/conv", 2, 3)
    x = out["conv0"] = n.norm(x, "features.norm0" if torch else "conv1/bn")
    x = out["pool0"] = max_pool(relu(x), 1)
    for block, count in enumerate(densenet.BLOCKS, 1):
        for i in range(1, count + 1):
            names = densenet_names(torch, block, i, old)
            inner = n.norm(n.conv(relu(n.norm(x, names[0])), names[1]), names[2])
            out[f"block{block}_{i}"] = n.conv(relu(inner), names[3], 1, 1)
            x = np.concatenate([x, out[f"block{block}_{i}"]], -1)
        out[f"block{block}"] = x
        if block < 4:
            names = [f"features.transition{block}.{k}" if torch else f"pool{block + 1}_{k}" for k in ("norm", "conv")]
            x = n.conv(relu(n.norm(x, names[0] if torch else names[0].replace("norm", "bn"))), names[1])
            h, w = x.shape[0] // 2, x.shape[1] // 2
            x = out[f"transition{block}"] = x[: 2 * h, : 2 * w].reshape(h, 2, w, 2, -1).mean((1, 3))
    return out | {"relu5": relu(n.norm(x, "features.norm5" if torch else "bn"))}


def squeezenet_numpy(arrays, image, *, torch):
    n, out = Numpy(arrays, torch=torch), {}
    out["conv1"] = n.conv(normalized(image, torch=torch), "features.0" if torch else "conv1", 2)
    x = out["pool1"] = max_pool(relu(out["conv1"]), 0, ceil=True)
    for name, number in zip(squeezenet.SQUEEZED, (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        group = f"features.{number}." if torch else f"{name}/"
        x = relu(n.conv(x, f"{group}{'squeeze' if torch else 'squeeze1x1'}"))
        x = np.concatenate([n.conv(x, f"{group}expand1x1"), n.conv(x, f"{group}expand3x3", 1, 1)], -1)
        x = out[name] = relu(x)
        if name in ("fire3", "fire5"):
            x = out[name.replace("fire", "pool")] = max_pool(x, 0, ceil=True)
    return out


def vit_numpy(arrays, image, positions):
    """positions: of the tokens, [1 + h * w, C]."""
    a, out = {name: np.float64(array) for name, array in arrays.items()}, {}
    x = normalized(image, torch=True)
    h, w = x.shape[0] // 16, x.shape[1] // 16
    cells = [x[16 * i : 16 * i + 16, 16 * j : 16 * j + 16] for i in range(h) for j in range(w)]
    tokens = [np.tensordot(cell, a["conv_proj.weight"], ((0, 1, 2), (2, 3, 1))) + a["conv_proj.bias"] for cell in cells]
    out["patches"] = np.array(tokens).reshape(h, w, -1)
    x = np.array([a["class_token"][0, 0], *tokens]) + positions

    def norm(x, name):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        return x * a[f"{name}.weight"] + a[f"{name}.bias"]

    def linear(x, name):
        return x @ a[f"{name}weight"].T + a[f"{name}bias"]

    for i in range(vit.DEPTH):
        layer = f"encoder.layers.encoder_layer_{i}."
        size = x.shape[1] // 12
        qkv = linear(norm(x, f"{layer}ln_1"), f"{layer}self_attention.in_proj_")
        heads = []
        for start in range(0, x.shape[1], size):
            q, k, v = (each[:, start : start + size] for each in np.split(qkv, 3, 1))
            share = np.exp(q @ k.T / size**0.5)
            heads.append(share / share.sum(1, keepdims=True) @ v)
        x = x + linear(np.concatenate(heads, 1), f"{layer}self_attention.out_proj.")
        inner = linear(norm(x, f"{layer}ln_2"), f"{layer}mlp.linear_1.")
        x = x + linear(inner * (1 + erf(inner / 2**0.5)) / 2, f"{layer}mlp.linear_2.")
        out[f"block{i + 1}"] = x[1:].reshape(h, w, -1)
    return out | {"norm": norm(x[1:], "encoder.ln").reshape(h, w, -1)}


@pytest.mark.parametrize(("torch", "winograd"), [(False, False), (True, True)])
def test_squeezenet_equals_numpy(tmp_path, narrow, torch, winograd):
    arrays, image = squeezenet_arrays(torch=torch), picture(53, 66)
    np.savez(tmp_path / "a.npz", **arrays)
    path = write_torch(tmp_path / "a.pth", arrays) if torch else tmp_path / "a.npz"
    params = features.load("squeezenet11", path, winograd=winograd)
    assert_same(jax.jit(squeezenet.features)(params, image), squeezenet_numpy(arrays, image, torch=torch))


@pytest.mark.parametrize(("torch", "winograd"), [(False, False), (True, True)])
def test_resnet_equals_numpy(tmp_path, narrow, torch, winograd):
    """Torchvision's and Keras's nets differ: preprocessing, biases, epsilon, and where a stage halves the picture."""
    arrays, image = resnet_arrays(torch=torch), picture(67, 50)
    path = write_torch(tmp_path / "a.pth", arrays) if torch else write_keras(tmp_path / "a.h5", arrays)
    params = features.load("resnet50", path, winograd=winograd)
    assert_same(jax.jit(resnet.features)(params, image), resnet_numpy(arrays, image, torch=torch))


@pytest.mark.parametrize(("torch", "old"), [(False, False), (True, False), (True, True)])
def test_densenet_equals_numpy(tmp_path, narrow, torch, old):
    arrays, image = densenet_arrays(torch=torch, old=old), picture(67, 50)
    path = write_torch(tmp_path / "a.pth", arrays, torch_legacy) if torch else write_keras(tmp_path / "a.h5", arrays)
    found = jax.jit(densenet.features)(features.load("densenet121", path, winograd=not old), image)
    assert_same(found, densenet_numpy(arrays, image, torch=torch, old=old))


def test_vit_equals_numpy(tmp_path, narrow):
    """At the size of its training the positions are those of the file."""
    arrays, image = vit_arrays(), picture(224, 224)
    found = jax.jit(vit.features)(features.load("vit_b16", write_torch(tmp_path / "a.pth", arrays)), image)
    assert_same(found, vit_numpy(arrays, image, np.float64(arrays["encoder.pos_embedding"][0])))


def test_vit_of_another_size_equals_numpy(tmp_path, narrow):
    arrays, image = vit_arrays(), picture(48, 80)
    path = write_torch(tmp_path / "a.pth", arrays)
    positions = arrays["encoder.pos_embedding"][0]
    grid = jax.image.resize(positions[1:].reshape(14, 14, -1), (3, 5, 24), "cubic")
    expected = vit_numpy(arrays, image, np.concatenate([positions[:1], grid.reshape(15, -1)]))
    assert_same(jax.jit(vit.features)(features.load("vit_b16", path), image), expected)
    renamed = write_torch(tmp_path / "b.pth", vit_arrays(old=False))
    assert_same(jax.jit(vit.features)(features.load("vit_b16", renamed), image), expected)


# Torch and Keras, where they are installed: the whole networks, with names that those give themselves


def torch_networks():
    """{network: (a module whose parameters have torchvision's names, (module, x) -> activations [1, C, h, w])}."""
    torch = pytest.importorskip("torch")
    nn, relu = torch.nn, torch.nn.functional.relu

    def conv(before, after, size, stride=1):
        return nn.Conv2d(before, after, size, stride, size // 2, bias=False)

    def bottleneck(before, width, stride, shortcut):
        parts = {"conv1": conv(before, width, 1), "conv2": conv(width, width, 3, stride)}
        parts |= {"conv3": conv(width, 4 * width, 1), "bn3": nn.BatchNorm2d(4 * width)}
        parts |= {f"bn{i}": nn.BatchNorm2d(width) for i in (1, 2)}
        if shortcut:
            parts["downsample"] = nn.Sequential(conv(before, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))
        return nn.ModuleDict(parts)

    def resnet50():
        parts, before = {"conv1": conv(3, 64, 7, 2), "bn1": nn.BatchNorm2d(64)}, 64
        for stage, count in enumerate((3, 4, 6, 3)):
            blocks = nn.Sequential()
            for i in range(count):
                blocks.append(bottleneck(before, 64 * 2**stage, 2 if stage and not i else 1, not i))
                before = 256 * 2**stage
            parts[f"layer{stage + 1}"] = blocks
        return nn.ModuleDict(parts)

    def resnet50_features(net, x):
        out = {"conv1": net["bn1"](net["conv1"](x))}
        x = out["pool1"] = torch.nn.functional.max_pool2d(relu(out["conv1"]), 3, 2, 1)
        for stage in range(1, 5):
            for i, block in enumerate(net[f"layer{stage}"]):
                y = relu(block["bn1"](block["conv1"](x)))
                y = block["bn3"](block["conv3"](relu(block["bn2"](block["conv2"](y)))))
                x = out[f"layer{stage}_{i}"] = relu(y + (block["downsample"](x) if "downsample" in block else x))
        return out

    def dense_layer(channels):
        parts = {"norm1": nn.BatchNorm2d(channels), "conv1": conv(channels, 128, 1)}
        return nn.ModuleDict(parts | {"norm2": nn.BatchNorm2d(128), "conv2": conv(128, 32, 3)})

    def densenet121():
        parts, channels = {"conv0": conv(3, 64, 7, 2), "norm0": nn.BatchNorm2d(64)}, 64
        for block, count in enumerate((6, 12, 24, 16), 1):
            inner = {f"denselayer{i + 1}": dense_layer(channels + 32 * i) for i in range(count)}
            parts[f"denseblock{block}"] = nn.ModuleDict(inner)
            channels += 32 * count
            if block < 4:
                transition = {"norm": nn.BatchNorm2d(channels), "conv": conv(channels, channels // 2, 1)}
                parts[f"transition{block}"] = nn.ModuleDict(transition)
                channels //= 2
        return nn.ModuleDict({"features": nn.ModuleDict(parts | {"norm5": nn.BatchNorm2d(channels)})})

    def densenet121_features(net, x):
        net, out = net["features"], {}
        x = torch.nn.functional.max_pool2d(relu(net["norm0"](net["conv0"](x))), 3, 2, 1)
        for block in range(1, 5):
            for i, layer in enumerate(net[f"denseblock{block}"].values(), 1):
                y = layer["norm2"](layer["conv1"](relu(layer["norm1"](x))))
                y = out[f"block{block}_{i}"] = layer["conv2"](relu(y))
                x = torch.cat([x, y], 1)
            if block < 4:
                step = net[f"transition{block}"]
                x = torch.nn.functional.avg_pool2d(step["conv"](relu(step["norm"](x))), 2)
                out[f"transition{block}"] = x
        return out | {"relu5": relu(net["norm5"](x))}

    def fire(before, channels):
        parts = {"squeeze": nn.Conv2d(before, channels, 1), "expand1x1": nn.Conv2d(channels, 4 * channels, 1)}
        return nn.ModuleDict(parts | {"expand3x3": nn.Conv2d(channels, 4 * channels, 3, padding=1)})

    def squeezenet11():
        layers, before = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)], 64
        for channels in (16, 16, None, 32, 32, None, 48, 48, 64, 64):
            if channels is None:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            else:
                layers.append(fire(before, channels))
                before = 8 * channels
        return nn.ModuleDict({"features": nn.Sequential(*layers)})

    def squeezenet11_features(net, x):
        out, names = {}, list(squeezenet.layer_names())
        for name, layer in zip(names, net["features"], strict=True):
            if isinstance(layer, nn.ModuleDict):
                x = relu(layer["squeeze"](x))
                x = relu(torch.cat([layer["expand1x1"](x), layer["expand3x3"](x)], 1))
            else:
                x = layer(x)
            out[name] = x
        return out

    def vit_b16():
        net, layers = nn.Module(), nn.Module()
        net.class_token, net.conv_proj = nn.Parameter(torch.randn(1, 1, 768)), nn.Conv2d(3, 768, 16, 16)
        net.encoder = nn.Module()
        net.encoder.pos_embedding = nn.Parameter(torch.randn(1, 197, 768))
        net.encoder.layers, net.encoder.ln = layers, nn.LayerNorm(768, 1e-6)
        for i in range(12):
            layer = nn.Module()
            layer.ln_1, layer.ln_2 = nn.LayerNorm(768, 1e-6), nn.LayerNorm(768, 1e-6)
            layer.self_attention = nn.MultiheadAttention(768, 12, batch_first=True)
            linear = nn.Linear(768, 3072), nn.GELU(), nn.Dropout(0), nn.Linear(3072, 768)
            layer.mlp = nn.Sequential(*linear)
            layers.add_module(f"encoder_layer_{i}", layer)
        return net

    def vit_b16_features(net, x):
        patches = net.conv_proj(x)
        shape, out = patches.shape, {"patches": patches}
        x = torch.cat([net.class_token, patches.flatten(2).transpose(1, 2)], 1) + net.encoder.pos_embedding
        for i, layer in enumerate(net.encoder.layers.children(), 1):
            y = layer.ln_1(x)
            x = x + layer.self_attention(y, y, y, need_weights=False)[0]
            x = x + layer.mlp(layer.ln_2(x))
            out[f"block{i}"] = x[:, 1:].transpose(1, 2).reshape(shape)
        return out

    return {
        "squeezenet11": (squeezenet11, squeezenet11_features),
        "resnet50": (resnet50, resnet50_features),
        "densenet121": (densenet121, densenet121_features),
        "vit_b16": (vit_b16, vit_b16_features),
    }


@pytest.mark.parametrize("network", [name for name in OTHERS if name != "efficientnet_lite0"])  # has its own file
def test_against_torch(tmp_path, network):
    torch = pytest.importorskip("torch")
    make, run = torch_networks()[network]
    torch.manual_seed(0)
    net = make().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                torch.nn.init.uniform_(tensor, low, low + 1)
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    image = picture(224, 224) if network == "vit_b16" else picture(75, 98)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = run(net, ((torch.tensor(image) - mean) / deviation).permute(2, 0, 1)[None])
    expected = {name: x[0].permute(1, 2, 0).numpy() for name, x in expected.items()}
    params = features.load(network, tmp_path / "a.pth")
    assert_same(jax.jit(features.EXTRACTORS[network].features)(params, image), expected, 1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", ["resnet50", "densenet121"])
def test_against_keras(tmp_path, network):
    keras = pytest.importorskip("keras", reason="TensorFlow's Keras is not installed")
    h5py = pytest.importorskip("h5py")
    from keras.src.legacy.saving import legacy_h5_format

    module, make = {
        "resnet50": (keras.applications.resnet, keras.applications.ResNet50),
        "densenet121": (keras.applications.densenet, keras.applications.DenseNet121),
    }[network]
    net = make(weights=None, include_top=False, input_shape=(None, None, 3))
    rng = np.random.default_rng(0)
    for layer in net.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            spans = (0.5, 1.5), (-0.5, 0.5), (-0.3, 0.3), (0.5, 1.5)
            layer.set_weights([rng.uniform(*span, shape) for span in spans])
    names = {"relu5": "relu"} if network == "densenet121" else {"relu1": "conv1_relu"}
    names |= {
        name: f"conv{int(name[5]) + 1}_block{int(name[7:]) + (network == 'resnet50')}_{kind}"
        for name in features.EXTRACTORS[network].layers
        if "_" in name
        for kind in [{"resnet50": "out", "densenet121": "2_conv"}[network]]
    }
    image = picture(75, 98)
    outputs = keras.Model(net.input, [net.get_layer(name).output for name in names.values()])
    found = outputs(module.preprocess_input(255 * image[None].copy()))
    expected = {name: np.asarray(x)[0] for name, x in zip(names, found, strict=True)}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, net)
    params = features.load(network, tmp_path / "a.h5")
    assert_same(jax.jit(features.EXTRACTORS[network].features)(params, image), expected, 1e-3)


# What holds for every network


@pytest.mark.parametrize("network", OTHERS)
def test_layers_and_their_sizes(network):
    extractor = features.EXTRACTORS[network]
    assert {*extractor.content, *extractor.style} <= {*extractor.layers}
    assert len(extractor.style) == (4 if network == "resnet50" else 5)  # a ResNet has four stages
    assert len(set(extractor.layers)) == len(extractor.layers)
    assert (
        len(extractor.layers)
        == {"squeezenet11": 13, "efficientnet_lite0": 17, "resnet50": 19, "densenet121": 69, "vit_b16": 14}[network]
    )
    params = {"mean": jnp.zeros(3)} | jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        extractor.shapes(),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    for (h, w), last in {
        (224, 224): (7, 7)
        if network.endswith(("50", "121", "lite0"))
        else (14, 14)
        if network == "vit_b16"
        else (13, 13),
        (33, 50): {
            "squeezenet11": (2, 3),
            "efficientnet_lite0": (2, 2),
            "resnet50": (2, 2),
            "densenet121": (1, 1),
            "vit_b16": (3, 4),
        }[network],
    }.items():
        found = jax.eval_shape(extractor.features, params, jnp.zeros((h, w, 3)))
        assert {*found} == {*extractor.layers}
        assert found[extractor.layers[-1]].shape[:2] == last
        assert all(x.ndim == 3 and x.size for x in found.values())


@settings(deadline=None, max_examples=15)
@given(size=st.integers(1, 20), padding=st.integers(0, 1), ceil=st.booleans())
def test_max_pool(size, padding, ceil):
    x = np.random.default_rng(size).normal(size=(size, 9, 2)).astype(np.float32)
    found = np.asarray(layers.overlapping_max_pool(jnp.asarray(x), padding=padding, ceil=ceil))
    wide = np.pad(x, ((padding, padding + 3), (padding, padding + 3), (0, 0)), constant_values=-np.inf)
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            np.testing.assert_array_equal(found[i, j], wide[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)))
    # Torch's documented size; a side too short for it has one window.
    left = size + 2 * padding - 3
    assert found.shape[0] == max(1, (-(-left // 2) if ceil else left // 2) + 1)


@pytest.mark.parametrize("network", OTHERS)
def test_gradient_reaches_every_pixel(narrow, network):
    extractor, image = features.EXTRACTORS[network], picture(37, 50)
    params = features.load(network, "random", winograd=True)
    gradient = jax.jit(jax.grad(lambda x: sum(a.std() for a in extractor.features(params, x).values())))(image)
    assert np.isfinite(gradient).all()
    seen = (
        gradient[:, :49] if network == "squeezenet11" else gradient
    )  # whose conv1 leaves an even side's last pixel out
    assert np.abs(seen).max(2).all()


def test_gradient_of_resnet_equals_finite_differences(narrow):
    params, image = features.load("resnet50", "random", winograd=True), picture(40, 36)
    loss = jax.jit(lambda x: jnp.log((resnet.features(params, x)["layer2_0"] ** 2).mean()))
    direction = np.random.default_rng(3).normal(size=image.shape).astype(np.float32)
    slope = (loss(image + 1e-2 * direction) - loss(image - 1e-2 * direction)) / 2e-2
    assert float((jax.grad(loss)(image) * direction).sum()) == pytest.approx(float(slope), rel=3e-2)


def test_jit_leaves_out_what_is_not_asked_for(narrow):
    params, image = features.load("vit_b16", "random"), picture(64, 64)

    def cost(layer):
        return jax.jit(lambda x: vit.features(params, x)[layer]).lower(image).compile().cost_analysis()["flops"]

    assert cost("patches") < 0.7 * cost("block1") < 0.6 * cost("block2")


@pytest.mark.parametrize("network", ["resnet50", "vit_b16"])
def test_vmap_equals_one_after_another(narrow, network):
    extractor = features.EXTRACTORS[network]
    params, images = features.load(network, "random"), np.stack([picture(40, 33, 1), picture(40, 33, 2)])
    found = jax.jit(jax.vmap(extractor.features, (None, 0)))(params, images)
    for i, image in enumerate(images):
        expected = jax.jit(extractor.features)(params, image)
        assert_same({name: x[i] for name, x in found.items()}, expected, 1e-4)


# Where things are


def test_vit_patches_lie_where_their_pixels_do(narrow):
    params, image = features.load("vit_b16", "random"), picture(48, 80)
    changed = image.copy()
    changed[16:32, 64:80] += 0.3
    before, after = (vit.features(params, x)["patches"] for x in (image, changed))
    moved = np.abs(after - before).max(2) > 1e-6
    assert moved[1, 4] and moved.sum() == 1


@pytest.mark.parametrize(("h", "w"), [(14, 14), (10, 20), (28, 3)])
def test_vit_positions_keep_their_direction(narrow, h, w):
    """With blocks that do nothing, what is added to the patches are the positions: rows go down, columns right."""
    tree = features.random_weights("vit_b16")
    for layer, parts in tree.items():
        if layer.endswith(("_out", "_mlp2")):
            parts["kernel"][:] = 0
    rows, columns = np.mgrid[:14, :14] / 14
    grid = tree["tokens"]["positions"][1:].reshape(14, 14, -1)
    grid[..., 0], grid[..., 1] = rows, columns
    params = features.prepare(tree)
    out = vit.features(params, picture(16 * h, 16 * w))
    added = np.asarray(out["block2"] - out["patches"])
    if (h, w) == (14, 14):
        np.testing.assert_allclose(added, grid, atol=1e-5)
    assert np.corrcoef(added[..., 0].ravel(), np.mgrid[:h, :w][0].ravel())[0, 1] > 0.99
    assert np.corrcoef(added[..., 1].ravel(), np.mgrid[:h, :w][1].ravel())[0, 1] > 0.98


def test_vit_continues_sides_that_are_no_multiple_of_16(narrow):
    params, image = features.load("vit_b16", "random"), picture(37, 50)
    wide = np.pad(image, ((0, 11), (0, 14), (0, 0)), mode="edge")
    assert_same(vit.features(params, image), {k: np.asarray(v) for k, v in vit.features(params, wide).items()}, 1e-6)


@pytest.mark.parametrize("network", ["squeezenet11", "resnet50", "densenet121"])
def test_convolutions_lie_where_their_pixels_do(narrow, network):
    """The first layer sees a changed pixel at half its place."""
    extractor, image = features.EXTRACTORS[network], picture(64, 96)
    params = features.load(network, "random")
    changed = image.copy()
    changed[20, 70] += 0.5
    name = extractor.layers[0]
    moved = np.abs(np.subtract(*(extractor.features(params, x)[name] for x in (image, changed)))).max(2) > 1e-6
    rows, columns = np.nonzero(moved)
    assert abs(rows.mean() - 10) <= 1 and abs(columns.mean() - 35) <= 1


# Weights


@pytest.mark.parametrize("network", ["vgg16", *OTHERS])
def test_random_weights(narrow, monkeypatch, network):
    monkeypatch.setattr(features.vgg, "BLOCKS", narrow_vgg(8))
    first, same, other = (features.random_weights(network, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    kernels = {k: parts for k, parts in first.items() if k != "mean" and ("kernel" in parts or "strided" in parts)}
    for i, (layer, parts) in enumerate(kernels.items()):
        kind = "strided" if "strided" in parts else "kernel"
        assert not np.array_equal(parts[kind], other[layer][kind])
        if i:
            deviation = (2 / np.prod(parts[kind].shape[:-1])) ** 0.5
            assert abs(parts[kind].mean()) < 5 * deviation / parts[kind].size ** 0.5
            assert parts[kind].std() == pytest.approx(deviation, rel=5 / parts[kind].size ** 0.5)
        assert not parts["bias"].any()
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(first))


def test_seed_of_random_weights():
    found = [features.load("squeezenet11", "random", seed=seed)["conv1"]["strided"] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_random_vgg_at_the_bundled_scale(monkeypatch):
    monkeypatch.setattr(features.vgg, "BLOCKS", narrow_vgg(4))
    bundled = features.random_weights("vgg16", 5)
    monkeypatch.setattr(features.vgg, "load", lambda network, source="bundled": bundled)
    image = picture(40, 40)
    params = features.load("vgg16", "random", like=image, seed=1, winograd=False)
    found, expected = (features.vgg.features(each, image) for each in (params, bundled))
    for name in ("relu1_1", "relu3_2", "relu5_3"):
        assert float(found[name].mean()) == pytest.approx(float(expected[name].mean()), rel=1e-3)


def test_no_such_weights():
    for network, source, words in (
        ("resnet50", "bundled", ("resnet50", "keras or torchvision", "random")),
        ("densenet121", "bundled", ("densenet121", "keras or torchvision")),
        ("vit_b16", "bundled", ("vit_b16", "torchvision")),
        ("vit_b16", "keras", ("vit_b16", "keras", "torchvision")),
        ("squeezenet11", "keras", ("squeezenet11", "torchvision")),
        ("alexnet", "bundled", ("alexnet", "vit_b16", "squeezenet11")),
    ):
        with pytest.raises(InputError) as caught:
            features.load(network, source)
        assert len(str(caught.value).splitlines()) == 1
        assert all(word in str(caught.value) for word in words)


def wrong_files():
    deeper = resnet_arrays(torch=True, counts=(1, 2, 4, 1))
    plain = resnet_arrays(torch=True)
    kernel = plain["layer2.0.conv2.weight"]
    return {
        "more blocks": ("resnet50", deeper, ("layer3.2", "resnet50 does not have")),
        "fewer blocks": ("resnet50", resnet_arrays(torch=True, counts=(1, 2, 1, 1)), ("layer3_1",)),
        "missing": (
            "resnet50",
            {k: v for k, v in plain.items() if k != "layer4.0.bn2.running_var"},
            ("variance of layer4_0_conv2",),
        ),
        "shape": (
            "resnet50",
            plain | {"layer2.0.conv2.weight": kernel[:, :-1]},
            ("kernel of layer2_0_conv2", "[3, 3, 8, 8]"),
        ),
        "nan": ("resnet50", plain | {"bn1.bias": np.full(4, np.nan, np.float32)}, ("conv1", "not finite")),
        "twice": ("resnet50", plain | {"net.bn1.bias": plain["bn1.bias"]}, ("beta of conv1 more than once",)),
        "other": ("resnet50", vit_arrays(), ("conv1", "another network")),
        "vgg": (
            "squeezenet11",
            {"features.0.weight": kernel, "features.2.weight": kernel},
            ("features.2", "another network"),
        ),
        "vit for densenet": ("densenet121", vit_arrays(), ("another network",)),
        "resnet for vit": ("vit_b16", plain, ("another network",)),
        "wide vit": ("vit_b16", vit_arrays(width=36), ("[16, 16, 3, 36]", "[16, 16, 3, 24]")),
        "empty": ("densenet121", {}, ("no kernel of conv0",)),
    }


@pytest.mark.parametrize("case", wrong_files())
def test_wrong_files_are_refused(tmp_path, narrow, case):
    network, arrays, words = wrong_files()[case]
    np.savez(tmp_path / "wrong.npz", **arrays)
    with refused("wrong.npz", *words):
        features.load(network, tmp_path / "wrong.npz")


def test_a_network_in_a_wrapper_and_in_half_precision(tmp_path, narrow):
    arrays, image = resnet_arrays(torch=True), picture(40, 33)
    path = write_torch(tmp_path / "a.pth", {f"module.{k}": v.astype(np.float16) for k, v in arrays.items()})
    expected = resnet_numpy({k: v.astype(np.float16) for k, v in arrays.items()}, image, torch=True)
    assert_same(resnet.features(features.load("resnet50", path, winograd=False), image), expected)


def test_preprocessing_of_a_file_can_be_said(tmp_path, narrow):
    arrays, image = resnet_arrays(torch=True), picture(40, 33)
    np.savez(tmp_path / "a.npz", **arrays, preprocessing=weights.CAFFE)
    found = resnet.features(features.load("resnet50", tmp_path / "a.npz"), image)["conv1"]
    n = Numpy(arrays, torch=True)
    expected = n.norm(n.conv(normalized(image, torch=False), "conv1", 2, 3), "bn1")
    assert_same({"conv1": found}, {"conv1": expected})
    np.savez(tmp_path / "b.npz", **arrays, preprocessing="YUV")
    with refused("b.npz", "'YUV'"):
        features.load("resnet50", tmp_path / "b.npz")


# The bundled SqueezeNet


def test_bundled_squeezenet():
    entry = json.loads((weights.bundled_folder() / "manifest.json").read_text())["squeezenet11.safetensors"]
    assert entry["bytes"] < 3e6 and "MIT" in entry["licence"]
    tree = squeezenet.load()
    assert {k: {n: a.shape for n, a in v.items()} for k, v in tree.items() if k != "mean"} == squeezenet.shapes()
    np.testing.assert_allclose(tree["mean"] * 255, [123.68, 116.779, 103.939], rtol=1e-6)
    assert all(parts["bias"].any() for name, parts in tree.items() if name != "mean")


def test_bundled_squeezenet_knows_edges_from_a_flat_wall():
    """Trained: it answers to a picture's structure far more than random weights do, at every depth."""
    stripes = np.broadcast_to(np.sin(np.arange(96) * 0.7)[None, :, None] * 0.4 + 0.5, (96, 96, 3)).astype(np.float32)
    flat = np.full((96, 96, 3), 0.5, np.float32)
    params = features.load("squeezenet11")
    found, wall = (jax.jit(squeezenet.features)(params, x) for x in (stripes, flat))
    for name in ("relu1", "fire3", "fire5", "fire9"):
        assert float(found[name].mean()) > 1.2 * float(wall[name].mean()), name


# SWAG


def test_softened_features_in_the_loss():
    params, image, painting = features.load("squeezenet11", winograd=False), picture(48, 40), picture(33, 50, 2)
    plain = jax.jit(squeezenet.features)(params, image)
    levels = {name: float(plain[name].std()) for name in ("relu1", "fire4")}
    extract = features.softened(squeezenet.features, temperature=levels)
    found, wanted = (jax.jit(extract)(params, x) for x in (image, painting))
    assert set(found) == set(levels)
    for name, x in found.items():
        whole = np.float64(plain[name]) / levels[name]
        share = np.exp(whole - whole.max())
        np.testing.assert_allclose(x, share / share.sum() * share.size, rtol=1e-3, atol=1e-4)
    objective, targets = objectives.neural_style(extract)
    styles = [objectives.Style(painting)]
    terms, layer_weights = {"content": 1.0, "style": 1.0}, dict.fromkeys(levels, 1.0)
    data = jax.jit(targets)(
        params, image, styles, weights=terms, content_layers={"fire4": 1.0}, style_layers=layer_weights
    )
    (loss, terms), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(image, data)
    assert terms["content"] < 1e-6 * terms["style"]
    expected = sum(losses.mse(losses.gram(found[k]), losses.gram(v)) for k, v in wanted.items())
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
