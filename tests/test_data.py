"""Batches of pictures that the tests make themselves, from folders and through the true COCO builder of TFDS."""

import errno
import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from coco_archives import jpeg, plain, write_coco
from PIL import Image

from nstjax import data, images
from nstjax.errors import InputError

for package in ("grain", "tensorflow_datasets"):
    pytest.importorskip(package, reason='needs pip install "nstjax[train]"')

COUNT = 12  # pictures in the folder of the fixture; each can be told by its blue


def noise(h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def tell(pictures):
    """The numbers of the fixture's pictures of which crops are in a batch."""
    return [int(number) for number in np.rint(255 * pictures[..., 2].mean((1, 2)) / 10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures 20x32: red grows to the right, green downwards, blue is 10 times the number. Some lie deeper."""
    path = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        pixels = np.zeros((20, 32, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = np.arange(32) * 8, np.arange(20)[:, None] * 8
        pixels[..., 2] = 10 * number
        file = path / ("deep/er" if number % 3 else ".") / f"{number}.{'PNG' if number % 2 else 'bmp'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    (path / "notes.txt").write_text("no picture, and not named like one")
    (path / ".hidden.png").write_bytes(b"")
    return path


def take(count, source, **options):
    """The first batches, and the positions after them, through JSON."""
    stream = data.batches(source, **{"batch": 4, "crop": 16, "threads": 3} | options)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return [pictures for pictures, _ in found], [json.loads(json.dumps(position)) for _, position in found]


def equal(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def refused(call, *args, **kwargs):
    """The one line of the InputError that the call must raise."""
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def fake(size, read):
    return data.Source("fake", size, f"{size} fakes", read, {})


# Order


def test_batches_are_float32_in_the_unit_range(folder):
    for pictures in take(6, data.folder(folder))[0]:
        assert pictures.dtype == np.float32 and pictures.shape == (4, 16, 16, 3)
        assert pictures.flags.c_contiguous and pictures.min() >= 0 and pictures.max() <= 1


def test_each_epoch_has_every_picture_once_in_an_order_of_its_own(folder):
    numbers = np.reshape([tell(pictures) for pictures in take(12, data.folder(folder))[0]], (4, COUNT))
    assert (np.sort(numbers) == np.arange(COUNT)).all()
    assert len({tuple(epoch) for epoch in numbers}) == 4


def test_the_seed_and_nothing_else_decides(folder, tmp_path):
    source = data.folder(folder)
    base = take(7, source)[0]
    assert equal(base, take(7, source, threads=1)[0]) and equal(base, take(7, source, threads=16)[0])
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert equal(base, take(7, data.folder(moved))[0])
    other = take(7, source, seed=1)[0]
    assert not any(np.array_equal(x, y) for x, y in zip(base, other, strict=True))
    assert np.ravel([*map(tell, base)]).tolist() != np.ravel([*map(tell, other)]).tolist()


def test_crops_differ_from_epoch_to_epoch(folder):
    pictures = np.concatenate(take(12, data.folder(folder), scale=(1, 2))[0])
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


@pytest.mark.parametrize("hosts, batch", [(2, 3), (3, 2), (2, 5)])
def test_hosts_share_out_what_one_would_see(folder, hosts, batch):
    source = data.folder(folder)
    whole = np.concatenate(take(6, source, batch=hosts * batch)[0])
    for host in range(hosts):
        shard, positions = take(6, source, batch=batch, host=host, hosts=hosts)
        assert np.array_equal(np.concatenate(shard), whole[host::hosts])
        assert positions == take(6, source, batch=hosts * batch)[1]


def test_two_hosts_are_disjoint_and_complete_in_an_epoch(folder):
    a, b = (
        np.ravel([tell(pictures) for pictures in take(2, data.folder(folder), batch=3, host=host, hosts=2)[0]])
        for host in (0, 1)
    )
    assert not {*a} & {*b} and {*a} | {*b} == {*range(COUNT)}


def test_the_first_images_are_a_source_of_their_own(folder):
    source = data.folder(folder)
    few = data.first(source, 4)
    assert few.size == 4 and few.identity != source.identity
    numbers = np.reshape([tell(pictures) for pictures in take(3, few)[0]], (3, 4))
    assert (np.sort(numbers) == [0, 3, 6, 9]).all()  # the others lie deeper
    assert "has 12 images, not 13" in refused(data.first, source, 13)


# Positions


# Not by hypothesis, which fails when the readers' threads draw random numbers while it does.
POSITIONS = np.random.default_rng(0).integers((1, 1, 0, 0), (10, 6, 2, 4), (12, 4)).tolist()


@pytest.mark.parametrize("before, batch, host, seed", POSITIONS)
def test_a_position_goes_on_bit_for_bit(spoilt, before, batch, host, seed):
    options = {"batch": batch, "seed": seed, "host": host, "hosts": 2}
    whole, positions = take(before + 3, data.folder(spoilt), **options)
    rest, after = take(3, data.folder(spoilt), **options, position=positions[before - 1])
    assert equal(rest, whole[before:]) and after == positions[before:]


@pytest.fixture(scope="module")
def spoilt(folder, tmp_path_factory):
    """The folder, with two of the pictures corrupt and one too small."""
    path = shutil.copytree(folder, tmp_path_factory.mktemp("spoilt") / "pictures")
    (path / "0.bmp").write_bytes(b"nonsense")
    (path / "3.PNG").write_bytes((folder / "3.PNG").read_bytes()[:60])
    Image.fromarray(noise(7, 90)).save(path / "9.PNG")
    return path


def test_the_position_counts_what_was_consumed_not_what_was_prefetched():
    read = []

    def record(number, *, short, least):
        read.append(number)
        return np.zeros((short, short, 3), np.float32)

    stream = data.batches(fake(100, record), batch=2, crop=16, threads=3)
    assert next(stream)[1]["pictures"] == 2
    deadline = time.monotonic() + 20
    while len(read) < 1 + 2 + 4:  # one to see that any can be read, two used, the others prefetched
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert next(stream)[1]["pictures"] == 4


def test_a_position_goes_on_with_other_hosts_and_batches(folder):
    source = data.folder(folder)
    whole, positions = take(6, source)
    rest = [take(4, source, batch=2, host=h, hosts=2, position=positions[1])[0] for h in (0, 1)]
    np.testing.assert_array_equal(
        np.stack(rest, 2).reshape(whole[0].shape[0] * 4, 16, 16, 3), np.concatenate(whole[2:])
    )


def test_a_position_far_on_works(folder):
    source = data.folder(folder)
    far = take(1, source)[1][0] | {"pictures": 10**9}
    assert take(1, source, position=far)[1][0]["pictures"] == 10**9 + 4


def test_a_position_of_other_data_or_another_seed_is_refused(folder, tmp_path):
    source = data.folder(folder)
    position = take(1, source)[1][0]
    assert "seed 0, here it is 1" in refused(take, 1, source, seed=1, position=position)
    other = shutil.copytree(folder, tmp_path / "other")
    shutil.copy(other / "0.bmp", other / "new.bmp")
    assert str(other) in refused(take, 1, data.folder(other), position=position)
    for damaged in ({}, [], "text", *(position | {"pictures": seen} for seen in (-1, 1.5, 2**62, 10**30))):
        assert "damaged" in refused(take, 1, source, position=damaged)


# Crops and flips


def placed(crop, pixels):
    """Where a crop lies in the picture, and whether it is mirrored; None if it is no part of it."""
    for mirrored in (False, True):
        levels = np.rint(255 * (crop[:, ::-1] if mirrored else crop)).astype(np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(pixels, levels.shape)[..., 0, :, :, :]
        if len(found := np.argwhere((windows == levels).all((-3, -2, -1)))):
            return *(int(i) for i in found[0]), mirrored
    return None


@pytest.mark.parametrize("flip", [True, False])
def test_crops_lie_anywhere_inside_and_half_are_mirrored(tmp_path, flip):
    pixels = noise(20, 26)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    crops = np.concatenate(take(4, data.folder(tmp_path), batch=100, crop=10, scale=(2, 2), flip=flip)[0])
    found = [placed(crop, pixels) for crop in crops]
    assert None not in found
    tops, lefts, mirrored = zip(*found, strict=True)
    assert {*tops} == {*range(11)} and {*lefts} == {*range(17)}
    assert 160 < sum(mirrored) < 240 if flip else not any(mirrored)


def test_short_sides_are_the_crop_times_a_random_scale():
    shorts = []

    def record(number, *, short, least):
        shorts.append(short)
        return np.zeros((short, 2 * short, 3), np.float32)

    take(5, fake(10, record), crop=64, batch=20, scale=(1.25, 1.5))
    assert shorts[0] == 64 and min(shorts[1:]) in range(80, 83) and max(shorts[1:]) in range(93, 97)


def test_at_scale_1_a_square_picture_comes_whole(tmp_path):
    Image.fromarray(noise(40, 40)).save(tmp_path / "a.png")
    pictures = take(1, data.folder(tmp_path), crop=24, scale=(1, 1), flip=False)[0][0]
    np.testing.assert_array_equal(pictures[0], images.load(tmp_path / "a.png", size=24))


@pytest.mark.parametrize("h, w", [(30, 50), (50, 30), (16, 200), (8, 9)])
def test_proportions_are_kept(tmp_path, h, w):
    Image.fromarray(noise(h, w)).save(tmp_path / "a.png")
    read = data.folder(tmp_path).read(0, short=20, least=8)
    assert min(read.shape[:2]) == 20 and max(read.shape[:2]) == round(20 * max(h, w) / min(h, w))
    assert (read.shape[0] < read.shape[1]) == (h < w)


def test_impossible_options_are_told(folder):
    for options in (
        {"batch": 0},
        {"crop": 0},
        {"host": 2, "hosts": 2},
        {"scale": (0.5, 1)},
        {"scale": (2, 1)},
        {"seed": -1},
    ):
        with pytest.raises(ValueError, match="impossible"):
            take(1, data.folder(folder), **options)


# Odd files


def odd_files(path):
    """Writes pictures of every kind that can be read; returns their count."""
    colours = Image.fromarray(noise(40, 30))
    colours.convert("L").save(path / "grey.jpg")
    colours.convert("CMYK").save(path / "cmyk.jpg")
    colours.convert("P").save(path / "palette.gif")
    colours.convert("RGBA").save(path / "alpha.webp", lossless=True)
    colours.convert("1").save(path / "bits.tif")
    Image.fromarray(noise(40, 30)[..., 0].astype(np.uint16) * 257).save(path / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    colours.save(path / "turned.jpeg", exif=turned)
    colours.resize((16, 9)).save(path / "small.jpg")  # over half of the crop: enlarged
    return 8


def test_odd_pictures_are_converted(tmp_path):
    count = odd_files(tmp_path)
    source = data.folder(tmp_path)
    assert source.size == count
    for pictures in take(6, source)[0]:
        assert pictures.shape == (4, 16, 16, 3) and pictures.min() >= 0 and pictures.max() <= 1
    assert source.skipped == {}


def test_what_cannot_be_read_is_skipped_and_logged_once(tmp_path, caplog):
    good = odd_files(tmp_path)
    whole = io.BytesIO()
    Image.fromarray(noise(60, 60)).save(whole, "JPEG")
    bad = {
        "empty.png": b"",
        "text.jpg": b"<html>404 not found</html>",
        "cut.jpg": whole.getvalue()[:900],
        "line\nbreak.png": b"x",
        "tiny.png": b"",
        "long.png": b"",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(noise(1, 1)).save(tmp_path / "tiny.png")
    Image.fromarray(noise(7, 300)).save(tmp_path / "long.png")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "missing.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    source = data.folder(tmp_path)
    assert source.size == good + len(bad) + 1
    with caplog.at_level(logging.WARNING):
        take(15, source)
    lines = [record.getMessage() for record in caplog.records if record.name == "nstjax.data"]
    assert len(lines) == len(source.skipped) == len(bad) + 1
    assert {*lines} == {f"skipped {line}" for line in source.skipped.values()}
    for name in [*bad, "broken.jpg"]:
        assert sum(name.replace("\n", "\\n") in line for line in lines) == 1
    assert all(len(line.splitlines()) == 1 for line in lines)


def test_a_bad_link_folder_or_name_does_not_spoil_the_rest(tmp_path, monkeypatch, caplog):
    strange = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "in" / "closed").mkdir(parents=True)
    for name in ("a.png", strange):
        Image.fromarray(noise(20, 20)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    (tmp_path / "in" / "one").symlink_to("two")
    (tmp_path / "in" / "two").symlink_to("one")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "in" / "pipe.png").symlink_to(tmp_path / "pipe")
    plain = os.scandir

    def scandir(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with caplog.at_level(logging.WARNING):
        names = {path.name for path in data.listed(tmp_path / "in")}
        assert names == {"a.png", strange, "loop.png", "pipe.png"}
        take(5, data.folder(tmp_path / "in"))
    lines = [record.getMessage() for record in caplog.records if record.name == "nstjax.data"]
    assert sum("closed: cannot be listed" in line for line in lines) == 2  # it was listed twice
    assert sum("loop.png" in line for line in lines) == 1 and all(line.isprintable() for line in lines)
    monkeypatch.setattr(os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "denied")))
    assert "cannot be listed" in refused(data.folder, tmp_path / "in")


def test_another_picture_takes_the_place_of_one_that_cannot_be_read(spoilt):
    source = data.folder(spoilt)
    numbers = np.reshape([tell(pictures) for pictures in take(6, source)[0]], (2, COUNT))
    assert len(source.skipped) == 3
    for epoch in numbers:
        assert {*epoch} == {*range(COUNT)} - {0, 3, 9}


def test_links_are_followed_once(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "circle").symlink_to(tmp_path)
    assert data.folder(tmp_path).size == COUNT


def test_folders_without_pictures_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        assert str(path) in refused(data.folder, path)
    (tmp_path / "notes.txt").write_text("no picture")
    assert "has no images" in refused(data.folder, tmp_path)
    assert "cannot be listed" in refused(data.folder, tmp_path / "notes.txt")


def test_a_folder_where_nothing_can_be_read_is_refused_at_once(tmp_path):
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"nonsense")
    line = refused(data.batches, data.folder(tmp_path), batch=1, crop=16)
    assert line.startswith(f"{tmp_path}: none of its 2 images") and "a.jpg" in line
    Image.fromarray(noise(20, 20)).save(tmp_path / "a.jpg")
    assert "20x20" in refused(data.batches, data.folder(tmp_path), batch=1, crop=256)


def test_a_folder_that_vanishes_ends_the_batches_with_one_line(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "pictures")
    stream = data.batches(data.folder(path), batch=4, crop=16)
    next(stream)
    shutil.rmtree(path)
    assert "none of its 12 images" in refused(lambda: [next(stream) for _ in range(99)])


# What is imported, and what is missing


def test_importing_it_imports_neither_tensorflow_nor_grain():
    code = "import sys, nstjax.data; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "tensorflow_datasets", "grain", "jax"} & {*done.stdout.split()}


def test_a_missing_package_is_named_with_its_install_line(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    assert 'pip install "nstjax[train]"' in refused(take, 1, data.folder(folder))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert 'pip install "nstjax[prepare]"' in refused(data.coco, tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert 'pip install "nstjax[train]"' in refused(data.coco, tmp_path)


# COCO

PREPARE = """
import sys
from pathlib import Path
from tensorflow_datasets.core.download import checksums
from nstjax import data
if sys.argv[4] == "trusted":  # archives as small as the test's have other checksums
    known = {url.rpartition("/")[2]: about for url, about in checksums.get_all_url_infos().items() if "cocod" in url}
    checksums.compute_url_info = lambda path: known[Path(path).name]
print(data.coco(sys.argv[1], split=sys.argv[2], downloads=sys.argv[3]).identity)
"""


READ = """
import json, sys
from importlib.machinery import PathFinder
class Without(PathFinder):  # as where TensorFlow is not installed: reading needs none
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "tensorflow" else super().find_spec(name, path, target)
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import numpy as np
from nstjax import data
source = data.coco(sys.argv[1])
stream = data.batches(source, batch=4, crop=16)
found = [next(stream) for _ in range(5)]
position = found[1][1]
again = data.batches(data.coco(sys.argv[1]), batch=4, crop=16, position=json.loads(json.dumps(position)))
assert all(np.array_equal(next(again)[0], found[i][0]) for i in (2, 3, 4))
pictures = np.concatenate([pictures for pictures, _ in found])
assert pictures.dtype == np.float32 and pictures.shape == (20, 16, 16, 3) and 0 <= pictures.min() < pictures.max() <= 1
colours = np.rint(255 * pictures.mean((1, 2)) / 20).astype(int)
print(json.dumps([source.size, position, sorted({*map(tuple, colours.tolist())}), sorted(source.skipped.values())]))
"""


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tensorflow", "importlib_resources"))),
    reason='TFDS needs TensorFlow to prepare COCO: pip install "nstjax[prepare]"',
)
def test_coco_from_its_archives_to_batches(tmp_path):
    flat = [Image.new("RGB", (60, 40), (20 * i, 100, 40)) for i in range(6)]
    train = [jpeg(picture) for picture in flat]
    train += [jpeg(flat[5].convert("L")), jpeg(flat[0].convert("CMYK")), jpeg(flat[1].resize((5, 5))), train[1][:200]]
    # A split needs no more than its own archives.
    write_coco(tmp_path / "downloads", {"train2017": train})

    def prepare(split, folder, how=""):
        command = [sys.executable, "-c", PREPARE, str(tmp_path / "tfds"), split, str(tmp_path / folder), how]
        return subprocess.run(command, capture_output=True, text=True)

    done = prepare("train", "downloads")
    assert done.stdout.splitlines()[-1:] == ["10 of coco/2017 1.1.0 train"], done.stderr
    shutil.rmtree(tmp_path / "downloads")
    write_coco(tmp_path / "downloads", {"val2017": train[:3]})
    plain(tmp_path / "downloads" / "coco", tmp_path / "own")
    done = prepare("validation", "own")
    assert done.returncode and "wrong checksum" in done.stderr.splitlines()[-1], done.stderr
    done = prepare("validation", "own", "trusted")
    assert done.stdout.splitlines()[-1:] == ["3 of coco/2017 1.1.0 validation"], done.stderr
    assert sorted(path.name for path in (tmp_path / "tfds").iterdir()) == ["coco"]
    assert {path.name for path in (tmp_path / "own").glob("*.zip")} == {"annotations_trainval2017.zip", "val2017.zip"}
    with pytest.raises(InputError, match="no split 'nosuch', but train, validation, test"):
        data.coco(tmp_path / "tfds", split="nosuch")

    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path / "tfds")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, position, colours, skipped = json.loads(done.stdout.splitlines()[-1])
    assert size == 10 and position == {"pictures": 8, "seed": 0, "source": "10 of coco/2017 1.1.0 train"}
    assert colours == [[i, 5, 2] for i in range(5)] + [[5, 5, 2], [5, 5, 5]], colours
    assert len(skipped) == 2 and "5x5 px" in "".join(skipped)
    assert len({*done.stderr.splitlines()}) == 2 == sum(line in done.stderr for line in skipped)

    table = next((tmp_path / "tfds" / "coco" / "2017_train").rglob("dataset_info.json"))
    table.write_text(table.read_text().replace("array_record", "tfrecord"))
    assert "that only TensorFlow reads" in refused(data.coco, tmp_path / "tfds")
