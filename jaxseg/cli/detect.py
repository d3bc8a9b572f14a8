"""`jaxseg predict` with a detector: for each photograph a figure, COCO's JSON and an instance map."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from jaxseg.cli.trained import demand_classes
from jaxseg.data import read_image, voc_palette
from jaxseg.data.source import DataError
from jaxseg.detect import detect, paste_each
from jaxseg.metrics.coco import mask_to_rle
from jaxseg.models import create_model
from jaxseg.runlog import naming, write_whole
from jaxseg.visualize import draw_detections
from jaxseg.weights import from_published, read_weights
from jaxseg.weights.folder import read_json

__all__ = ["COCO_NAMES", "class_names", "detect_files", "load_detector"]

# Lin et al. 2014: COCO's categories by their ids, of which eleven were never annotated
# fmt: off
COCO_NAMES = (
    "background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "street sign", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "hat", "backpack", "umbrella", "shoe",
    "eye glasses", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "plate", "wine glass",
    "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot",
    "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "mirror", "dining table", "window",
    "desk", "toilet", "door", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "blender", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
)
# fmt: on


def load_detector(name: str, weights: pathlib.Path, classes: int | None = None) -> tuple[Any, Any]:
    """The model of that name with as many classes as the file scores, and its variables.

    Raises DataError where the file holds no detector, ValueError where `classes` are given and others.
    """
    state = read_weights(weights)
    scores = next((a for key, a in state.items() if key.replace("/", ".").endswith("cls_score.bias")), None)
    if scores is None:
        raise DataError(f"{weights} holds no detector: no cls_score.bias in it")
    demand_classes(weights, len(scores), classes)
    model = create_model(name, num_classes=len(scores))
    return model, from_published(state, model, where=str(weights)).variables


class _RunLengths:
    """The masks of `detect(..., paste=False)` on an image of `size` (h, w), cut at 0.5.

    `masks[i]` is decoded when it is asked for: of a large photograph all of them would be gigabytes.
    """

    def __init__(self, found: Any, size: tuple[int, int]):
        there = np.flatnonzero(np.asarray(found.valid)).tolist()
        self.size = size
        self.rles = {i: mask_to_rle(mask > 0.5) for i, mask in zip(there, paste_each(found, size, there), strict=True)}

    def __getitem__(self, index: int | np.integer) -> Bool[np.ndarray, "h w"]:
        from pycocotools import mask as coco_mask

        return coco_mask.decode(self.rles[int(index)]).astype(bool)


def _image_id(file: pathlib.Path) -> int | str:
    return int(file.stem) if file.stem.isdecimal() else file.name


def _coco_results(found: Any, image: int | str) -> list[dict[str, Any]]:
    rows = []
    for i in np.flatnonzero(np.asarray(found.valid)):
        x0, y0, x1, y1 = (float(v) for v in found.boxes[i])
        row: dict[str, Any] = {
            "image_id": image,
            "category_id": int(found.classes[i]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(found.scores[i]),
        }
        if found.masks is not None:
            row["segmentation"] = found.masks.rles[i]
        rows.append(row)
    return rows


def _instance_map(found: Any, threshold: float) -> np.ndarray:
    """uint16 `[h, w]`: 1 for the best object, and so on; the better ones hide the others."""
    ids = np.zeros(found.masks.size, np.uint16)
    for i in reversed(np.flatnonzero(np.asarray(found.valid) & (np.asarray(found.scores) >= threshold))):
        ids[found.masks[i]] = i + 1
    return ids


def class_names(weights: pathlib.Path, count: int) -> tuple[str, ...]:
    """What the `count` classes are called: as a run says, or what it was converted to, COCO's, or by numbers."""
    steps = [int(p.name) for p in (weights / "checkpoints").glob("*") if p.name.isdigit()]
    named: Any = ()
    if steps:
        from jaxseg.checkpoint import read_meta  # Orbax takes a third of a second to import

        named = read_meta(weights / "checkpoints", max(steps))["config"].get("class_names", ())
    elif (weights / "model.json").is_file():
        named = read_json(weights / "model.json").get("class_names", ())
    if isinstance(named, list | tuple) and len(named) == count:
        return tuple(map(str, named))
    return COCO_NAMES if count == len(COCO_NAMES) else ("background", *(f"class {k}" for k in range(1, count)))


def detect_files(
    model: Any,
    variables: Any,
    names: Sequence[str],
    files: Sequence[tuple[pathlib.Path, pathlib.Path]],
    out: pathlib.Path,
    progress: Any,
    *,
    batch: int = 1,
    threshold: float = 0.5,
) -> list[str]:
    """Writes NAME_detections.png, NAME_detections.json and, with masks, NAME_instances.png; returns what was skipped.

    `files` are pairs of an image and its name under `out`, of which the detector sees `batch` at once. The figure and
    the map show scores from `threshold`; `names` are those of the classes. The JSON is COCO's list of results, as
    `pycocotools.coco.COCO.loadRes` takes it, one or several put together: "image_id" is the number where the file's
    name is nothing but digits, as COCO's 000000000139.jpg, and the name otherwise.
    """
    palette = voc_palette(model.num_classes)
    skipped: list[str] = []
    group: list[tuple[pathlib.Path, pathlib.Path, np.ndarray]] = []
    for done, (path, relative) in enumerate(files, 1):
        try:
            group.append((path, out / relative, read_image(path)))
        except DataError as error:
            skipped.append(str(error))
        if group and (len(group) == batch or done == len(files)):
            together = detect(model, variables, [g[2] for g in group], paste=False)
            for (file, base, image), found in zip(group, together, strict=True):
                if found.masks is not None:
                    found = found.replace(masks=_RunLengths(found, (image.shape[0], image.shape[1])))
                results = json.dumps(_coco_results(found, _image_id(file)))
                write_whole(base.with_name(base.name + "_detections.json"), results + "\n")
                pictures = {"detections": draw_detections(image, found, names, palette, threshold=threshold)}
                if found.masks is not None:
                    pictures["instances"] = _instance_map(found, threshold)
                for kind, pixels in pictures.items():
                    path = base.with_name(f"{base.name}_{kind}.png")
                    with naming(path):
                        Image.fromarray(pixels).save(path)
            group.clear()
        progress(done, len(files))
    return skipped
