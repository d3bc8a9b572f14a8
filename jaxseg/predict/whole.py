"""Whole images on a canvas, or in seamless tiles where the model's convolutions are valid."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt8

from jaxseg.data.augment import normalize
from jaxseg.data.canvas import Fit, fit_geometry, fit_image, photograph
from jaxseg.ops.logits import two_class_logits
from jaxseg.ops.tracing import blank_kernels

__all__ = [
    "batch_predictor",
    "compiled_logits",
    "labels_at",
    "logits_size",
    "overlap_tile",
    "predictor",
    "taps",
]


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


def compiled_logits(model: nn.Module) -> Callable[[PyTree, UInt8[Array, "b h w 3"]], Float[Array, "b h2 w2 k"]]:
    """The logits of uint8 images, of at least two classes, as a compiled function of (variables, images)."""

    @jax.jit
    def logits(variables: PyTree, images: Array) -> Array:
        with blank_kernels():  # of which Flax asks the shapes, to compare
            output: Any = model.apply(variables, normalize(images.astype(jnp.float32) / 255), train=False)
        return two_class_logits(output.logits)

    return logits


def logits_size(apply: Callable, variables: PyTree, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the logits of images of `size`; raises what the model raises for a size it refuses."""
    return jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)).shape[1:3]


def batch_predictor(
    model: nn.Module, variables: PyTree, size: tuple[int, int], batch: int
) -> Callable[[Sequence[UInt8[np.ndarray, "_ _ 3"]]], list[Int[np.ndarray, "_ _"]]]:
    """A function from up to `batch` RGB images of any sizes to their int32 labels `[h, w]`; compiles once.

    As in training an image is scaled to fit the canvas `size` (h, w), its aspect kept; the logits are scaled
    back. A model of valid convolutions, whose logits are smaller than its input, goes over each image in
    tiles of `size` with mirrored borders. Raises ValueError for images that are not RGB of 8 bits.
    """
    if batch < 1:
        raise ValueError(f"a batch is of at least 1 image, got {batch}")
    apply = compiled_logits(model)
    output_size = logits_size(apply, variables, size)
    with_variables: Any = functools.partial(apply, jax.device_put(variables))

    def whole(images: Sequence[Any]) -> list[np.ndarray]:
        if not 0 < len(images) <= batch:
            raise ValueError(f"this predictor takes 1 to {batch} images at once, got {len(images)}")
        images = [photograph(image) for image in images]
        fits = [fit_geometry((image.shape[0], image.shape[1]), size) for image in images]
        canvases = [fit_image(image, fit) for image, fit in zip(images, fits, strict=True)]
        logits = np.asarray(with_variables(np.stack(canvases + canvases[-1:] * (batch - len(images)))))
        return [labels_at(x[: f.scaled[0], : f.scaled[1]], f.original) for x, f in zip(logits, fits, strict=False)]

    def tiled(image: np.ndarray) -> np.ndarray:
        fit: Fit = fit_geometry((image.shape[0], image.shape[1]), size)
        scaled = fit_image(image, Fit(fit.original, fit.scaled, fit.scaled))
        return labels_at(overlap_tile(with_variables, scaled, size, output_size), fit.original)

    return whole if output_size == size else lambda images: [tiled(photograph(image)) for image in images]


def predictor(
    model: nn.Module, variables: PyTree, size: tuple[int, int]
) -> Callable[[UInt8[np.ndarray, "h w 3"]], Int[np.ndarray, "h w"]]:
    """`batch_predictor` for one image at a time."""
    predict = batch_predictor(model, variables, size, 1)
    return lambda image: predict([image])[0]
