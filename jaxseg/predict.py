"""From a photograph of any size to a label map of that size, in one compiled program."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt8

from jaxseg.data.augment import normalize
from jaxseg.data.canvas import Fit, fit_geometry, fit_image
from jaxseg.detect import detect

__all__ = ["detect", "labels_at", "overlap_tile", "predictor"]


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


def _interpolation(n: int, m: int) -> Float[np.ndarray, "m n"]:
    """The matrix that resizes `n` samples to `m` bilinearly."""
    at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, n - 1)
    matrix = np.zeros((m, n), np.float32)
    np.add.at(matrix, (np.arange(m), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(m), high), at - low)
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


def predictor(
    model: nn.Module, variables: PyTree, size: tuple[int, int]
) -> Callable[[UInt8[np.ndarray, "h w 3"]], Int[np.ndarray, "h w"]]:
    """A function from an RGB image of any size to its int32 labels `[h, w]`; compiles once.

    As in training an image is scaled to fit the canvas `size` (h, w), its aspect kept; the logits are scaled
    back. A model of valid convolutions, whose logits are smaller than its input, goes over the image in
    tiles of `size` with mirrored borders.
    """

    @jax.jit
    def apply(variables: PyTree, images: Array) -> Array:
        output: Any = model.apply(variables, normalize(images.astype(jnp.float32) / 255), train=False)
        return output.logits

    shape: Any = jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8))
    output_size = shape.shape[1:3]
    with_variables = functools.partial(apply, variables)

    def predict(image: np.ndarray) -> np.ndarray:
        fit: Fit = fit_geometry(image.shape[:2], size)
        if output_size == size:
            logits = np.asarray(with_variables(fit_image(image, fit)[None]))[0, : fit.scaled[0], : fit.scaled[1]]
        else:
            scaled = fit_image(image, Fit(fit.original, fit.scaled, fit.scaled))
            logits = overlap_tile(with_variables, scaled, size, output_size)
        return labels_at(logits, fit.original)

    return predict
