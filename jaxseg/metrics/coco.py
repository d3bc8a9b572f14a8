"""COCO's average precision of boxes and masks, by pycocotools, on masks at the images' own sizes."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

__all__ = ["Objects", "check_objects", "coco_average_precision", "mask_to_rle"]

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first six of COCOeval.stats


class Objects(NamedTuple):
    """True or found objects of one image, in its pixels."""

    boxes: Float[np.ndarray, "k 4"]  # XYXY
    classes: Int[np.ndarray, "k"]  # from 1
    masks: Any = None  # bool, or 0 and 1, `[k, h, w]`; or a list of COCO's compressed run lengths
    scores: Float[np.ndarray, "k"] | None = None  # of what was found
    crowd: Bool[np.ndarray, "k"] | None = None  # of what is true: what is found in it does not count
    difficult: Bool[np.ndarray, "k"] | None = None  # of what is true: VOC does not mind whether it is found
    area: Float[np.ndarray, "k"] | None = None  # of what is true, by which COCO calls it small; by default the mask's


def mask_to_rle(mask: Shaped[np.ndarray, "h w"]) -> dict[str, Any]:
    """COCO's compressed run-length encoding, its `counts` as text."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def _annotations(images: Sequence[Objects], *, found: bool, boxes_only: bool = False) -> list[dict[str, Any]]:
    from pycocotools import mask as coco_mask

    rows: list[dict[str, Any]] = []
    for image_id, objects in enumerate(images, 1):
        scores: Any = objects.scores
        for i, (box, cls) in enumerate(zip(np.asarray(objects.boxes, float), objects.classes, strict=True)):
            x0, y0, x1, y1 = box
            row = {
                "id": len(rows) + 1,
                "image_id": image_id,
                "category_id": int(cls),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0 if objects.crowd is None else int(objects.crowd[i]),
            }
            if objects.masks is not None and not boxes_only:
                rle = objects.masks[i] if isinstance(objects.masks[i], dict) else mask_to_rle(objects.masks[i])
                row |= {"segmentation": rle, "area": float(coco_mask.area(rle))}
            if objects.area is not None:
                row["area"] = float(objects.area[i])
            if found:
                row["score"] = float(scores[i])
            rows.append(row)
    return rows


def check_objects(truth: Sequence[Objects], found: Sequence[Objects], num_classes: int) -> None:
    """Raises ValueError for lists of unlike length, classes out of range, detections without scores, and NaN.

    To pycocotools a box of NaN overlaps every other.
    """
    if len(truth) != len(found):
        raise ValueError(f"average precision needs an entry for each image in both, got {len(truth)} and {len(found)}")
    for what, images in (("truth", truth), ("detections", found)):
        for i, objects in enumerate(images):
            if any(not 1 <= c < num_classes for c in objects.classes):
                raise ValueError(f"classes of the {what} of image {i} must be in 1..{num_classes - 1}")
            if not all(np.isfinite(x).all() for x in (objects.boxes, objects.scores) if x is not None):
                raise ValueError(f"boxes and scores of the {what} of image {i} must be finite")
    for i, objects in enumerate(found):
        if len(objects.boxes) and (objects.scores is None or len(objects.scores) != len(objects.boxes)):
            given = "none" if objects.scores is None else len(objects.scores)
            raise ValueError(f"each of the {len(objects.boxes)} detections of image {i} needs a score, got {given}")


def _size(objects: Objects) -> tuple[int, int]:
    """(h, w) of the masks; 0 where there are none to say, which nothing depends on."""
    if objects.masks is None or not len(objects.masks):
        return 0, 0
    first = objects.masks[0]
    return tuple(first["size"]) if isinstance(first, dict) else first.shape


def coco_average_precision(
    truth: Sequence[Objects], found: Sequence[Objects], class_names: Sequence[str]
) -> dict[str, float]:
    """COCO's six AP of boxes, `box_ap` ... `box_ap_large`, and of masks where both have them, `mask_ap` ....

    One `Objects` an image in both, whose masks may be None where it has no object; `class_names` include the
    background, 0. A size of objects that is not there has an AP of NaN. Raises ValueError as `check_objects`.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    check_objects(truth, found, len(class_names))
    given = [o.masks is not None for o in (*truth, *found) if len(o.boxes)]
    masks = all(given) if given else all(o.masks is not None for o in (*truth, *found))
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names) if k]
    entries = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(map(_size, truth), 1)]
    scores: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = _coco(COCO, entries, categories, _annotations(truth, found=False))
        for kind, iou_type in (("box", "bbox"), *((("mask", "segm"),) if masks else ())):
            # what was found is small by its box where boxes are judged, and by its mask where masks are
            rows = _annotations(found, found=True, boxes_only=kind == "box")
            results = _coco(COCO, entries, categories, rows)
            evaluation = COCOeval(coco, results, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for name, value in zip(NAMES, evaluation.stats, strict=False):
                scores[f"{kind}_{name}"] = float("nan") if value < 0 else float(value)
    return scores


def _coco(cls: Any, images: Any, categories: Any, annotations: list[dict[str, Any]]) -> Any:
    coco = cls()
    coco.dataset = {"info": {}, "images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco
