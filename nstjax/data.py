"""Images to train on -> batches: a folder of files, or COCO 2017 by TFDS's own builder.

The order and every crop depend only on the seed and on how many images came before. So each batch is yielded with the
position after it, a small dict for JSON, from which exactly the same batches follow, however many images were
prefetched and whichever could not be read. Several hosts take the images in turn.
"""

import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from nstjax import files, images
from nstjax.errors import InputError, reason
from nstjax.files import PathLike
from nstjax.optional import needed

_JPEG, _NETPBM = (".jpg", ".jpeg", ".jpe", ".jfif"), (".ppm", ".pgm", ".pbm")
_OPTIONAL = (".heic", ".heif", ".jxl")  # need nstjax[formats]
SUFFIXES = (
    *_JPEG,
    *_NETPBM,
    *_OPTIONAL,
    *(".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".jp2", ".psd", ".qoi"),
)
Image = Float32[np.ndarray, "_ _ 3"]  # in [0, 1]
Position = dict[str, Any]  # how far batches have come, for JSON

_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """Images by number."""

    name: str
    size: int  # the number of images
    identity: str  # of the data; a position is only valid for the same data
    read: Callable[..., Image]  # (number, short=, least=): short side of the result and minimum in the file, in pixels
    skipped: dict[int, str]  # {number: the line logged} of images that could not be read so far


def listed(path: PathLike) -> list[Path]:
    """Return the images in a folder and its subfolders, in the order of their names; hidden files are left out."""
    return [Path(path, name) for name in _names(path)]


def folder(path: PathLike) -> Source:
    """Return the images in a folder and its subfolders as a source, in the order of their names, without hidden files.

    Raises:
        InputError: there are none.
    """
    names = _names(path)
    if not names:
        raise files.refusal(path, f"has no images ({', '.join(SUFFIXES)}); give a folder that has")
    digest = hashlib.sha256(b"\0".join(os.fsencode(name) for name in names)).hexdigest()

    def read(number: int, *, short: int, least: int) -> Image:
        file = Path(path, names[number])
        shape = _fit(images.shape(file, size=2**20), short)
        return images.load(file, size=shape, source_minimum=least)

    return Source(os.fspath(path), len(names), f"{len(names)} files, names {digest[:16]}", read, {})


def coco(data_dir: PathLike | None = None, *, split: str = "train", downloads: PathLike | None = None) -> Source:
    """Return COCO 2017 as a source; what is not prepared yet is downloaded and prepared, which needs TensorFlow.

    Args:
        data_dir: where TFDS has prepared it as array_record; by default $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        split: train (118,287 images, a download of 20 GB), validation (5,000, 1 GB) or test (40,670, 7 GB). Only this
            split is downloaded. Once it is prepared, a slice such as "train[:10%]" can be read.
        downloads: a folder with COCO's archives, such as val2017.zip; missing ones are downloaded to it.

    Raises:
        InputError: it cannot be downloaded, prepared or read.
    """
    tfds = needed("tensorflow_datasets", "training data", '"nstjax[train]"')
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if not (found := prepared(root, split)):
        _prepare(tfds, root, split, downloads)
        found = prepared(root, split)
    try:
        builder = tfds.builder_from_directory(found[-1])
        # Without decoding: TFDS would decode by OpenCV or Pillow, whichever is installed, to different pixels.
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        why = f"COCO is prepared in {found[-1]} in a format that only TensorFlow reads; name another folder"
        raise files.refusal(root, why) from error
    except Exception as error:  # an unknown split, a missing or a damaged file: TFDS raises many kinds
        raise files.refusal(root, f"COCO's {split!r} cannot be read as array_record ({reason(error)})") from error

    def read(number: int, *, short: int, least: int) -> Image:
        name = f"coco/2017 {split}, image {number}"
        try:
            file = io.BytesIO(records[number]["image"])
        except Exception as error:  # a damaged record can raise many kinds
            raise files.refusal(name, f"cannot be read ({reason(error)})") from error
        file.name = name  # type: ignore[attr-defined]
        return images.load(file, size=_fit(images.shape(file), short), source_minimum=least)

    identity = f"{len(records)} of coco/2017 {builder.version} {split}"
    return Source(f"coco/2017 in {root}", len(records), identity, read, {})


def prepared(data_dir: PathLike, split: str) -> list[Path]:
    """Return the folders of the prepared versions of COCO 2017, or of one split of it alone, the newest last."""
    for config in ("2017", _config(split)):
        versions = Path(data_dir, "coco", config).glob("*.*.*/dataset_info.json")
        # TFDS gives a folder its name once it is complete.
        named = [file.parent for file in versions if file.parent.name.replace(".", "").isdigit()]
        if named:
            return sorted(named, key=lambda version: [int(part) for part in version.name.split(".")])
    return []


def first(source: Source, count: int) -> Source:
    """Return the first images of a source: of a folder by name, of COCO in TFDS's order, which is shuffled.

    Raises:
        InputError: it has fewer.
    """
    if count > source.size:
        raise files.refusal(source.name, f"has {source.size} images, not {count}; give a smaller count")
    return source._replace(size=count, identity=f"first {count} of {source.identity}")


def batches(
    source: Source,
    *,
    batch: int,
    crop: int,
    seed: int = 0,
    scale: tuple[float, float] = (1, 1.25),
    flip: bool = True,
    host: int = 0,
    hosts: int = 1,
    threads: int = 8,
    position: object = None,
) -> Iterator[tuple[Float32[np.ndarray, "_ _ _ 3"], Position]]:
    """Return endless batches [batch, crop, crop, 3] in [0, 1], each with the position after it.

    Each epoch is shuffled anew and has every image once. An image that cannot be read, or is smaller than half the
    crop, is logged once and noted in source.skipped, and another one, drawn by the seed, takes its place.

    Args:
        batch: images in a batch of this host.
        crop: side in pixels of the square that is cut out anywhere in an image.
        scale: the image's short side is first resized to crop * uniform(scale).
        flip: whether half of the crops are mirrored.
        host: the number of this host, from 0; the other `hosts` get other images.
        threads: that read images.
        position: where to continue, a `Position`; by default the beginning.

    Raises:
        InputError: no image can be read, or the position is of other data or another seed.
    """
    possible = batch >= 1 and crop >= 1 and 0 <= host < hosts and 1 <= scale[0] <= scale[1] and 0 <= seed < 2**32
    if not possible:
        raise ValueError(f"impossible batches: {batch=}, {crop=}, {host=}, {hosts=}, {scale=}, {seed=}")
    identity = {"seed": seed, "source": source.identity}
    start = _start(source, identity, position)
    grain = needed("grain", "training data", '"nstjax[train]"')

    def sample(number: int, rng: np.random.Generator) -> Image:
        return _sample(source, number, rng, crop=crop, scale=scale, flip=flip)

    for number in range(source.size):  # raises InputError early if no image can be read
        if _read(source, number, short=crop, least=crop // 2) is not None:
            break
    everything = grain.MapDataset.range(source.size).seed(seed).shuffle().repeat().random_map(sample)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * batch, 2 * threads))
    # Sliced after the random map, whose generator depends on the index in `everything`.
    samples = iter(everything[start + host :: hosts].to_iter_dataset(options))

    def stream() -> Iterator[tuple[Float32[np.ndarray, "_ _ _ 3"], Position]]:
        seen = start
        while True:
            stacked = np.stack([next(samples) for _ in range(batch)])
            seen += batch * hosts
            yield stacked, {"pictures": seen, **identity}

    return stream()


def _start(source: Source, identity: Mapping[str, Any], position: object) -> int:
    """How many images came before the position, after checking that it is of this source and seed."""
    if position is None:
        return 0
    given = position if isinstance(position, dict) else {}
    seen = given.get("pictures")
    if type(seen) is not int or not 0 <= seen < 2**62:
        raise files.refusal(source.name, "the position to resume from is damaged; start from the beginning")
    for key, here in identity.items():
        if given.get(key) != here:
            there = f"the position to resume from is of {key} {given.get(key)!r}, here it is {here!r}"
            raise files.refusal(source.name, f"{there}; use the same data and seed, or start from the beginning")
    return seen


def _sample(
    source: Source,
    number: int,
    rng: np.random.Generator,
    *,
    crop: int,
    scale: tuple[float, float],
    flip: bool,
) -> Image:
    """A crop [crop, crop, 3] of image `number`, or of another one if it cannot be read."""
    while True:
        short = round(crop * rng.uniform(*scale))
        image = _read(source, int(number), short=short, least=crop // 2)
        if image is not None:
            break
        number = int(rng.integers(source.size))
    top, left = (rng.integers(side - crop, endpoint=True) for side in image.shape[:2])
    mirror = -1 if flip and rng.random() < 0.5 else 1
    return image[top : top + crop, left : left + crop][:, ::mirror]


def _read(source: Source, number: int, *, short: int, least: int) -> Image | None:
    """The image, or None and a line in the log if it cannot be read. Raises InputError once all of them have failed."""
    try:
        return source.read(number, short=short, least=least)
    except InputError as error:
        line = str(error)
    if source.skipped.setdefault(number, line) is line:  # only one of several threads is the first
        _log.warning("skipped %s", line)
    if len(source.skipped) == source.size:
        why = f"none of its {source.size} images can be read; for one, {source.skipped[0]}"
        raise files.refusal(source.name, why)
    return None


def _fit(shape: tuple[int, int], short: int) -> tuple[int, int]:
    """(h, w) with the aspect of `shape` and a short side of `short`."""
    h, w = (max(side, 1) for side in shape)
    return (short, round(short * w / h)) if h <= w else (round(short * h / w), short)


def _names(path: PathLike) -> list[str]:
    """The names of all images in a folder, relative to it; links are followed, and each folder is listed once.

    A subfolder that cannot be listed is logged and left out. Raises InputError if the folder itself cannot be listed.
    """
    names, todo, seen = [], [os.fspath(path)], set()
    while todo:
        current = todo.pop()
        if (real := os.path.realpath(current)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(current) as entries:
                found = [(entry.name, kind) for entry in entries if (kind := _kind(entry))]
        except OSError as error:
            refusal = files.refusal(current, f"cannot be listed ({reason(error)}); check the folder")
            if current == os.fspath(path):
                raise refusal from error
            _log.warning("skipped %s", refusal)
            continue
        for name, kind in sorted(found):
            if kind == "folder" and not name.startswith("."):
                todo.append(os.path.join(current, name))
            elif name.lower().endswith(SUFFIXES) and not name.startswith("."):
                names.append(Path(current, name).relative_to(path).as_posix())
    return sorted(names)


def _kind(entry: os.DirEntry[str]) -> str | None:
    """ "folder", "file" or, for pipes and devices, None. A broken link counts as a file, so that it is logged."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or entry.is_symlink() else None
    except OSError:  # links in a circle, or no permission
        return "file"


def _config(split: str) -> str:
    """The name under which a split is prepared without the others."""
    return f"2017_{split.partition('[')[0]}"


def _prepare(tfds: Any, root: Path, split: str, downloads: PathLike | None) -> None:
    """Download and prepare a split of COCO. With the downloads it needs up to three times their size until it is done.

    What is unpacked is removed afterwards, but the archives are kept.
    """
    purpose = f"{root}: preparing COCO there, once,"
    tensorflow = needed("tensorflow", purpose, '"nstjax[prepare]"')
    try:
        # TensorFlow would reserve all of the GPU's memory, which jax needs.
        tensorflow.config.set_visible_devices([], "GPU")
        whole = tfds.builder_cls("coco").builder_configs["2017"]
        own = [each for each in whole.splits if _config(each.name) == _config(split)]
        if not own:
            raise ValueError(f"it has no split {split!r}, but {', '.join(each.name for each in whole.splits)}")
        config = type(whole)(name=_config(split), description=whole.description, splits=own)
        builder = tfds.builder("coco", config=config, data_dir=root, file_format="array_record")
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="unpacked-", dir=root) as unpacked:
            # Google's bucket would, if it had COCO, provide tfrecord, which only TensorFlow reads.
            own_files = {"manual_dir": downloads, "extract_dir": unpacked, "try_download_gcs": False}
            options = tfds.download.DownloadConfig(**own_files)
            builder.download_and_prepare(download_dir=downloads, download_config=options)
    except Exception as error:  # the network, the disk, a checksum, a missing package: TFDS raises many kinds
        raise files.refusal(root, f"COCO cannot be prepared ({reason(error)})") from error
