"""Others' nets against the same nets in plain numpy, with random weights; and files that are not what they say."""

import functools
import os
import pickle

import jax
import numpy as np
import pytest
from commands import run as command
from samples import photo as photograph
from torch_files import Harm, legacy_file, torch_legacy, torch_zip, zip_file

from nstjax import images, nets
from nstjax.errors import InputError
from nstjax.nets import convert, io


def normal(rng, *shape, scale=1.0):
    return (scale * rng.normal(size=shape)).astype(np.float32)


# --- the nets in numpy, float64; pictures [H, W, 3] in 0..255


def pad(x, top, bottom, **options):
    return np.pad(x, ((top, bottom), (top, bottom), (0, 0)), **options)


def conv(x, kernel, stride=1):
    """Kernel [k, k, in, out], unpadded."""
    k = len(kernel)
    h, w = x.shape[0] - k + 1, x.shape[1] - k + 1
    y = sum(x[i : i + h, j : j + w] @ kernel[i, j].astype(np.float64) for i in range(k) for j in range(k))
    return y[::stride, ::stride]


def norm(x, scale, shift, epsilon):
    return (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + epsilon) * scale + shift


def relu(x):
    return np.maximum(x, 0)


def torch_net(t, x):
    """pytorch/examples' TransformerNet, from its state_dict."""

    def layer(name, x, stride=1, grow=False):
        kernel = t[f"{name}.conv2d.weight"].transpose(2, 3, 1, 0)
        n = len(kernel) // 2
        x = np.kron(x, np.ones((2, 2, 1))) if grow else x
        return conv(pad(x, n, n, mode="reflect"), kernel, stride) + t[f"{name}.conv2d.bias"]

    def normed(name, x):
        return norm(x, t[f"{name}.weight"], t[f"{name}.bias"], 1e-5)

    for i, stride in ((1, 1), (2, 2), (3, 2)):
        x = relu(normed(f"in{i}", layer(f"conv{i}", x, stride)))
    for i in range(1, 6):
        y = relu(normed(f"res{i}.in1", layer(f"res{i}.conv1", x)))
        x = x + normed(f"res{i}.in2", layer(f"res{i}.conv2", y))
    for i in (1, 2):
        x = relu(normed(f"in{i + 3}", layer(f"deconv{i}", x, grow=True)))
    return layer("deconv3", x).clip(0, 255)


def tensorflow_net(variables, x):
    """lengstrom's net, from its variables in the graph's order."""
    left = iter(variables)

    def layer(x, stride=1):
        kernel = next(left)
        outside = len(kernel) - stride  # TensorFlow's SAME, for sides that the stride divides
        x = conv(pad(x, outside // 2, outside - outside // 2), kernel, stride)
        shift, scale = next(left), next(left)
        return norm(x, scale, shift, 1e-3)

    def transposed(x):
        kernel = next(left).astype(np.float64)  # [k, k, out, in]
        h, w, _ = x.shape
        y = np.zeros((2 * h + 1, 2 * w + 1, kernel.shape[2]))
        for i in range(3):
            for j in range(3):
                y[i : i + 2 * h : 2, j : j + 2 * w : 2] += x @ kernel[i, j].T
        shift, scale = next(left), next(left)
        return relu(norm(y[: 2 * h, : 2 * w], scale, shift, 1e-3))

    for stride in (1, 2, 2):
        x = relu(layer(x, stride))
    for _ in range(5):
        x = x + layer(relu(layer(x)))
    for _ in range(2):
        x = transposed(x)
    return (np.tanh(layer(x)) * 150 + 127.5).clip(0, 255)


# --- random weights of them


def state_dict(seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"conv1": (32, 3, 9), "conv2": (64, 32, 3), "conv3": (128, 64, 3)}
    sizes |= {f"res{i}.conv{j}": (128, 128, 3) for i in range(1, 6) for j in (1, 2)}
    sizes |= {"deconv1": (64, 128, 3), "deconv2": (32, 64, 3), "deconv3": (3, 32, 9)}
    channels = {f"in{i}": c for i, c in enumerate((32, 64, 128, 64, 32), 1)}
    channels |= {f"res{i}.in{j}": 128 for i in range(1, 6) for j in (1, 2)}
    tree = {}
    for name, (out, inside, k) in sizes.items():
        tree[f"{name}.conv2d.weight"] = normal(rng, out, inside, k, k, scale=(inside * k * k) ** -0.5)
        tree[f"{name}.conv2d.bias"] = normal(rng, out)
    for name, c in channels.items():
        tree[f"{name}.weight"], tree[f"{name}.bias"] = 1 + normal(rng, c, scale=0.2), normal(rng, c, scale=0.2)
    tree["deconv3.conv2d.weight"] *= 150
    tree["deconv3.conv2d.bias"] += 127
    return tree


def variables(seed=0):
    rng = np.random.default_rng(seed)
    kernels = [(9, 9, 3, 32), (3, 3, 32, 64), (3, 3, 64, 128), *[(3, 3, 128, 128)] * 10]
    kernels += [(3, 3, 64, 128), (3, 3, 32, 64), (9, 9, 32, 3)]
    found = []
    for i, shape in enumerate(kernels):
        channels = shape[2] if i in (13, 14) else shape[3]
        # Small enough that the norm's epsilon of 1e-3 is felt.
        found.append(normal(rng, *shape, scale=0.05 * np.prod(shape[:3]) ** -0.5))
        found += [normal(rng, channels, scale=0.2), 1 + normal(rng, channels, scale=0.2)]
    return found


def named(arrays):
    return {f"Variable_{i}" if i else "Variable": array for i, array in enumerate(arrays)}


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(3).uniform(size=(16, 24, 3)).astype(np.float32)


@functools.cache
def compiled(net):
    return jax.jit(net.apply, compiler_options={"xla_backend_optimization_level": 0})


def painted(path, picture):
    net, params, _ = io.load(path)
    return np.asarray(compiled(net)(params, picture[None])[0])


# --- they paint what the originals do


@pytest.mark.parametrize(
    "write", [torch_zip, torch_legacy, lambda t: torch_zip({f"module.{name}": array for name, array in t.items()})]
)
def test_pytorch_examples(tmp_path, picture, write):
    t = state_dict()
    expected = torch_net(t, picture * 255.0) / 255
    assert expected.std() > 0.05 and expected.min() == 0 and expected.max() == 1
    (tmp_path / "a.pth").write_bytes(write(t))
    np.testing.assert_allclose(painted(tmp_path / "a.pth", picture), expected, atol=5e-5)


def test_old_files_keep_averages_that_are_not_used(tmp_path, picture):
    t = state_dict()
    extra = {"in1.running_mean": np.ones(32, np.float32), "res2.in1.running_var": np.ones(128, np.float32)}
    (tmp_path / "a.model").write_bytes(torch_legacy(t | extra))
    (tmp_path / "b.pth").write_bytes(torch_zip(t))
    np.testing.assert_array_equal(painted(tmp_path / "a.model", picture), painted(tmp_path / "b.pth", picture))


def test_torch_itself(tmp_path, picture):
    torch = pytest.importorskip("torch")
    t = state_dict()
    torch.save({name: torch.tensor(array) for name, array in t.items()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(torch_zip(t))
    np.testing.assert_array_equal(painted(tmp_path / "a.pth", picture), painted(tmp_path / "b.pth", picture))


def test_lengstrom(tmp_path, picture):
    arrays = variables()
    expected = tensorflow_net(arrays, picture * 255.0) / 255
    assert expected.std() > 0.05
    np.savez(tmp_path / "a.npz", *arrays)
    np.testing.assert_allclose(painted(tmp_path / "a.npz", picture), expected, atol=5e-5)


def test_variables_are_ordered_by_their_numbers(tmp_path, picture):
    arrays = variables()
    np.savez(tmp_path / "a.npz", *arrays)
    expected = painted(tmp_path / "a.npz", picture)
    # Alphabetically, as a checkpoint lists them, with what its optimiser keeps; and in order, by names of their own.
    checkpoint = {f"{name}/Adam_1": array for name, array in named(arrays).items()} | named(arrays)
    np.savez(tmp_path / "b.npz", **dict(sorted(checkpoint.items())), beta1_power=np.float32(0.9))
    kinds = {
        f"{kind}{i // 3}": array for i, array in enumerate(arrays) for kind in [("kernel", "shift", "scale")[i % 3]]
    }
    np.savez(tmp_path / "c.npz", **kinds)
    for name in "bc":
        np.testing.assert_array_equal(painted(tmp_path / f"{name}.npz", picture), expected)


@pytest.mark.parametrize("name", ["pytorch", "lengstrom"])
def test_the_fast_form_equals_the_plain_one(tmp_path, picture, name):
    path = tmp_path / ("a.pth" if name == "pytorch" else "a.npz")
    path.write_bytes(torch_zip(state_dict())) if name == "pytorch" else np.savez(path, *variables())
    net, params, about = io.load(path)
    assert about["net"] == name and net is nets.NETS[name]
    plain, fast = (compiled(net.clone(fast=fast))(params, picture[None, :14, :21]) for fast in (False, True))
    assert plain.shape == (1, 14, 21, 3)
    np.testing.assert_allclose(fast, plain, atol=2e-4)


def test_stylize_paints_with_them_and_they_can_be_kept(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", *variables())
    photo = photograph(tmp_path / "photo.png", 1, size=(24, 16))
    expected = painted(tmp_path / "a.npz", images.load(photo))
    flags = ["--content", photo, "--style", tmp_path / "a.npz", "--output", tmp_path / "out.png"]
    command(monkeypatch, "stylize", *flags)
    np.testing.assert_allclose(images.load(tmp_path / "out.png"), expected, atol=3e-3)
    io.save(tmp_path / "kept.safetensors", *io.load(tmp_path / "a.npz")[1:])
    kept = painted(tmp_path / "kept.safetensors", images.load(photo))
    assert np.abs(kept - expected).mean() < 5e-3  # in half precision


# --- files that are not what they say


def refused(path, *words):
    with pytest.raises(InputError) as error:
        io.load(path)
    line = str(error.value)
    assert "\n" not in line and str(path) in line and all(word in line for word in words), line


@pytest.mark.parametrize("file", [zip_file, legacy_file])
def test_a_harmful_pickle_is_refused_and_not_run(tmp_path, file):
    mark = tmp_path / "mark"
    body = pickle.dumps({"conv1.conv2d.weight": Harm(os.system, f"touch {mark}")}, 2)[2:-1]
    (tmp_path / "a.pth").write_bytes(file(body, {}))
    refused(tmp_path / "a.pth", "no tensor needs", "nothing was run")
    np.savez(tmp_path / "a.npz", *variables()[:-1], np.array([Harm(os.system, f"touch {mark}")], object))
    refused(tmp_path / "a.npz", "allow_pickle")
    assert not mark.exists()


def changed(tree, name, array):
    return {**tree, name: array}


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: {n: a for n, a in t.items() if n != "res3.in2.bias"}, ["has no res3.in2.bias"]),
        (lambda t: changed(t, "in2.weight", np.ones(63, np.float32)), ["in2.weight", "[63]", "[64]"]),
        (
            lambda t: changed(t, "conv1.conv2d.weight", np.ones((32, 3, 7, 7), np.float32)),
            ["conv1.conv2d.weight", "[32, 3, 7, 7]", "[32, 3, 9, 9]"],
        ),
        (lambda t: changed(t, "in2.weight", np.full(64, np.nan, np.float32)), ["in2.weight", "not finite"]),
        (lambda t: changed(t, "conv1.conv2d.weight", np.full((32, 3, 9, 9), 1e38, np.float32)), ["too large"]),
        (lambda t: changed(t, "res6.conv1.conv2d.weight", np.ones(3, np.float32)), ["res6.conv1.conv2d.weight"]),
        (lambda t: {"features.0.weight": np.ones(3, np.float32)}, ["has no conv1.conv2d.weight"]),
    ],
)
def test_other_torch_files_are_refused(tmp_path, change, words):
    (tmp_path / "a.pth").write_bytes(torch_zip(change(state_dict())))
    refused(tmp_path / "a.pth", *words)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v: v[:-1], ["47 variables, not 48"]),
        (lambda v: [*v[:4], v[4][:5], *v[5:]], ["arr_4", "[5]", "[64]"]),
        (lambda v: [*v[:39], v[39].swapaxes(2, 3), *v[40:]], ["arr_39", "[3, 3, 128, 64]", "[3, 3, 64, 128]"]),
        (lambda v: [*v[:4], np.array(["a"] * 64), *v[5:]], ["arr_4", "<U1"]),
        (lambda v: [*v[:4], v[4] * np.inf, *v[5:]], ["arr_4", "not finite"]),
        (lambda v: [np.full_like(v[0], 3e38), *v[1:]], ["too large"]),
        (lambda v: [*v, np.zeros(2**25)], ["unpack"]),
    ],
)
def test_other_npz_files_are_refused(tmp_path, change, words):
    np.savez_compressed(tmp_path / "a.npz", *change(variables()))
    refused(tmp_path / "a.npz", *words)


@pytest.mark.parametrize("suffix", convert.SUFFIXES)
def test_damaged_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(torch_zip(state_dict())) if suffix != ".npz" else np.savez(path, *variables())
    whole = path.read_bytes()
    for data in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-1000]):
        path.write_bytes(data)
        refused(path)
