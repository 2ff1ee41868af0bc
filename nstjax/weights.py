"""Where weights come from: bundled with the package, downloaded with a checksum, or read from a file.

Whatever the source, a network's weights have one form: kernels [h, w, in, out] and biases of `conv(image - mean)` for
RGB images in [0, 1]. Caffe's and torchvision's preprocessing are folded into the first kernel; the mean stays
apart, since zeros are padded after its subtraction. `load` is for VGG; `nstjax.layouts` takes other networks from here.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np

from nstjax import files, torchfile
from nstjax.errors import InputError
from nstjax.optional import needed

# Convolutions in each of the five blocks, and their channels (Simonyan and Zisserman 2015, table 1, D and E).
BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)

# The two preprocessings, as the manifest and files' metadata write them. The means are RGB, in [0, 1].
CAFFE = "BGR, 0..255, minus [103.939, 116.779, 123.68]"
IMAGENET = "RGB, 0..1, minus [0.485, 0.456, 0.406], divided by [0.229, 0.224, 0.225]"
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
MEANS: dict[str, np.ndarray] = {
    CAFFE: np.array([123.68, 116.779, 103.939], np.float32) / 255,
    IMAGENET: np.array([0.485, 0.456, 0.406], np.float32),
}

ROOM = 2**31  # bytes; the largest of the networks, with its dense layers in double precision, takes half

KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
TORCHVISION_URL = "https://download.pytorch.org/models"
BUNDLED = ("vgg16", "vgg19", "squeezenet11")
# The official files: name, checksum (torchvision's names hold the start of the SHA-256, no more), bytes if known.
DOWNLOADS: dict[tuple[str, str], tuple[str, str, int | None]] = {
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
    ("squeezenet11", "torchvision"): ("squeezenet1_1-b8a52dc0.pth", "sha256:b8a52dc0", None),
    ("resnet50", "keras"): (
        "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5:4d473c1dd8becc155b73f8504c6f6626",
        94_765_736,
    ),
    ("resnet50", "torchvision"): ("resnet50-0676ba61.pth", "sha256:0676ba61", 102_530_333),
    ("densenet121", "keras"): (
        "densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5:30ee3e1110167f948a6b9946edeeb738",
        29_084_464,
    ),
    ("densenet121", "torchvision"): ("densenet121-a639ec97.pth", "sha256:a639ec97", 32_342_954),
    ("vit_b16", "torchvision"): ("vit_b_16-c867db91.pth", "sha256:c867db91", 346_328_529),
}


def load(network, source="bundled"):
    """Weights of VGG {"mean": [3], "conv1_1": {"kernel": [3, 3, in, out], "bias": [out]}, ...} in numpy's float32.

    network: "vgg16" or "vgg19". source: "bundled"; "keras" or "torchvision", downloaded once; or a .h5, .pth,
    .pt, .onnx, .npz or .safetensors file. A file's preprocessing is told by its text "preprocessing" (in
    safetensors metadata, or an array of that name in .npz), else by its names (features.0.weight:
    torchvision's; others: Caffe's). Raises InputError, one line that names the file, if it is missing,
    damaged, changed, or holds another network.
    """
    if network not in BLOCKS:
        raise InputError(f"no network {network!r}; there are {', '.join(BLOCKS)}")
    path = find(network, source)
    return assemble(path, read(path), network)


def find(network, source):
    """Path of a network's weights: "bundled", "keras" or "torchvision" (downloaded once), or a file's own.

    InputError if there are none of that kind.
    """
    if source == "bundled" and network in BUNDLED:
        return bundled(f"{network}.safetensors")
    if (network, source) in DOWNLOADS:
        return download(network, source)
    if source in ("bundled", "keras", "torchvision"):
        others = " or ".join(kind for name, kind in DOWNLOADS if name == network)
        what = "are bundled" if source == "bundled" else f"are known of {source}"
        raise InputError(f"no weights of {network} {what}: choose {others} (downloaded), a file, or random")
    return Path(source)


def bundled_folder():
    """The folder of the bundled weights: beside the code in an installed wheel, at the top of a checkout."""
    installed = Path(__file__).parent / "bundled"
    return installed if installed.exists() else Path(__file__).parent.parent / "weights"


def bundled(name):
    """Path of a bundled file, once compared with the SHA-256 in its folder's manifest.json; InputError if not equal."""
    path = bundled_folder() / name
    try:
        expected = json.loads((path.parent / "manifest.json").read_text())[path.name]["sha256"]
        found = _digest(path, "sha256")
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = f"the bundled weights or their manifest.json cannot be read ({_reason(error)})"
        raise files.refusal(path, f"{why}; restore them or install nstjax again") from error
    if found != expected:
        why = "the bundled weights are changed or cut short (checksum); restore them or install nstjax again"
        raise files.refusal(path, why)
    return path


def download(network, source):
    """Path of an official file in the cache ($NSTJAX_CACHE or the user's own), downloaded if not there yet.

    The checksum is compared at every call; a file that fails is removed. InputError if it cannot be had.
    """
    pooch = needed("pooch", f"weights {source!r}: downloading them", "pooch tqdm")
    name, checksum, size = DOWNLOADS[network, source]
    url = f"{KERAS_URL if source == 'keras' else TORCHVISION_URL}/{name}"
    folder = os.environ.get("NSTJAX_CACHE") or pooch.os_cache("nstjax")
    algorithm, start = checksum.split(":")
    whole = checksum if len(start) == 32 else None

    def verify(path, action, downloader):
        # pooch itself compares whole checksums only; of torchvision's no more than the start is known.
        if not _digest(path, algorithm).startswith(start) or size not in (None, os.path.getsize(path)):
            os.remove(path)
            raise ValueError("its checksum or size is wrong and it was removed; try again")
        return path

    pooch.get_logger().setLevel("WARNING")
    try:
        file = pooch.retrieve(url, whole, Path(name).name, folder, processor=verify, progressbar=True)
    except (OSError, ValueError) as error:
        why = f"cannot be downloaded ({_reason(error)}); with a copy of it use --weights PATH"
        raise files.refusal(url, why) from error
    return Path(file)


def read(path, wanted=None):
    """Arrays {name: array} of a .safetensors, .npz, .h5, .onnx, .pth, .pt or .bin file whose names are `wanted`.

    By default those of VGG's convolutions, and its text "preprocessing", if it has one. InputError if the file cannot
    be read.
    """
    wanted = wanted or _wanted
    readers = {
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        ".h5": _read_h5,
        ".hdf5": _read_h5,
        ".onnx": _read_onnx,
        ".pth": _read_torch,
        ".pt": _read_torch,
        ".bin": _read_torch,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise files.refusal(path, f"is no {', '.join(readers)} file (and not: bundled, keras, torchvision, random)")
    try:
        path.stat()
        if not path.is_file():
            raise files.refusal(path, "is not a file; give the name of one")
        return {name: _plain(np.asarray(array)) for name, array in readers[suffix](path, wanted).items()}
    except InputError:
        raise
    except OSError as error:
        why = f"cannot be read ({_reason(error)}); check the path and the file"
        raise files.refusal(path, why) from error
    except ImportError as error:  # of a package that a reader imports while it reads
        package = (error.name or "").partition(".")[0]
        advice = f"pip install {package}" if package else "install it again"
        raise files.refusal(path, f"a package to read it is missing or broken ({_reason(error)}): {advice}") from error
    except Exception as error:  # a damaged file makes each library's reader fail in its own ways
        why = f"is no sound {suffix} file ({_reason(error)}); get it again"
        raise files.refusal(path, why) from error


def assemble(path, arrays, network):
    """The tree that `load` returns, from a file's arrays by any of the usual names; the path is for messages.

    InputError if the arrays are not exactly the network's convolutions, in finite numbers.
    """
    expected, numbered = shapes(network), _torchvision_layers(network)
    layers = {name: layer for name in arrays if (layer := layer_of(name))}
    torchvision = any(layer in numbered for layer in layers.values())
    found: dict[str, dict] = {layer: {} for layer in expected}
    for name, layer in layers.items():
        parts = found.get(numbered.get(layer, layer))
        if parts is None:
            raise files.refusal(path, f"has {layer}, which {network} has not; is it of another network?")
        if parts.setdefault(kind_of(name, arrays[name]), arrays[name]) is not arrays[name]:
            raise files.refusal(path, f"has {layer} more than once ({name!r}); keep one network in it")
    preprocessing = preprocessing_of(path, arrays, IMAGENET if torchvision else CAFFE)
    tree: dict = {"mean": MEANS[preprocessing].copy()}
    with np.errstate(over="ignore"):  # overflow to infinity is found below
        for layer, shape in expected.items():
            tree[layer] = _convolution(path, layer, found[layer], shape)
        tree["conv1_1"]["kernel"] = fold(tree["conv1_1"]["kernel"], preprocessing)
    for layer in expected:
        if not all(np.isfinite(part).all() for part in tree[layer].values()):
            raise files.refusal(path, f"{layer} has numbers that are not finite; get the file again")
    return tree


def preprocessing_of(path, arrays, default):
    """The preprocessing that a file's text "preprocessing" names, or the default; InputError for an unknown one."""
    preprocessing = str(arrays.get("preprocessing", default))
    if preprocessing not in MEANS:
        raise files.refusal(path, f"its preprocessing is {preprocessing[:80]!r}; known are {' | '.join(MEANS)}")
    return preprocessing


def fold(kernel, preprocessing):
    """The first kernel [h, w, 3, out] for RGB pictures in [0, 1] instead of what the network expects."""
    if preprocessing == CAFFE:
        return kernel[:, :, ::-1] * np.float32(255)
    return kernel / IMAGENET_STD[:, None]


def shapes(network):
    """{layer: kernel shape [3, 3, in, out]} of a network's convolutions, in order."""
    result, before = {}, 3
    for block, (count, channels) in enumerate(zip(BLOCKS[network], CHANNELS, strict=True), 1):
        for i in range(1, count + 1):
            result[f"conv{block}_{i}"] = (3, 3, before, channels)
            before = channels
    return result


def _torchvision_layers(network):
    """{"features.0": "conv1_1", ...}: torchvision numbers convolutions, ReLUs and pools in one sequence."""
    names, number = {}, 0
    for block, count in enumerate(BLOCKS[network], 1):
        for i in range(1, count + 1):
            names[f"features.{number}"] = f"conv{block}_{i}"
            number += 2
        number += 1
    return names


def layer_of(name):
    """ "conv1_2" of "block1_conv2/kernel:0", "conv1_2/bias" etc.; "features.2" of torchvision's; or None."""
    if name.startswith("optimizer"):  # Keras keeps Adam's moments under the layers' names
        return None
    if match := re.search(r"(?:^|\.)(features\.\d+)\.(?:weight|bias)$", name):
        return match[1]
    keras, own = r"(?<![a-z0-9])block(\d)_conv(\d)(?!\d)", r"(?<!\w)conv(\d)_(\d)(?!\d)"
    match = re.search(keras, name) or re.search(own, name)
    return f"conv{match[1]}_{match[2]}" if match else None


def kind_of(name, array):
    """What an array is to its layer: "kernel", "bias", or "codes" and "palette" (together a kernel)."""
    if array.dtype == np.uint8:
        return "codes"
    if name.endswith(("palette", "_W_table")):
        return "palette"
    return "bias" if array.ndim == 1 else "kernel"


def _convolution(path, layer, parts, shape):
    """{"kernel", "bias"} in float32, from a kernel in either layout, or from its codes and palette."""
    if "codes" in parts and "palette" in parts:
        codes, palette = parts["codes"], parts["palette"]
        if palette.ndim != 1 or codes.max(initial=0) >= len(palette):
            raise files.refusal(path, f"the codes of {layer} are not in its palette; get the file again")
        parts = parts | {"kernel": palette[codes]}
    result = {}
    for kind, expected in (("kernel", shape), ("bias", shape[3:])):
        if kind not in parts:
            raise files.refusal(path, f"has no {kind} of {layer}; is it of another network?")
        array = parts[kind]
        if kind == "kernel" and array.shape == (shape[3], shape[2], 3, 3):  # Torch's and ONNX's order
            array = array.transpose(2, 3, 1, 0)
        if array.shape != expected or array.dtype.kind not in "fiu":
            what = f"{array.dtype} {list(parts[kind].shape)}, where float32 {list(expected)} is expected"
            raise files.refusal(path, f"the {kind} of {layer} is {what}; is it of another network?")
        result[kind] = np.array(array, np.float32, order="C")
    return result


def _wanted(name):
    return name == "preprocessing" or layer_of(name)


def _plain(array):
    """numpy itself has no bfloat16, which counts as a kind of its own."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _check_room(size):
    if size > ROOM:  # before a small file unpacks to more than the memory
        raise ValueError(f"it would unpack to {size / 2**30:.0f} GiB, more than any of the networks")


def _read_safetensors(path, wanted):
    safetensors = needed("safetensors", f"{path}: reading it", "safetensors")
    needed("ml_dtypes", f"{path}: reading it", "ml_dtypes")  # comes with jax, and teaches numpy bfloat16
    with safetensors.safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118 (it is no dict)
        arrays = {name: file.get_tensor(name) for name in names}
        about = file.metadata() or {}
    return arrays | {name: np.array(text) for name, text in about.items() if name == "preprocessing"}


def _read_npz(path, wanted):
    # np.load itself leaves a damaged file open.
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
        _check_room(sum(member.file_size for member in file.zip.infolist()))
        return {name: file[name] for name in file.files if wanted(name)}


def _read_torch(path, wanted):
    return torchfile.load(path, wanted)


def _read_h5(path, wanted):
    h5py = needed("h5py", f"{path}: reading it", '"nstjax[convert]"')
    datasets, links = {}, []

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            datasets[name] = item

    def visit_link(name, link):
        if not isinstance(link, h5py.HardLink):
            links.append(name)

    with h5py.File(path) as file:
        file.visititems(visit)  # follows none of the links
        file.visititems_links(visit_link)
        # Any of these could bring the numbers of any other file that the user may read.
        links += [name for name, item in datasets.items() if item.external or item.is_virtual]
        if links:
            raise ValueError(f"its {links[0]!r} refers to something else, maybe in another file")
        found = {name: item for name, item in datasets.items() if wanted(name)}
        for name, item in found.items():
            _check_filters(name, item.id.get_create_plist())
        _check_room(sum(item.nbytes for item in found.values()))
        return {name: item[()] for name, item in found.items()}


def _check_filters(name, properties):
    """Refuse compression other than HDF5's own (1 to 6) and h5py's LZF, for which HDF5 would load a plugin's code."""
    for number in range(properties.get_nfilters()):
        code = properties.get_filter(number)[0]
        if code not in (1, 2, 3, 4, 5, 6, 32000):
            raise ValueError(f"its {name!r} is compressed by a plugin (filter {code})")


def _read_onnx(path, wanted):
    onnx = needed("onnx", f"{path}: reading it", '"nstjax[convert]"')
    to_array = needed("onnx.numpy_helper", f"{path}: reading it", '"nstjax[convert]"').to_array
    tensors = [t for t in onnx.load(path, load_external_data=False).graph.initializer if wanted(t.name)]
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors):
        raise ValueError("it keeps its numbers in another file")
    return {t.name: to_array(t) for t in tensors}


def _digest(path, algorithm):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _reason(error):
    # requests wraps what happened, such as a name that cannot be resolved, three times.
    while causes := [each for each in (getattr(error, "reason", None), *error.args) if isinstance(each, Exception)]:
        error = causes[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = str(error).strip().partition("\n")[0]
    return printable(re.sub(r"^HTTPS?Connection\([^)]*\): ", "", line) or type(error).__name__)


def printable(text):
    """A text that a terminal shows as it is."""
    return "".join(c if c.isprintable() else "?" for c in text)  # a file's own names may be in it
