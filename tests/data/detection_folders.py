"""Hand-made folders of pictures with objects: COCO's JSON, VOC's XML, and id maps."""

import json

import numpy as np
from PIL import Image

H, W = 20, 30


def picture(path, seed=0, size=(H, W)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


def rectangle(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def annotation(image_id, category_id, box, *, segmentation="polygon", crowd=0, number=[0]):  # noqa: B006, a counter
    x0, y0, x1, y1 = box
    number[0] += 1
    row = {"id": number[0], "image_id": image_id, "category_id": category_id, "iscrowd": crowd}
    row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
    if segmentation == "polygon":
        row["segmentation"] = [rectangle(*box)]
    elif segmentation == "rle":  # column by column, starting with zeros
        mask = np.zeros((H, W), np.uint8)
        mask[y0:y1, x0:x1] = 1
        edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=1 - mask[-1, -1]))
        row["segmentation"] = {"size": [H, W], "counts": np.diff(edges, prepend=0).tolist()}
    return row


def make_coco(root, annotations=None, categories=((3, "cat"), (7, "dog"))):
    """Pictures 1, 2 and 3, the last without objects; returns the folder and the JSON."""
    for i in (1, 2, 3):
        picture(root / "images" / f"{i}.jpg", i)
    if annotations is None:
        annotations = [
            annotation(1, 3, (2, 3, 12, 13)),
            annotation(1, 7, (8, 8, 20, 18)),  # over the first
            annotation(1, 3, (15, 0, 30, 6), segmentation="rle", crowd=1),
            annotation(2, 7, (1, 1, 9, 19), segmentation="rle"),
        ]
    tree = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in (2, 1, 3)],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in categories],
    }
    (root / "instances.json").write_text(json.dumps(tree))
    return root / "images", root / "instances.json"


OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def make_voc_objects(root, objects=None, year=2007):
    """Two pictures of VOC, the second empty; `objects` of the first are (name, difficult, 1-based inclusive box)."""
    home = root / "VOCdevkit" / f"VOC{year}"
    if objects is None:
        objects = [("dog", 0, (1, 1, 10, 20)), ("diningtable", 1, (5, 6, 30, 20))]
    for i, rows in enumerate((objects, []), 1):
        picture(home / "JPEGImages" / f"00000{i}.jpg", i)
        body = "".join(OBJECT.format(name, difficult, *box) for name, difficult, box in rows)
        (home / "Annotations").mkdir(parents=True, exist_ok=True)
        (home / "Annotations" / f"00000{i}.xml").write_text(f"<annotation>{body}</annotation>")
    lists = home / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "trainval.txt").write_text("000001\n000002\n")
    (lists / "dog_trainval.txt").write_text("000001 1\n000002 -1\n")
    return root


def make_instances(root, split="train", count=3, size=(H, W), objects=3):
    """Pictures with id maps whose values have gaps."""
    rng = np.random.default_rng(0)
    for i in range(count):
        picture(root / split / "images" / f"{i}.jpg", i, size)
        ids = np.zeros(size, np.uint16)
        for k in range(objects):
            y, x = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
            ids[y : y + 6, x : x + 6] = 300 * (k + 1)
        (root / split / "instances").mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(root / split / "instances" / f"{i}.png")
    return root
