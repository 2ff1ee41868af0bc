"""EfficientNet-Lite0 against Torch, from a file in the layout of efficientnet_pytorch; and its bundled weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_files import refused

from nstjax import features, images, weights
from nstjax.features import efficientnet
from nstjax.weights import names

# (blocks, kernel, stride of the first, expansion, channels) of each stage, as in table 1 of the paper, but narrow.
NARROW = ((1, 3, 1, 1, 3), (2, 3, 2, 6, 4), (2, 5, 2, 6, 5), (3, 3, 2, 6, 4), (3, 5, 1, 6, 5), (4, 5, 2, 6, 6))
NARROW += ((1, 3, 1, 6, 7),)


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(efficientnet, "STAGES", tuple(efficientnet.Stage(*stage) for stage in NARROW))
    monkeypatch.setattr(efficientnet, "STEM", 4)


def arrays(seed=0):
    """The arrays of a narrow network by the names of its file."""
    rng, found = np.random.default_rng(seed), {}

    def conv(name, out, inside, size):
        scale = (2 / (inside * size * size)) ** 0.5
        found[f"{name}.weight"] = rng.normal(0, scale, (out, inside, size, size)).astype(np.float32)

    def norm(name, channels):
        for part, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", 0, 1),
            ("running_mean", -0.3, 0.3),
            ("running_var", 0.3, 2),
        ):
            found[f"{name}.{part}"] = rng.uniform(low, high, channels).astype(np.float32)
        found[f"{name}.num_batches_tracked"] = np.zeros((), np.float32)

    conv("_conv_stem", 4, 3, 3)
    norm("_bn0", 4)
    before, number = 4, 0
    for count, size, _, expansion, channels in NARROW:
        for _ in range(count):
            block, inside = f"_blocks.{number}", expansion * before
            if expansion > 1:
                conv(f"{block}._expand_conv", inside, before, 1)
                norm(f"{block}._bn0", inside)
            conv(f"{block}._depthwise_conv", inside, 1, size)
            norm(f"{block}._bn1", inside)
            conv(f"{block}._project_conv", channels, inside, 1)
            norm(f"{block}._bn2", channels)
            before, number = channels, number + 1
    conv("_conv_head", 8, before, 1)
    norm("_bn1", 8)
    found["_fc.weight"], found["_fc.bias"] = np.ones((5, 8), np.float32), np.ones(5, np.float32)
    return found


def by_torch(a, image):
    """[activations of the stem and of each block], layer by layer in float64."""
    torch = pytest.importorskip("torch")
    a = {name: torch.tensor(np.asarray(each, np.float64)) for name, each in a.items()}

    def conv(x, name, norm, stride=1):
        kernel = a[f"{name}.weight"]
        size, pads = kernel.shape[-1], []
        for side in x.shape[:1:-1]:  # the last axis first, as Torch pads; TensorFlow's SAME
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            pads += [total // 2, total - total // 2]
        groups = x.shape[1] if kernel.shape[1] == 1 and x.shape[1] > 1 else 1
        y = torch.nn.functional.conv2d(torch.nn.functional.pad(x, pads), kernel, stride=stride, groups=groups)
        parts = [a[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(y, *parts, eps=1e-3)

    relu6 = torch.nn.functional.relu6
    x = torch.tensor(((image.astype(np.float64) * 255 - 127) / 128).transpose(2, 0, 1)[None])
    out = [relu6(conv(x, "_conv_stem", "_bn0", 2))]
    number = 0
    for count, _, stride, expansion, _ in NARROW:
        for i in range(count):
            block, x = f"_blocks.{number}", out[-1]
            y = relu6(conv(x, f"{block}._expand_conv", f"{block}._bn0")) if expansion > 1 else x
            y = relu6(conv(y, f"{block}._depthwise_conv", f"{block}._bn1", stride if i == 0 else 1))
            y = conv(y, f"{block}._project_conv", f"{block}._bn2")
            out.append(x + y if i > 0 else y)
            number += 1
    return [each[0].permute(1, 2, 0).numpy() for each in out]


@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
@pytest.mark.parametrize("winograd", [True, False])
def test_every_activation_is_torchs(narrow, tmp_path, size, winograd):
    image = np.random.default_rng(1).uniform(size=(*size, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", **(a := arrays()))
    params = features.load("efficientnet_lite0", tmp_path / "a.npz", winograd=winograd)
    found = jax.jit(efficientnet.features)(params, image)
    assert tuple(efficientnet.layer_names()) == features.EXTRACTORS["efficientnet_lite0"].layers
    for name, expected in zip(efficientnet.layer_names(), by_torch(a, image), strict=True):
        assert found[name].shape == expected.shape, name
        assert np.abs(found[name] - expected).max() < 2e-4 * np.abs(expected).max(), name


@pytest.mark.parametrize("change", ["_blocks.16._project_conv.weight", "_blocks.0._expand_conv.weight"])
def test_blocks_of_another_network_are_rejected(narrow, tmp_path, change):
    np.savez(tmp_path / "a.npz", **arrays() | {change: np.ones((4, 4, 1, 1), np.float32)})
    with refused(tmp_path / "a.npz", change, "another network"):
        features.load("efficientnet_lite0", tmp_path / "a.npz")


def test_the_table_of_blocks_is_the_networks():
    assert tuple(stage.blocks for stage in efficientnet.STAGES) == names.EFFICIENTNET_STAGES


def test_the_bundled_weights_know_a_mirrored_photo_from_a_painting():
    """Features of the last stage, as a classifier uses them: their means over the image."""
    params = features.load("efficientnet_lite0")

    @jax.jit
    def of(image):
        x = efficientnet.features(params, image)["stage7_0"].mean((0, 1))
        return x / jnp.linalg.norm(x)

    photo, painting = (images.load(weights.PICTURES / name, size=(224, 224)) for name in ("astronaut.jpg", "gale.jpg"))
    same, other = (float(of(photo) @ of(each)) for each in (photo[:, ::-1], painting))
    assert same > 0.9 > 0.7 > other
