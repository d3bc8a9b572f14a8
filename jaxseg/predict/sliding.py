"""Sliding windows, several scales and mirror images, in bounded memory."""

import collections
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

from jaxseg.data.canvas import MEAN_COLOUR, Fit, fit_geometry, fit_image, photograph
from jaxseg.predict.canvas import taps
from jaxseg.predict.whole import compiled_logits, logits_size

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
    ahead: int,
) -> Iterator[Float[np.ndarray, "r w k"]]:
    """Rows of an image's scores, averaged over the windows on each pixel, as soon as no window below adds to them.

    They come in pieces; an empty one says that those after it need more windows, and what is kept until then is
    only what these add to.
    """
    h, w = image.shape[:2]
    image = _padded(image, window)
    (top, left), (full_h, full_w) = _margins((h, w), window), image.shape[:2]
    tops, lefts = (_window_starts(n, t, s) for n, t, s in zip((full_h, full_w), window, strides, strict=True))
    rows_cover, columns_cover = np.zeros(full_h, np.float32), np.zeros(full_w, np.float32)
    for x in lefts:
        columns_cover[x : x + window[1]] += 1
    held: np.ndarray | None = None  # scores of the rows from y on, not yet divided
    ends = dict(zip(tops, [*tops[1:], full_h], strict=True))
    for (y, x), scores in _scored(apply, image, window, list(itertools.product(tops, lefts)), batch, ahead):
        if scores.shape[:2] != window:
            raise ValueError(f"windows of {window} gave scores of {scores.shape[:2]}; resize them within `apply`")
        if x == 0:
            room = np.zeros((window[0], full_w, scores.shape[-1]), np.float32)
            if held is not None:
                room[: len(held)] = held
            held = room
            rows_cover[y : y + window[0]] += 1
        assert held is not None
        held[:, x : x + window[1]] += scores
        del scores
        if x == lefts[-1]:
            for r in range(max(top, y), min(top + h, ends[y]), PIECE):
                end = min(r + PIECE, top + h, ends[y])
                count = rows_cover[r:end, None] * columns_cover[left : left + w]
                yield held[r - y : end - y, left : left + w] / count[..., None]
            held = room = held[ends[y] - y :].copy()  # and no name is left for the rest
            yield np.zeros((0, w, held.shape[-1]), np.float32)


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
    apply: Callable, image: np.ndarray, window: tuple[int, int], places: list[tuple[int, int]], batch: int, ahead: int
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Each place of a window with its scores; the device is `ahead` batches before the host that adds them up."""
    running: collections.deque[tuple[list[tuple[int, int]], Any]] = collections.deque()
    for start in range(0, len(places) + ahead * batch, batch):
        if now := places[start : start + batch]:
            filled = now + now[-1:] * (batch - len(now))  # a last batch that is short repeats a window
            windows = np.stack([image[y : y + window[0], x : x + window[1]] for y, x in filled])
            running.append((now, apply(windows)))
        if start >= ahead * batch and running:
            done, scores = running.popleft()
            yield from zip(done, np.asarray(scores), strict=False)


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
        if not len(block):
            yield block
            continue
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
    """The sum of maps that come in blocks of unlike numbers of rows; the one that lags is asked next.

    It is asked for all that it has ready, up to an empty block, so that of the others little is in memory.
    """
    if len(maps) == 1:
        yield from maps[0]
        return
    reached = [0] * len(maps)
    held: collections.deque[np.ndarray] = collections.deque()  # rows from `first` on
    first = 0
    while first < height:
        lagging = int(np.argmin(reached))
        for rows in maps[lagging]:
            if not len(rows):
                break
            for i, row in enumerate(rows, reached[lagging] - first):
                if i < len(held):
                    held[i] += row
                else:
                    held.append(row.copy())
            reached[lagging] += len(rows)
        while first < min(reached):
            block = np.stack([held.popleft() for _ in range(min(PIECE, min(reached) - first))])
            first += len(block)
            yield block


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
    Raises ValueError for a stride outside (0, 1], scales that are not positive, no batch, and scores of another size.
    """
    if not 0 < stride <= 1:
        raise ValueError(f"stride is a share of the window, above 0 and up to 1, got {stride}; PSPNet has 2/3")
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales are positive and at least one, got {tuple(scales)}")
    if batch < 1:
        raise ValueError(f"a batch is of at least 1 window, got {batch}")
    original = (image.shape[0], image.shape[1])
    strides = (math.ceil(window[0] * stride), math.ceil(window[1] * stride))

    def turn(x: Any) -> Any:
        """A size, an image or a block of scores, with height and width changed over where that is asked."""
        if not sideways:
            return x
        return x[::-1] if isinstance(x, tuple) else x.swapaxes(0, 1)

    def turn_scores(apply: Callable) -> Callable:
        return (lambda x: np.asarray(apply(x.swapaxes(1, 2))).swapaxes(1, 2)) if sideways else apply

    ahead = int(len(scales) == 1)  # of several, all but one wait
    maps = []
    for scale in scales:
        h, w = original if base is None else fit_geometry(original, base).scaled
        scaled = (max(round(scale * h), 1), max(round(scale * w), 1))
        seen = fit_image(image, Fit(original, scaled, scaled))
        turned: Any = _window_rows(turn_scores(apply), turn(seen), turn(window), turn(strides), batch, ahead)
        maps.append(_resized_rows(turned, turn(scaled), turn(original)))
    for block in _summed_rows(maps, turn(original)[0]):
        if len(block):
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
    its mirror image: see `averaged_scores`, which takes the other arguments. Raises ValueError as that does, for
    an image that is not RGB of 8 bits, and for a model whose logits are smaller than its input.
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

    def predict(image: Any) -> np.ndarray:
        image = photograph(image)
        sideways = image.shape[1] > image.shape[0]
        apply: Any = functools.partial(probabilities, variables)
        blocks = averaged_scores(apply, image, window, sideways=sideways, **options)
        return np.concatenate([block.argmax(-1).astype(np.int32) for block in blocks], int(sideways))

    return predict
