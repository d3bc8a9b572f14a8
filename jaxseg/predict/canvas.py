"""Label maps of photographs of any size, from the logits of a canvas or, of valid convolutions, of seamless tiles."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from jaxseg.data.canvas import Fit, fit_geometry, fit_image, photograph

__all__ = ["canvas_predictor", "labels_at", "overlap_tile", "taps"]


def labels_at(logits: Float[np.ndarray, "h w k"], size: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    """Labels at `size` from logits resized bilinearly (pixel centres, edges clamped).

    Goes class by class with a running maximum, so that K maps of the full size never exist at once.
    """
    h, w, k = logits.shape
    if size == (h, w):
        return np.argmax(logits, -1).astype(np.int32)
    rows, columns = _interpolation(h, size[0]), _interpolation(w, size[1])
    best = np.full(size, -np.inf, np.float32)
    labels = np.zeros(size, np.int32)
    for c in range(k):
        score = rows @ np.ascontiguousarray(logits[..., c], np.float32) @ columns.T
        higher = score > best
        np.copyto(best, score, where=higher)
        labels[higher] = c
    return labels


def taps(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two of `n` samples that each of `m` lies between, and how near it is to the second, bilinearly."""
    at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    low = np.floor(at).astype(int)
    return low, np.minimum(low + 1, n - 1), (at - low).astype(np.float32)


def _interpolation(n: int, m: int) -> Float[np.ndarray, "m n"]:
    """The matrix that resizes `n` samples to `m` bilinearly."""
    low, high, nearness = taps(n, m)
    matrix = np.zeros((m, n), np.float32)
    np.add.at(matrix, (np.arange(m), low), 1 - nearness)
    np.add.at(matrix, (np.arange(m), high), nearness)
    return matrix


def _tiles(length: int, tile: int) -> Iterator[int]:
    """Starts of tiles that cover `length`; the last one ends with it where it can."""
    last = max(length - tile, 0)
    yield from (min(i * tile, last) for i in range(math.ceil(length / tile)))


def overlap_tile(
    apply: Callable[[Shaped[np.ndarray, "1 t1 t2 c"]], Float[Array, "1 u1 u2 k"]],
    image: Shaped[np.ndarray, "h w c"],
    input_tile: tuple[int, int],
    output_tile: tuple[int, int],
) -> Float[np.ndarray, "h w k"]:
    """Seamless logits of an image of any size from valid convolutions (Ronneberger et al. 2015, Figure 2).

    `apply` maps a tile of `input_tile` pixels to logits of its central `output_tile` pixels. What a tile lacks
    beyond the image is mirrored, without repeating the border pixel, and again where the image is narrow.
    """
    h, w = image.shape[:2]
    top, left = ((i - o) // 2 for i, o in zip(input_tile, output_tile, strict=True))
    reach_h, reach_w = max(h, output_tile[0]), max(w, output_tile[1])
    below = reach_h - h + input_tile[0] - output_tile[0] - top
    right = reach_w - w + input_tile[1] - output_tile[1] - left
    mode: Any = "reflect" if min(h, w) > 1 else "edge"  # one pixel has no mirror image
    mirrored = np.pad(image, ((top, below), (left, right), (0, 0)), mode=mode)
    result: np.ndarray | None = None
    for y in _tiles(h, output_tile[0]):
        for x in _tiles(w, output_tile[1]):
            tile = np.asarray(apply(mirrored[None, y : y + input_tile[0], x : x + input_tile[1]]))[0]
            if result is None:
                result = np.empty((h, w, tile.shape[-1]), np.float32)
            here = result[y : y + output_tile[0], x : x + output_tile[1]]
            here[:] = tile[: here.shape[0], : here.shape[1]]
    assert result is not None
    return result


def canvas_predictor(
    logits: Callable[[UInt8[np.ndarray, "b h w 3"]], Float[Array, "b h2 w2 k"]],
    size: tuple[int, int],
    output_size: tuple[int, int],
    batch: int,
) -> Callable[[Sequence[UInt8[np.ndarray, "_ _ 3"]]], list[Int[np.ndarray, "_ _"]]]:
    """`batch_predictor` of a function from canvases of `size` to their logits of `output_size`.

    It is given `batch` canvases at a time, and one where `output_size` is another than `size`.
    """

    def whole(images: Sequence[Any]) -> list[np.ndarray]:
        if not 0 < len(images) <= batch:
            raise ValueError(f"this predictor takes 1 to {batch} images at once, got {len(images)}")
        images = [photograph(image) for image in images]
        fits = [fit_geometry((image.shape[0], image.shape[1]), size) for image in images]
        canvases = [fit_image(image, fit) for image, fit in zip(images, fits, strict=True)]
        scores = np.asarray(logits(np.stack(canvases + canvases[-1:] * (batch - len(images)))))
        return [labels_at(x[: f.scaled[0], : f.scaled[1]], f.original) for x, f in zip(scores, fits, strict=False)]

    def tiled(image: np.ndarray) -> np.ndarray:
        fit: Fit = fit_geometry((image.shape[0], image.shape[1]), size)
        scaled = fit_image(image, Fit(fit.original, fit.scaled, fit.scaled))
        return labels_at(overlap_tile(logits, scaled, size, output_size), fit.original)

    return whole if output_size == size else lambda images: [tiled(photograph(image)) for image in images]
