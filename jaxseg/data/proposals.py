"""Boxes that may hold an object, found without learning: selective search."""

from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

__all__ = ["selective_search"]


def _segmentation() -> Any:
    try:
        import cv2

        return getattr(cv2, "ximgproc").segmentation  # noqa: B009, which mypy does not know
    except (ImportError, AttributeError):
        raise ImportError(
            "selective search is OpenCV's, of its contrib modules (cv2.ximgproc): pip install 'jaxseg[rcnn]', without "
            "another opencv package beside it, or give proposals of your own"
        ) from None


def selective_search(
    image: UInt8[np.ndarray, "h w 3"], *, mode: Literal["fast", "quality"] = "fast", limit: int = 2000, least: int = 20
) -> Float[np.ndarray, "k 4"]:
    """Boxes XYXY of an RGB image by selective search (Uijlings et al. 2013), by OpenCV, in its order, at most `limit`.

    Boxes with a side below `least` pixels are left out, as R-CNN does, unless there is no other; an image that gives
    none has itself as the one box. Raises ImportError that names the extra where OpenCV has no contrib modules.
    """
    search = _segmentation().createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    if mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    found = np.asarray(search.process(), np.float32).reshape(-1, 4)
    boxes = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)
    large = (found[:, 2:] >= least).all(1)
    boxes = boxes[large] if large.any() else boxes
    if not len(boxes):
        boxes = np.array([[0, 0, image.shape[1], image.shape[0]]], np.float32)
    return boxes[:limit]
