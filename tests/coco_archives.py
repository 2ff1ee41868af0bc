"""COCO's archives with images of one's own, for TFDS's builder."""

import io
import json
import shutil
import zipfile

URL = "http://images.cocodataset.org/"


def jpeg(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def archive(downloads, url, checksum, size, members):
    """A zip file where TFDS looks for what it has downloaded, with the file beside it that says so."""
    from tensorflow_datasets.core.download import resource

    name = url.rpartition("/")[2]
    path = downloads / "coco" / resource.get_dl_fname(url, checksum)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for member, content in members.items():
            file.writestr(member, content)
    about = {"urls": [url], "dataset_names": ["coco"], "original_fname": name}
    about["url_info"] = {"size": size, "checksum": checksum, "filename": name}
    path.with_name(path.name + ".INFO").write_text(json.dumps(about))


def write_coco(downloads, splits):
    """COCO's archives of some splits with {split: [bytes of a picture, ...]} in its layout."""
    import tensorflow_datasets as tfds

    text = (tfds.core.tfds_path() / "url_checksums" / "coco.txt").read_text()
    registered = {url: (checksum, int(size)) for url, size, checksum, _ in map(str.split, text.splitlines())}

    def write(name, members):
        archive(downloads, URL + name, *registered[URL + name], members)

    annotations = {}
    for split, pictures in splits.items():
        write(f"zips/{split}.zip", {f"{split}/{i:012d}.jpg": content for i, content in enumerate(pictures)})
        infos = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 40, "width": 60} for i in range(len(pictures))]
        categories = [{"supercategory": "thing", "id": i, "name": f"thing {i}"} for i in range(1, 81)]
        boxes = [{"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 9} for i in range(len(pictures))]
        boxes = [box | {"bbox": [1, 2, 3, 3]} for box in boxes]
        table = {"images": infos, "categories": categories, "annotations": boxes}
        annotations[split] = json.dumps(table)
    both = {f"annotations/instances_{split}.json": table for split, table in annotations.items()}
    write("annotations/annotations_trainval2017.zip", both)


def plain(folder, to):
    """Move archives to a folder under the names that they have on COCO's site."""
    to.mkdir()
    for about in folder.glob("*.INFO"):
        shutil.move(about.with_suffix(""), to / json.loads(about.read_text())["original_fname"])
