"""COCO's annotations (Lin et al. 2014): one JSON of boxes, polygons, run-length masks and crowds."""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any

import numpy as np

from jaxseg.data.images import read_image
from jaxseg.data.objects import clean_boxes, warn_left_out
from jaxseg.data.source import DataError, Example, voc_palette

__all__ = ["CocoSource", "coco"]

MAX_PIXELS = 2**30  # of a picture


@dataclasses.dataclass(frozen=True)
class CocoSource:
    """Pictures with the objects that a COCO JSON lists. See `jaxseg.data.objects` and `coco`.

    "masks" are decoded at the picture's size; "crowd" bool `[k]` and "area" float32 `[k]` are the JSON's; "blank" bool
    `[k]`, where there are masks, has those that `coco` counted without a pixel.
    """

    folder: pathlib.Path
    images: tuple[dict[str, Any], ...]
    annotations: tuple[tuple[dict[str, Any], ...], ...]  # of each image, with "class"
    class_names: tuple[str, ...]
    has_masks: bool

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def palette(self) -> np.ndarray:
        return voc_palette(self.num_classes)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return str(self.folder / self.images[index]["file_name"])

    def rles(self, index: int) -> list[dict[str, Any]]:
        """The masks of a picture as COCO's compressed run lengths, at its size: what its AP is computed on."""
        entry = self.images[index]
        size = (entry["height"], entry["width"])
        return [
            _rle(a["segmentation"], size, f"{self.name(index)}: annotation {a['id']}") for a in self.annotations[index]
        ]

    def __getitem__(self, index: int) -> Example:
        """Raises DataError, naming the file, if it is unreadable, or of another size than the JSON says."""
        entry, rows = self.images[index], self.annotations[index]
        image = read_image(self.folder / entry["file_name"])
        size = (entry["height"], entry["width"])
        if image.shape[:2] != size:
            raise DataError(f"{self.name(index)}: the image is {image.shape[:2]}, the JSON says {size} (h, w)")
        corners = np.array([_corners(a["bbox"]) for a in rows], np.float32).reshape(-1, 4)
        example: Example = {
            "image": image,
            "boxes": clean_boxes(corners, size)[0],
            "classes": np.array([a["class"] for a in rows], np.int32),
            "crowd": np.array([bool(a.get("iscrowd", 0)) for a in rows], bool),
            "area": np.array([_area(a) for a in rows], np.float32),
        }
        if self.has_masks:
            from pycocotools import mask as coco_mask

            example["blank"] = np.array([a["blank"] for a in rows], bool)
            example["masks"] = np.zeros((len(rows), *size), bool)
            for i, rle in enumerate(self.rles(index)):
                example["masks"][i] = coco_mask.decode(rle)
        return example


def _corners(bbox: Any) -> tuple[Any, ...]:
    x, y, w, h = bbox
    return x, y, x + w, y + h


def _area(annotation: dict[str, Any]) -> float:
    area = annotation.get("area")
    return float(annotation["bbox"][2] * annotation["bbox"][3] if area is None else area)


def _counts(encoded: str | bytes) -> list[int]:
    """The run lengths in COCO's compressed form: digits of five bits and, in the sixth, whether more follow."""
    runs: list[int] = []
    value = shift = 0
    for c in encoded.encode() if isinstance(encoded, str) else encoded:
        digit = c - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError("it is no run length encoding")
        value |= (digit & 31) << shift
        shift += 5
        if digit < 32:
            value -= (digit & 16) << (shift - 4)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("it is cut short")
    return runs


def _polygons(segmentation: list[Any], size: tuple[int, int]) -> list[Any]:
    """The polygons of three points and more. Raises ValueError for one that pycocotools would not survive.

    It follows the outlines in steps of a fifth of a pixel, in memory as they are long, and writes past the end for
    coordinates beyond 32 bits.
    """
    kept = [p for p in segmentation if isinstance(p, list) and len(p) >= 6]
    for polygon in kept:
        points = np.array(polygon[: len(polygon) // 2 * 2], np.float64).reshape(-1, 2)
        length = np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum()
        if not length <= 4 * (size[0] + 1) * (size[1] + 1) or np.abs(points).max() > 1e6:
            raise ValueError("a polygon leads far out of the picture, or around it without end")
    return kept


def _rle(segmentation: Any, size: tuple[int, int], where: str) -> dict[str, Any]:
    """Polygons, or run lengths compressed or not, as compressed run lengths. Raises DataError for what is neither."""
    from pycocotools import mask as coco_mask

    h, w = size
    try:
        if isinstance(segmentation, list):
            return coco_mask.merge(coco_mask.frPyObjects(_polygons(segmentation, size), h, w))
        if tuple(segmentation["size"]) != size:
            raise DataError(f"{where}: run lengths of {tuple(segmentation['size'])} for an image of {size} (h, w)")
        encoded = segmentation["counts"]
        counts = encoded if isinstance(encoded, list) else _counts(encoded)
        if not all(type(n) is int for n in counts):
            raise ValueError("run lengths are whole numbers")
        if sum(counts) != h * w or min(counts, default=0) < 0:  # pycocotools would read memory that is nobody's
            raise DataError(f"{where}: run lengths sum to {sum(counts)}, and {h} x {w} pixels are {h * w}")
        return coco_mask.frPyObjects({"size": list(size), "counts": counts}, h, w)
    except DataError:
        raise
    except Exception as error:  # pycocotools raises plain Exceptions of its own
        raise DataError(f"{where}: not a segmentation of COCO ({error})") from None


def _has_mask(annotation: dict[str, Any]) -> bool:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        return any(isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation)
    return isinstance(segmentation, dict) and "counts" in segmentation


def _is_blank(annotation: dict[str, Any], box: list[float], size: tuple[int, int]) -> bool:
    """Whether no pixel is in its segmentation; looked at where its box or area is small, or its run lengths few."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        w, h = box[2] - box[0], box[3] - box[1]
        large = min(w, h) >= 2 and min(w * h, _area(annotation)) >= 16
    else:
        counts = segmentation["counts"]
        large = not isinstance(counts, str | list) or len(counts) > 12  # an empty mask is one number, or two
    if large:
        return False
    from pycocotools import mask as coco_mask

    try:
        return not coco_mask.area(_rle(segmentation, size, ""))
    except DataError:  # said by whoever reads it
        return False


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())  # in any of JSON's encodings
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it should be COCO's JSON of instances") from None
    except (OSError, ValueError, RecursionError) as error:  # a folder among them
        raise DataError(f"{path}: not a JSON file ({error})") from None
    missing = [k for k in ("images", "annotations", "categories") if not isinstance(tree, dict) or k not in tree]
    if missing:
        raise DataError(f"{path}: not COCO's JSON of instances: no {', '.join(missing)} in it")
    other = [k for k in ("images", "annotations", "categories") if not isinstance(tree[k], list)]
    if other:
        raise DataError(f"{path}: not COCO's JSON of instances: {', '.join(other)} is no list")
    return tree


def _classes(path: pathlib.Path, categories: Any, contiguous: bool) -> tuple[dict[int, int], tuple[str, ...]]:
    """The class of each category id, and the names by class."""
    try:
        names: dict[int, str] = {}
        for listed in categories:
            if names.setdefault(int(listed["id"]), str(listed["name"])) != str(listed["name"]):
                both = f"{names[int(listed['id'])]} and {listed['name']}"
                raise DataError(f"{path}: category id {listed['id']} is listed twice, for {both}")
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: a category has an id, a whole number, and a name ({error!r})") from None
    if contiguous:
        return {k: i for i, k in enumerate(sorted(names), 1)}, ("background", *(names[k] for k in sorted(names)))
    if min(names, default=1) < 1 or max(names, default=1) > 10_000:
        raise DataError(f"{path}: category ids {min(names)}..{max(names)} cannot be classes 1..: ask contiguous=True")
    by_class = tuple(names.get(k, f"class {k}") for k in range(1, max(names, default=0) + 1))
    return {k: k for k in names}, ("background", *by_class)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # not NaN; and finite in float32


def _is_inside(folder: pathlib.Path, name: Any) -> bool:
    """Whether it is the name of a file in the folder or below."""
    if not isinstance(name, str) or "\0" in name or len(name) > 1000:
        return False
    root = os.path.abspath(folder)
    return os.path.commonpath([root, os.path.abspath(folder / name)]) == root


def _listed(path: pathlib.Path, folder: pathlib.Path, entries: Any, problems: list[str]) -> dict[int, dict[str, Any]]:
    """The pictures by their ids; what is wrong with one goes to `problems`."""
    listed: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(entries):
        missing = [k for k in ("id", "file_name", "height", "width") if not isinstance(entry, dict) or k not in entry]
        if missing:
            problems.append(f"{path}: image number {place} of the list has no {', '.join(missing)}")
        elif not all(type(entry[k]) is int for k in ("id", "height", "width")):
            problems.append(f"{path}: image {entry['id']}: id, height and width are whole numbers")
        elif min(entry["height"], entry["width"]) < 1 or entry["height"] * entry["width"] > MAX_PIXELS:
            problems.append(
                f"{path}: image {entry['id']}: no picture is of {entry['height']} x {entry['width']} pixels"
            )
        elif not _is_inside(folder, entry["file_name"]):
            problems.append(f"{path}: image {entry['id']}: {str(entry['file_name'])[:99]!r} names no file in {folder}")
        elif entry["id"] in listed:
            both = f"{listed[entry['id']]['file_name']} and {entry['file_name']}"
            problems.append(f"{path}: image id {entry['id']} is listed twice, for {both}")
        else:
            listed[entry["id"]] = entry
            if not (folder / entry["file_name"]).is_file():
                problems.append(f"{folder / entry['file_name']}: no such picture")
    return listed


def _wrong(annotation: Any, listed: Any, classes: Any) -> str | None:
    """What an annotation lacks that nothing can stand in for."""
    needed = ("image_id", "category_id", "bbox")
    missing = [k for k in needed if not isinstance(annotation, dict) or k not in annotation]
    if missing:
        return f"has no {', '.join(missing)}"
    ids = [annotation[k] for k in ("image_id", "category_id")]
    if not all(isinstance(i, int | float) for i in ids):
        return f"has image_id and category_id {ids}, which are whole numbers"
    if annotation["image_id"] not in listed:
        return f"is of image {annotation['image_id']}, which is not listed"
    if annotation["category_id"] not in classes:
        return f"has category {annotation['category_id']}, which is not listed"
    bbox = annotation["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"has bbox {str(bbox)[:99]}, which is not [x, y, width, height]"
    if annotation.get("iscrowd", 0) not in (0, 1, None):
        return f"has iscrowd {str(annotation['iscrowd'])[:99]}, which is 0 or 1"
    if annotation.get("area") is not None and not _is_number(annotation["area"]):
        return f"has area {str(annotation['area'])[:99]}, which is a number"
    return None


def coco(
    images: str | os.PathLike, annotations: str | os.PathLike, *, contiguous: bool = True, drop_empty: bool = False
) -> CocoSource:
    """Pictures in the folder `images` with the objects of the JSON `annotations`, in the order of the image ids.

    Classes are 1.. in the order of the category ids; with `contiguous=False` they are the ids themselves, 1 to 90 for
    COCO, as in torchvision's published weights. `drop_empty` leaves out pictures without an object to learn from.
    Boxes are cut to their pictures. Objects without area there, and in a JSON of masks those whose segmentation is
    empty, are left out with a warning that counts them; an empty crowd's region is its box. Objects whose segmentation
    has no pixel, as a polygon between the centres of pixels, stay for average precision, to which they are objects as
    to pycocotools; they are not learnt, and a warning counts them. Annotations without an id get the next that are
    free.

    Raises DataError for a file that is missing or no COCO JSON, and names pictures that are not there, are listed twice
    or without a size, and annotations without a box or of pictures or categories that are not listed.
    """
    folder, path = pathlib.Path(images), pathlib.Path(annotations)
    tree = _read(path)
    classes, class_names = _classes(path, tree["categories"], contiguous)
    problems: list[str] = []
    listed = _listed(path, folder, tree["images"], problems)
    has_masks = any(_has_mask(a) for a in tree["annotations"] if isinstance(a, dict))
    by_image: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    flat, bare, blank = [], [], []
    numbers = [a["id"] for a in tree["annotations"] if isinstance(a, dict) and isinstance(a.get("id"), int)]
    free = itertools.count(max(numbers, default=0) + 1)
    for place, a in enumerate(tree["annotations"]):
        named = isinstance(a, dict) and "id" in a
        which = f"annotation {a['id']}" if named else f"annotation number {place} of the list"
        if wrong := _wrong(a, listed, classes):
            problems.append(f"{path}: {which} {wrong}")
            continue
        entry = listed[a["image_id"]]
        corners = np.array([_corners(a["bbox"])], np.float32)
        boxes, good = clean_boxes(corners, (entry["height"], entry["width"]))
        row = {**a, "class": classes[a["category_id"]]} | ({} if named else {"id": next(free)})
        if has_masks and good[0] and not _has_mask(a) and a.get("iscrowd", 0):
            x0, y0, x1, y1 = boxes[0].tolist()
            row["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        if not good[0]:
            flat.append(f"{which} of {entry['file_name']}, bbox {a['bbox']}")
        elif has_masks and not _has_mask(row):
            bare.append(f"{which} of {entry['file_name']}")
        else:
            size = (entry["height"], entry["width"])
            row["blank"] = has_masks and not a.get("iscrowd", 0) and _is_blank(row, boxes[0].tolist(), size)
            if row["blank"]:
                blank.append(f"{which} of {entry['file_name']}")
            by_image[a["image_id"]].append(row)
    if problems:
        raise DataError(*problems, heading=f"{path}: {len(problems)} problem(s)")
    warn_left_out(str(path), flat, "their boxes have no area in the picture")
    warn_left_out(str(path), bare, "they have no segmentation")
    warn_left_out(str(path), blank, "their segmentations have no pixel", of="training")
    ids = sorted(listed)
    if drop_empty:
        ids = [i for i in ids if any(not (a.get("iscrowd", 0) or a["blank"]) for a in by_image[i])]
    if not ids:
        raise DataError(f"{path}: no picture{' with an object' * drop_empty}")
    return CocoSource(
        folder, tuple(listed[i] for i in ids), tuple(tuple(by_image[i]) for i in ids), class_names, has_masks
    )
