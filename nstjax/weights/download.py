"""Files of weights, bundled with the package or downloaded once, and verified by their checksums at every use."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from nstjax import files
from nstjax.errors import InputError, reason
from nstjax.optional import needed

PACKAGE = Path(__file__).parent.parent
PICTURES = PACKAGE / "pictures"  # the bundled content and style image

KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
TORCHVISION_URL = "https://download.pytorch.org/models"
BUNDLED = ("vgg16", "vgg19", "squeezenet11", "efficientnet_lite0")


class Official(NamedTuple):
    """A file as Keras or torchvision publishes it."""

    name: str  # below KERAS_URL or TORCHVISION_URL
    checksum: str  # "md5:" or "sha256:" and hexadecimal digits; torchvision publishes only the first eight
    size: int | None  # bytes, if known


DOWNLOADS: dict[tuple[str, str], Official] = {
    ("vgg16", "keras"): Official(
        "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:6d6bbae143d832006294945121d1f1fc", 58_889_256
    ),
    ("vgg19", "keras"): Official(
        "vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:253f8cb515780f3b799900260a226db6", 80_134_624
    ),
    ("vgg16", "torchvision"): Official("vgg16-397923af.pth", "sha256:397923af", 553_433_881),
    ("vgg19", "torchvision"): Official("vgg19-dcbb9e9d.pth", "sha256:dcbb9e9d", 574_673_361),
    ("squeezenet11", "torchvision"): Official("squeezenet1_1-b8a52dc0.pth", "sha256:b8a52dc0", None),
    ("resnet50", "keras"): Official(
        "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5:4d473c1dd8becc155b73f8504c6f6626",
        94_765_736,
    ),
    ("resnet50", "torchvision"): Official("resnet50-0676ba61.pth", "sha256:0676ba61", 102_530_333),
    ("densenet121", "keras"): Official(
        "densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5:30ee3e1110167f948a6b9946edeeb738",
        29_084_464,
    ),
    ("densenet121", "torchvision"): Official("densenet121-a639ec97.pth", "sha256:a639ec97", 32_342_954),
    ("vit_b16", "torchvision"): Official("vit_b_16-c867db91.pth", "sha256:c867db91", 346_328_529),
}


def find(network: str, source: str | os.PathLike[str]) -> Path:
    """Return the path of a network's weights.

    Args:
        source: "bundled"; "keras" or "torchvision", downloaded once; or the name of a file, which is not opened.

    Raises:
        InputError: there are no weights of that kind, they cannot be downloaded, or a checksum is wrong.
    """
    if source == "bundled" and network in BUNDLED:
        return bundled(f"{network}.safetensors")
    if (network, source) in DOWNLOADS:
        return download(network, str(source))
    if source in ("bundled", "keras", "torchvision"):
        others = " or ".join(kind for name, kind in DOWNLOADS if name == network)
        what = "are bundled" if source == "bundled" else f"are known of {source}"
        raise InputError(f"no weights of {network} {what}: choose {others} (downloaded), a file, or random")
    return Path(source)


def bundled_folder() -> Path:
    """Return the folder of the bundled weights: beside the code in a wheel, at the top of a checkout."""
    installed = PACKAGE / "bundled"
    return installed if installed.exists() else PACKAGE.parent / "weights"


def bundled_files() -> list[Path]:
    """Return all weights, styles and images that come with the package: inputs that no output may overwrite."""
    return [path for folder in (bundled_folder(), PICTURES) for path in folder.rglob("*") if path.is_file()]


def bundled(name: str) -> Path:
    """Return the path of a bundled file, after verifying its SHA-256, which is in its folder's manifest.json.

    Raises:
        InputError: the checksum differs, or one of the two files cannot be read.
    """
    path = bundled_folder() / name
    try:
        expected = json.loads((path.parent / "manifest.json").read_text())[path.name]["sha256"]
        found = _digest(path, "sha256")
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = f"the bundled weights or their manifest.json cannot be read ({reason(error)})"
        raise files.refusal(path, f"{why}; restore them or install nstjax again") from error
    if found != expected:
        why = "the bundled weights are changed or cut short (checksum); restore them or install nstjax again"
        raise files.refusal(path, why)
    return path


def download(network: str, source: str) -> Path:
    """Return the path of an official file in the cache ($NSTJAX_CACHE or the user's own), downloading it if needed.

    The checksum is compared at every call; a file that fails is removed.

    Raises:
        InputError: the file cannot be downloaded, or its checksum or size is wrong.
    """
    pooch = needed("pooch", f"weights {source!r}: downloading them", "pooch tqdm")
    name, checksum, size = DOWNLOADS[network, source]
    url = f"{KERAS_URL if source == 'keras' else TORCHVISION_URL}/{name}"
    folder = os.environ.get("NSTJAX_CACHE") or pooch.os_cache("nstjax")
    algorithm, start = checksum.split(":")
    whole = checksum if len(start) == 32 else None

    def verify(path: str, action: str, downloader: object) -> str:
        # pooch itself compares only whole checksums, and torchvision publishes only the start of its own.
        if not _digest(path, algorithm).startswith(start) or size not in (None, os.path.getsize(path)):
            os.remove(path)
            raise ValueError("its checksum or size is wrong and it was removed; try again")
        return path

    pooch.get_logger().setLevel("WARNING")
    try:
        file = pooch.retrieve(url, whole, Path(name).name, folder, processor=verify, progressbar=True)
    except (OSError, ValueError) as error:
        why = re.sub(r"^HTTPS?Connection\([^)]*\): ", "", reason(_cause(error)))
        why = f"cannot be downloaded ({why}); with a copy of it use --weights PATH"
        raise files.refusal(url, why) from error
    return Path(file)


def _digest(path: str | os.PathLike[str], algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _cause(error: Exception) -> Exception:
    """The original error, such as a host name that cannot be resolved, which requests wraps three times."""
    while causes := [each for each in (getattr(error, "reason", None), *error.args) if isinstance(each, Exception)]:
        error = causes[0]
    return error
