"""Images of any size onto a canvas of one size, and the geometry that leads back."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from jaxseg.data.source import IGNORE

__all__ = ["MEAN_COLOUR", "Fit", "fit_geometry", "fit_image", "fit_map", "fit_to", "photograph"]

MEAN_COLOUR = (124, 116, 104)  # 255 * ImageNet mean, rounded: zero, nearly, after normalisation


def photograph(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """An image as predictions take it, from NumPy, JAX or Pillow; ValueError for one that is not RGB of 8 bits."""
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ValueError(f"an image to segment is RGB, [h, w, 3], got {pixels.shape}")
    if pixels.dtype != np.uint8:
        raise ValueError(f"an image to segment is uint8, 0 to 255, got {pixels.dtype}; multiply floats in 0..1 by 255")
    return pixels


class Fit(NamedTuple):
    """Where an image lies on its canvas: scaled from `original` to `scaled` (h, w), at the top left corner.

    To undo: crop the canvas to `scaled`, then resize to `original`.
    """

    original: tuple[int, int]
    scaled: tuple[int, int]
    size: tuple[int, int]


def fit_geometry(original: tuple[int, int], size: tuple[int, int]) -> Fit:
    """The largest scaling of `original` (h, w) that keeps its aspect and stays within `size` (H, W)."""
    (h, w), (canvas_h, canvas_w) = original, size
    # integers: the side that touches the canvas is exact, the other is rounded half up
    if h * canvas_w >= w * canvas_h:
        scaled = canvas_h, max(1, (2 * w * canvas_h + h) // (2 * h))
    else:
        scaled = max(1, (2 * h * canvas_w + w) // (2 * w)), canvas_w
    return Fit((h, w), (min(scaled[0], canvas_h), min(scaled[1], canvas_w)), (canvas_h, canvas_w))


def fit_image(image: UInt8[np.ndarray, "h w 3"], fit: Fit) -> UInt8[np.ndarray, "H W 3"]:
    """Bilinear with antialiasing, then padded below and to the right with `MEAN_COLOUR`."""
    if fit.scaled != fit.original:
        # Pillow's BILINEAR widens its triangle when it shrinks, which is the antialiasing
        resized = Image.fromarray(image).resize(fit.scaled[::-1], Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    if fit.scaled == fit.size:
        return image
    canvas = np.empty((*fit.size, 3), np.uint8)
    canvas[:] = MEAN_COLOUR
    canvas[: fit.scaled[0], : fit.scaled[1]] = image
    return canvas


def fit_map(values: Shaped[np.ndarray, "h w"], fit: Fit, fill: int) -> Shaped[np.ndarray, "H W"]:
    """Nearest neighbour by pixel centres, then padded below and to the right with `fill`."""
    if fit.scaled != fit.original:
        rows, cols = (((2 * np.arange(n) + 1) * m) // (2 * n) for m, n in zip(fit.original, fit.scaled, strict=True))
        values = values[rows[:, None], cols]
    if fit.scaled == fit.size:
        return values
    canvas = np.full(fit.size, fill, values.dtype)
    canvas[: fit.scaled[0], : fit.scaled[1]] = values
    return canvas


def fit_to(
    image: UInt8[np.ndarray, "h w 3"], label: Int[np.ndarray, "h w"] | None, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], Int[np.ndarray, "H W"] | None, Fit]:
    """Fits an image and its labels, if any, to `size` (H, W); labels in the padding are 255.

    An image that has that size already passes untouched. Returns also the geometry that undoes it.
    """
    fit = fit_geometry((image.shape[0], image.shape[1]), size)
    return fit_image(image, fit), None if label is None else fit_map(label, fit, IGNORE), fit
