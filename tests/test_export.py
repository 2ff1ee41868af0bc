"""Exported nets paint as the nets do, in ONNX Runtime and by JAX alone, whatever the size."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from commands import run as command
from networks import SMALL, pictures, trained

from nstjax import images, nets
from nstjax.errors import InputError
from nstjax.nets import export, io, layers, transform
from nstjax.weights import PICTURES

FORMS = SMALL | {
    "no norm": transform.TransformNet(norm=None, width=2, blocks=1),
    "bilinear": transform.TransformNet(upsample=layers.bilinear, width=2, blocks=1),
    "multiplier 1": transform.TransformNet(conv=functools.partial(layers.DepSep, multiplier=1), width=2, blocks=1),
}
# What takes time here is compiling.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SIZES = [(2, 16, 20), (1, 33, 46), (1, 18, 16)]


@functools.cache
def setting(name):
    """(net, variables, [(pictures, what the net paints)])."""
    net = FORMS[name]
    variables = trained(net, pictures(1, 16, 16))
    apply = quick(net.apply)
    return net, variables, [(x, apply(variables, x)) for x in (pictures(*size, seed=3) for size in SIZES)]


def onnx_session(data):
    onnxruntime = pytest.importorskip("onnxruntime", reason='pip install "nstjax[onnx]"')
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", FORMS)
def test_onnx_paints_as_the_net(name):
    net, variables, cases = setting(name)
    session = onnx_session(export.to_onnx(net, variables, {"net": name}))
    for x, expected in cases:
        (painted,) = session.run(None, {"pictures": x})
        assert painted.shape == x.shape and expected.std() > 0.01
        np.testing.assert_allclose(painted, expected, rtol=1e-4, atol=1e-5)
    ((given,), (got,)) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("pictures", ["n", "h", "w", 3], "tensor(float)")
    assert (got.name, got.shape) == ("stylized", ["n", "h", "w", 3])
    assert json.loads(session.get_modelmeta().custom_metadata_map["nstjax"]) == {"net": name}


def kernels(tree, change):
    """A net's variables with changed kernels."""
    return jax.tree_util.tree_map_with_path(lambda path, x: change(np.asarray(x)) if np.ndim(x) == 4 else x, tree)


def rounded_to_8_bits(kernel):
    """Each output channel in steps of 1/127 of its largest weight, by a loop."""
    rounded = np.zeros_like(kernel)
    for channel in range(kernel.shape[3]):
        step = np.float32(abs(kernel[..., channel]).max() / 127)
        rounded[..., channel] = np.round(kernel[..., channel] / step) * step
    return rounded


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_kernels_in_fewer_bits(name, precision):
    """The file paints as the net with the rounded kernels does, and not as the net with its own."""
    net, variables, _ = setting(name)
    change = {"float16": lambda x: np.float32(np.float16(x)), "int8": rounded_to_8_bits}[precision]
    session = onnx_session(export.to_onnx(net, variables, precision=precision))
    rounded = onnx_session(export.to_onnx(net, kernels(variables, change)))
    x = pictures(1, 18, 16, seed=3)
    (painted,), (expected,) = (each.run(None, {"pictures": x}) for each in (session, rounded))
    np.testing.assert_allclose(painted, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(painted - onnx_session(export.to_onnx(net, variables)).run(None, {"pictures": x})[0]).max() > 2e-5


def test_how_large_the_files_are():
    net = nets.NETS["fast"]
    variables = trained(net, pictures(1, 16, 16))
    of = {precision: len(export.to_onnx(net, variables, precision=precision)) for precision in export.TOLERANCES}
    assert of["float16"] < 0.51 * of["float32"] and of["int8"] < 0.26 * of["float32"] and of["int8"] < 2e6


@pytest.mark.trained
def test_half_precision_is_lossless_for_a_bundled_net_and_8_bits_change_less_than_a_level():
    net, variables, _ = io.load("the_scream")
    sessions = [onnx_session(export.to_onnx(net, variables, precision=each)) for each in export.TOLERANCES]
    x = images.load(PICTURES / "astronaut.jpg", size=96)[None]
    whole, half, bits = (session.run(None, {"pictures": x})[0] for session in sessions)
    np.testing.assert_array_equal(half, whole)
    assert 0 < np.sqrt(np.square(bits - whole).mean()) < 1 / 255


@pytest.mark.parametrize("name", ["johnson", "fast", "depsep", "depsep-nn-bil", "lengstrom"])
def test_jax_paints_as_the_net(name):
    net, variables, cases = setting(name)
    exported = jax.export.deserialize(bytearray(export.to_jax(net, variables)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for x, expected in cases:
        np.testing.assert_allclose(quick(exported.call)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["johnson", "fast", "depsep", "depsep-nn", "depsep-nn-bil"])
def test_whole_nets_in_onnx(name):
    net = nets.NETS[name]
    x = pictures(1, 24, 20)
    variables = trained(net, x)
    session = onnx_session(export.to_onnx(net, variables))
    expected = quick(net.apply)(variables, x)
    assert np.abs(session.run(None, {"pictures": x})[0] - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_jax_form_needs_no_nstjax(tmp_path):
    net, variables, ((x, expected), *_) = setting("fast")
    (tmp_path / "net.jax").write_bytes(export.to_jax(net, variables))
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np, jax.export\n"
        "net = jax.export.deserialize(bytearray(open('net.jax', 'rb').read()))\n"
        "np.save('y.npy', net.call(np.load('x.npy')))\n"
        "assert not {'nstjax', 'flax'} & set(sys.modules)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment | {"JAX_PLATFORMS": "cpu"})
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def style(tmp_path, monkeypatch):
    net, variables, _ = setting("depsep-nn-bil")
    monkeypatch.setitem(nets.NETS, "depsep-nn-bil", net)
    io.save(tmp_path / "a.safetensors", variables, {"net": "depsep-nn-bil", "steps": 7})
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("suffix", export.SUFFIXES)
def test_the_command(style, tmp_path, monkeypatch, capsys, suffix):
    output = tmp_path / "new" / f"net{suffix}"
    command(monkeypatch, "stylize", "--style", style, "--export", suffix[1:], "--output", output)
    assert f"saved {output}" in capsys.readouterr().out
    net, variables, about = io.load(style)
    x = pictures(1, 17, 19)
    if suffix == ".onnx":
        session = onnx_session(output.read_bytes())
        (painted,) = session.run(None, {"pictures": x})
        assert json.loads(session.get_modelmeta().custom_metadata_map["nstjax"]) == about
    else:
        painted = quick(jax.export.deserialize(bytearray(output.read_bytes())).call)(x)
    np.testing.assert_allclose(painted, quick(net.apply)(variables, x), rtol=1e-4, atol=1e-5)


def test_the_command_writes_8_bits(style, tmp_path, monkeypatch):
    output = tmp_path / "net.onnx"
    command(
        monkeypatch, "stylize", "--style", style, "--export", "onnx", "--export-precision", "int8", "--output", output
    )
    net, variables, about = io.load(style)
    assert output.read_bytes() == export.to_onnx(net, variables, about, precision="int8")


@pytest.mark.parametrize("suffix", export.SUFFIXES)
def test_what_paints_otherwise_is_not_written(style, tmp_path, monkeypatch, suffix):
    """Two faults: numbers that are none, and another output."""
    output = tmp_path / f"net{suffix}"
    output.write_bytes(b"old")
    net, variables, _ = io.load(style)
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
    with pytest.raises(InputError, match=r"^[^\n]*differ from the net's by nan$"):
        export.save(output, net, broken)
    form = {".onnx": "to_onnx", ".jax": "to_jax"}[suffix]
    original = getattr(export, form)
    monkeypatch.setattr(
        export, form, lambda net, *rest, **more: original(net.clone(output=transform.clip), *rest, **more)
    )
    for precision in export.TOLERANCES if suffix == ".onnx" else ("float32",):
        with pytest.raises(InputError, match=r"^[^\n]*differ from the net's by 0\.\d+$"):
            export.save(output, net, variables, precision=precision)
    assert output.read_bytes() == b"old"


def test_bad_input_is_refused_in_one_line_before_the_net_is_read(style, tmp_path, monkeypatch, capsys):
    def refused(*flags):
        with pytest.raises(SystemExit) as stop:
            command(monkeypatch, "stylize", "--export", "onnx", *flags)
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2
        return line

    missing = tmp_path / "missing.safetensors"
    assert "writes a .onnx file" in refused("--style", missing, "--output", tmp_path / "net.jax")
    assert "--content: would change nothing" in refused("--style", missing, "--content", "photo.jpg")
    assert "--preserve-color: would change nothing" in refused(
        "--style", missing, "--size", 64, "--preserve-color", "luminance"
    )
    assert "--export-precision: is only for --export onnx" in refused(
        "--style", missing, "--export", "jax", "--export-precision", "int8", "--output", "a.jax"
    )
    (tmp_path / "file").write_text("")
    assert "not a folder" in refused("--style", missing, "--output", tmp_path / "file" / "net.onnx")
    assert "no such file" in refused("--style", missing, "--output", tmp_path / "net.onnx")
    decoder = nets.NETS["adain"].clone(channels=(4, 4, 4))
    io.save(tmp_path / "b.safetensors", trained(decoder, np.zeros((1, 2, 2, 4), np.float32)), {"net": "adain"})
    assert "is no transform net" in refused("--style", tmp_path / "b.safetensors", "--output", tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert 'pip install "nstjax[onnx]"' in refused("--style", style, "--output", tmp_path / "net.onnx")


def test_parts_of_ones_own_are_told():
    net, variables, _ = setting("fast")
    for other in (net.clone(upsample=lambda x: x), net.clone(output=np.tanh)):
        with pytest.raises(ValueError, match="no ONNX form"):
            export.to_onnx(other, variables)
