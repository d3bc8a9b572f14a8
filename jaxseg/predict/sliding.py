"""Sliding windows, several scales and mirror images, in bounded memory."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from jaxseg.data.canvas import MEAN_COLOUR, Fit, fit_geometry, fit_image
from jaxseg.predict.whole import compiled_logits, logits_size, taps

__all__ = ["averaged_scores", "sliding_predictor"]

PIECE = 16  # rows that are resized and added at once


def _window_starts(length: int, window: int, stride: int) -> list[int]:
    """Starts of windows that cover `length`, `stride` apart but for the last, which ends with it (semseg)."""
    return [min(i * stride, length - window) for i in range(math.ceil((length - window) / stride) + 1)]


def _window_rows(
    apply: Callable[[UInt8[np.ndarray, "b h w 3"]], Float[Array, "b h w k"]],
    image: UInt8[np.ndarray, "h w 3"],
    window: tuple[int, int],
    strides: tuple[int, int],
    batch: int,
) -> Iterator[Float[np.ndarray, "r w k"]]:
    """Rows of an image's scores, averaged over the windows on each pixel, as soon as no window below adds to them."""
    h, w = image.shape[:2]
    image = _padded(image, window)
    (top, left), (full_h, full_w) = _margins((h, w), window), image.shape[:2]
    tops, lefts = (_window_starts(n, t, s) for n, t, s in zip((full_h, full_w), window, strides, strict=True))
    covers = np.zeros(full_w, np.float32)
    for x in lefts:
        covers[x : x + window[1]] += 1
    held: np.ndarray | None = None  # scores of rows first ... first + window[0], not yet divided
    rows_cover = np.zeros(full_h, np.float32)
    first = 0

    def complete(n: int) -> Iterator[np.ndarray]:
        """The next `n` rows in pieces, divided, without what was padded."""
        assert held is not None
        for r in range(max(top - first, 0), min(top + h - first, n), PIECE):
            end = min(r + PIECE, top + h - first, n)
            count = rows_cover[first + r : first + end, None] * covers[left : left + w]
            yield held[r:end, left : left + w] / count[..., None]

    for (y, x), scores in _scored(apply, image, window, list(itertools.product(tops, lefts)), batch):
        if held is None:
            if scores.shape[:2] != window:
                raise ValueError(f"windows of {window} gave scores of {scores.shape[:2]}; resize them within `apply`")
            held = np.zeros((window[0], full_w, scores.shape[-1]), np.float32)
        if y > first:
            yield from complete(y - first)
            for r in range(0, window[0], y - first):  # upwards, without a copy of all
                kept = held[r + y - first : r + 2 * (y - first)]
                held[r : r + len(kept)] = kept
            held[first - y :] = 0
            first = y
        held[:, x : x + window[1]] += scores
        if x == 0:
            rows_cover[y : y + window[0]] += 1
    yield from complete(window[0])


def _margins(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """Rows above and columns to the left that centre an image in a larger window."""
    top, left = (max(t - n, 0) // 2 for n, t in zip(size, window, strict=True))
    return top, left


def _padded(image: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """The image in the centre of at least a window of the mean colour."""
    h, w = image.shape[:2]
    if h >= window[0] and w >= window[1]:
        return image
    top, left = _margins((h, w), window)
    canvas = np.empty((max(h, window[0]), max(w, window[1]), 3), np.uint8)
    canvas[:] = MEAN_COLOUR
    canvas[top : top + h, left : left + w] = image
    return canvas


def _scored(
    apply: Callable, image: np.ndarray, window: tuple[int, int], places: list[tuple[int, int]], batch: int
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Each place of a window with its scores; the device works on one batch while the host adds up the one before."""
    running: tuple[list[tuple[int, int]], Any] | None = None
    for start in range(0, len(places) + batch, batch):
        now = places[start : start + batch]
        scores = None
        if now:
            filled = now + now[-1:] * (batch - len(now))  # a last batch that is short repeats a window
            scores = apply(np.stack([image[y : y + window[0], x : x + window[1]] for y, x in filled]))
        if running is not None:
            yield from zip(running[0], np.asarray(running[1]), strict=False)
        running = (now, scores) if now else None


def _resized_rows(
    rows: Iterator[Float[np.ndarray, "r w k"]], size: tuple[int, int], to: tuple[int, int]
) -> Iterator[Float[np.ndarray, "r2 w2 k"]]:
    """Rows of a map of `size` as rows of it at `to`, each as soon as the two that it lies between are there."""
    if size == to:
        yield from rows
        return
    low, high, nearness = taps(size[0], to[0])
    left, right, x = taps(size[1], to[1])

    def between(a: np.ndarray, b: np.ndarray, nearness: np.ndarray) -> np.ndarray:
        b -= a
        b *= nearness
        a += b
        return a

    held, first, done = None, 0, 0
    for block in rows:
        block = between(block[:, left], block[:, right], x[:, None])
        held = block if held is None else np.concatenate([held, block])
        ready = int(np.searchsorted(high, first + len(held)))
        if ready > done:
            here = slice(done, ready)
            yield between(held[low[here] - first], held[high[here] - first], nearness[here, None, None])
            done = ready
        if done < to[0]:
            drop = min(int(low[done]) - first, len(held))
            held, first = held[drop:].copy(), first + drop


def _summed_rows(maps: Sequence[Iterator[Float[np.ndarray, "r w k"]]], height: int) -> Iterator[np.ndarray]:
    """The sum of maps that come in blocks of unlike numbers of rows; the one that lags is asked next."""
    if len(maps) == 1:
        yield from maps[0]
        return
    reached = [0] * len(maps)
    held, first = None, 0
    while first < height:
        lagging = int(np.argmin(reached))
        rows = next(maps[lagging])
        start = reached[lagging] - first
        reached[lagging] += len(rows)
        if held is None:
            held = np.zeros((0, *rows.shape[1:]), np.float32)
        if (short := start + len(rows) - len(held)) > 0:
            held = np.concatenate([held, np.zeros((short, *held.shape[1:]), np.float32)])
        held[start : start + len(rows)] += rows
        if ready := min(reached) - first:
            yield held[:ready]
            held, first = held[ready:].copy(), first + ready


def averaged_scores(
    apply: Callable[[UInt8[np.ndarray, "b h w 3"]], Float[Array, "b h w k"]],
    image: UInt8[np.ndarray, "H W 3"],
    window: tuple[int, int],
    *,
    stride: float = 2 / 3,
    scales: Sequence[float] = (1.0,),
    base: tuple[int, int] | None = None,
    batch: int = 1,
    sideways: bool = False,
) -> Iterator[Float[np.ndarray, "h w k"]]:
    """Scores of an image from overlapping windows at several scales, as blocks of rows from top to bottom.

    As hszhao/semseg tests PSPNet (Zhao et al. 2017, section 5.2): at each scale the image is resized, one smaller
    than the `window` is centred in the mean colour, windows `stride` of their size apart cover it, the scores of
    `apply` are averaged over the windows on each pixel, resized bilinearly to the image's size, and averaged over
    scales. Unlike there, shrinking an image filters it first, as everywhere in jaxseg. Scale 1 is the image
    fitted into `base` (h, w), or at its own size.

    `apply` sees `batch` windows at a time. No map of all the scores is ever whole: in memory are, for each scale,
    the rows that windows still add to, at most a window's height, and rows that wait for the slowest scale.
    `sideways` gives blocks of columns from left to right, which holds less of a wide image.
    Raises ValueError for a stride outside (0, 1], scales that are not positive, and scores of another size.
    """
    if not 0 < stride <= 1:
        raise ValueError(f"stride is a share of the window, above 0 and up to 1, got {stride}; PSPNet has 2/3")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales are positive and at least one, got {tuple(scales)}")
    original = (image.shape[0], image.shape[1])
    strides = (math.ceil(window[0] * stride), math.ceil(window[1] * stride))

    def turn(x: Any) -> Any:
        """A size, an image or a block of scores, with height and width changed over where that is asked."""
        if not sideways:
            return x
        return x[::-1] if isinstance(x, tuple) else x.swapaxes(0, 1)

    def turn_scores(apply: Callable) -> Callable:
        return (lambda x: np.asarray(apply(x.swapaxes(1, 2))).swapaxes(1, 2)) if sideways else apply

    maps = []
    for scale in scales:
        h, w = original if base is None else fit_geometry(original, base).scaled
        scaled = (max(round(scale * h), 1), max(round(scale * w), 1))
        seen = fit_image(image, Fit(original, scaled, scaled))
        turned: Any = _window_rows(turn_scores(apply), turn(seen), turn(window), turn(strides), batch)
        maps.append(_resized_rows(turned, turn(scaled), turn(original)))
    for block in _summed_rows(maps, turn(original)[0]):
        block /= len(scales)
        yield turn(block)


def sliding_predictor(
    model: nn.Module,
    variables: PyTree,
    window: tuple[int, int],
    *,
    stride: float = 2 / 3,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    base: tuple[int, int] | None = None,
    batch: int = 1,
) -> Callable[[UInt8[np.ndarray, "h w 3"]], Int[np.ndarray, "h w"]]:
    """A function from an RGB image of any size to its int32 labels `[h, w]`, by overlapping windows; compiles once.

    The labels are those of the highest mean probability, over windows, scales and, with `flip`, each window and
    its mirror image: see `averaged_scores`, which takes the other arguments. Raises ValueError as that does, and
    for a model whose logits are smaller than its input.
    """
    logits = compiled_logits(model)
    if logits_size(logits, variables, window) != window:
        raise ValueError(
            f"{type(model).__name__} gives logits smaller than its input, and goes over an image in seamless tiles "
            "without windows, scales or flip: use predictor"
        )

    variables = jax.device_put(variables)

    @jax.jit
    def probabilities(variables: PyTree, images: Array) -> Array:
        both = jnp.concatenate([images, images[:, :, ::-1]]) if flip else images
        p = jax.nn.softmax(logits(variables, both))
        return (p[:batch] + p[batch:, :, ::-1]) / 2 if flip else p

    options: Any = {"stride": stride, "scales": scales, "base": base, "batch": batch}

    def predict(image: np.ndarray) -> np.ndarray:
        sideways = image.shape[1] > image.shape[0]
        apply: Any = functools.partial(probabilities, variables)
        blocks = averaged_scores(apply, image, window, sideways=sideways, **options)
        return np.concatenate([block.argmax(-1).astype(np.int32) for block in blocks], int(sideways))

    return predict
