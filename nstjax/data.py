"""Pictures to train on -> batches: a folder of files, or COCO 2017 by TFDS's own builder.

The order and every crop are a function of the seed and of how many pictures came before. So each batch is yielded with
the position that follows it, a small dict for JSON, and from a position exactly the batches follow that would have
followed, however many pictures were prefetched and whichever could not be read. Hosts deal the pictures out in turn.
"""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nstjax import files, images
from nstjax.errors import InputError, reason
from nstjax.optional import needed

_JPEG, _NETPBM = (".jpg", ".jpeg", ".jpe", ".jfif"), (".ppm", ".pgm", ".pbm")
_FORMATS = (".heic", ".heif", ".jxl")  # read by nstjax[formats]
SUFFIXES = (
    *_JPEG,
    *_NETPBM,
    *_FORMATS,
    ".png",
    ".webp",
    ".gif",
    ".tif",
    ".tiff",
    ".bmp",
    ".avif",
    ".jp2",
    ".psd",
    ".qoi",
)

_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """Pictures by number; `skipped` is {number: the line logged} of those that could not be read so far."""

    name: str
    size: int
    identity: str  # what a position holds good for
    read: Callable[..., np.ndarray]  # (number, short=, least=) -> float32 [h, w, 3] in [0, 1]; or an InputError
    skipped: dict[int, str]


def listed(path) -> list[Path]:
    """The pictures in a folder and the folders in it, in the order of their names; hidden files are left out."""
    return [Path(path, name) for name in _names(path)]


def folder(path) -> Source:
    """The pictures in a folder and the folders in it, in the order of their names; hidden files are left out.

    InputError if there are none.
    """
    names = _names(path)
    if not names:
        raise files.refusal(path, f"has no pictures ({', '.join(SUFFIXES)}); give a folder that has")
    digest = hashlib.sha256(b"\0".join(os.fsencode(name) for name in names)).hexdigest()

    def read(number, *, short, least):
        file = Path(path, names[number])
        shape = _fit(images.shape(file, size=2**20), short)
        return images.load(file, size=shape, source_minimum=least)

    return Source(os.fspath(path), len(names), f"{len(names)} files, names {digest[:16]}", read, {})


def coco(data_dir=None, *, split="train", downloads=None) -> Source:
    """COCO 2017 as TFDS prepared it in data_dir (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets) as array_record.

    If it is not there it is downloaded (25 GB, into `downloads`) and prepared, for which alone TensorFlow is needed.
    InputError if that cannot be done.
    """
    tfds = needed("tensorflow_datasets", "training data", '"nstjax[train]"')
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if not (found := _prepared(root)):
        _prepare(tfds, root, downloads)
        found = _prepared(root)
    try:
        builder = tfds.builder_from_directory(found[-1])
        # The file's own bytes: TFDS would decode by OpenCV or Pillow, whichever is there, with different pixels.
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        why = f"COCO is prepared in {found[-1]} in a format that only TensorFlow reads; name another folder"
        raise files.refusal(root, why) from error
    except Exception as error:  # an unknown split, a file missing or damaged: all fail in their own ways
        raise files.refusal(root, f"COCO's {split!r} cannot be read as array_record ({reason(error)})") from error

    def read(number, *, short, least):
        name = f"coco/2017 {split}, picture {number}"
        try:
            file = io.BytesIO(records[number]["image"])
        except Exception as error:  # a damaged record fails in its own way
            raise files.refusal(name, f"cannot be read ({reason(error)})") from error
        file.name = name  # type: ignore[attr-defined]
        return images.load(file, size=_fit(images.shape(file), short), source_minimum=least)

    identity = f"{len(records)} of coco/2017 {builder.version} {split}"
    return Source(f"coco/2017 in {root}", len(records), identity, read, {})


def batches(
    source, *, batch, crop, seed=0, scale=(1, 1.25), flip=True, host=0, hosts=1, threads=8, position=None
) -> Iterator[tuple[np.ndarray, dict]]:
    """Without end: (float32 [batch, crop, crop, 3] in [0, 1], the position after it).

    A picture's short side is resized to crop * uniform(scale), then a crop is taken anywhere in it, and mirrored half
    of the time if `flip`. `batch` is for this one of the hosts; each epoch is shuffled anew and has every picture once.
    One that cannot be read or is under half the crop is logged once, noted in source.skipped, and another, drawn by
    the seed, takes its place. InputError if none can be read, or if `position` is of other data or another seed.
    """
    possible = batch >= 1 and crop >= 1 and 0 <= host < hosts and 1 <= scale[0] <= scale[1] and 0 <= seed < 2**32
    if not possible:
        raise ValueError(f"impossible batches: {batch=}, {crop=}, {host=}, {hosts=}, {scale=}, {seed=}")
    identity = {"seed": seed, "source": source.identity}
    start = _start(source, identity, position)
    grain = needed("grain", "training data", '"nstjax[train]"')

    def sample(number, rng):
        return _sample(source, number, rng, crop=crop, scale=scale, flip=flip)

    for number in range(source.size):  # one that can be read, or the refusal that there is none
        if _read(source, number, short=crop, least=crop // 2) is not None:
            break
    everything = grain.MapDataset.range(source.size).seed(seed).shuffle().repeat().random_map(sample)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * batch, 2 * threads))
    # Sliced after the random map, whose generator is keyed by the number in `everything`.
    samples = iter(everything[start + host :: hosts].to_iter_dataset(options))

    def stream():
        seen = start
        while True:
            pictures = np.stack([next(samples) for _ in range(batch)])
            seen += batch * hosts
            yield pictures, {"pictures": seen, **identity}

    return stream()


def _start(source, identity, position):
    """How many pictures came before the position, after checking that it is one of this source and seed."""
    if position is None:
        return 0
    seen = position.get("pictures") if isinstance(position, dict) else None
    if type(seen) is not int or not 0 <= seen < 2**62:
        raise files.refusal(source.name, "the position to go on from is damaged; start from the beginning")
    for key, here in identity.items():
        if position.get(key) != here:
            there = f"the position to go on from is of {key} {position.get(key)!r}, here it is {here!r}"
            raise files.refusal(source.name, f"{there}; use the same data and seed, or start from the beginning")
    return seen


def _sample(source, number, rng, *, crop, scale, flip):
    """A crop [crop, crop, 3] of picture `number`, or of another if it cannot be read."""
    while True:
        short = round(crop * rng.uniform(*scale))
        picture = _read(source, int(number), short=short, least=crop // 2)
        if picture is not None:
            break
        number = rng.integers(source.size)
    top, left = (rng.integers(side - crop, endpoint=True) for side in picture.shape[:2])
    mirror = -1 if flip and rng.random() < 0.5 else 1
    return picture[top : top + crop, left : left + crop][:, ::mirror]


def _read(source, number, *, short, least):
    """The picture, or None and a line in the log. InputError once every one of them has failed."""
    try:
        return source.read(number, short=short, least=least)
    except InputError as error:
        line = str(error)
    if source.skipped.setdefault(number, line) is line:  # of several threads one is the first
        _log.warning("skipped %s", line)
    if len(source.skipped) == source.size:
        why = f"none of its {source.size} pictures can be read; for one, {source.skipped[0]}"
        raise files.refusal(source.name, why)
    return None


def _fit(shape, short):
    """(h, w) in the proportions of `shape` whose short side is `short`."""
    h, w = (max(side, 1) for side in shape)
    return (short, round(short * w / h)) if h <= w else (round(short * h / w), short)


def _names(path):
    """The names of all pictures in a folder, relative to it; links are followed, each folder once.

    A folder in it that cannot be listed is logged and left out. InputError if it cannot be listed itself.
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


def _kind(entry):
    """ "folder" or "file", which a broken link counts as, so that it is noted; None for pipes and devices."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or entry.is_symlink() else None
    except OSError:  # links in a circle, or no permission to look
        return "file"


def _prepared(root):
    """The folders of the prepared versions of COCO 2017, the newest last. TFDS renames them when they are whole."""
    versions = (root / "coco" / "2017").glob("*.*.*/dataset_info.json")
    named = (file.parent for file in versions if file.parent.name.replace(".", "").isdigit())
    return sorted(named, key=lambda version: [int(part) for part in version.name.split(".")])


def _prepare(tfds, root, downloads):
    """Download and prepare. TFDS unpacks beside the downloads, so it needs 75 GB until these are deleted."""
    purpose = f"{root}: COCO is not prepared there yet, which, once,"
    tensorflow = needed("tensorflow", purpose, '"nstjax[prepare]"')
    try:
        tensorflow.config.set_visible_devices([], "GPU")  # or it takes all of the GPU's memory from jax
        builder = tfds.builder("coco/2017", data_dir=root, file_format="array_record")
        # Google's bucket, if it had COCO, would give tfrecord, which only TensorFlow reads.
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_dir=downloads, download_config=config)
    except Exception as error:  # the network, the disk, a checksum, a missing package: TFDS raises many kinds
        raise files.refusal(root, f"COCO cannot be prepared ({reason(error)})") from error
