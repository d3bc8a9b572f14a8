"""Anchors: reference boxes of several sizes and shapes around every place of a feature map."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

__all__ = ["anchor_grid", "cell_anchors", "pyramid_anchors"]


def cell_anchors(sizes: Sequence[int | float], ratios: Sequence[int | float]) -> Float[np.ndarray, "a 4"]:
    """The anchors of one place, around the origin: for each of `ratios` (height over width), each of `sizes`.

    In float32, and rounded to whole pixels with halves to even, as torchvision's are.
    """
    side, ratio = np.asarray(sizes, np.float32), np.asarray(ratios, np.float32)
    tall = np.sqrt(ratio)
    h = (tall[:, None] * side[None]).ravel()
    w = ((np.float32(1) / tall)[:, None] * side[None]).ravel()
    return np.round(np.stack([-w, -h, w, h], 1) / np.float32(2))


def anchor_grid(
    cells: Float[np.ndarray, "a 4"], grid: tuple[int, int], stride: tuple[int, int]
) -> Float[np.ndarray, "k 4"]:
    """`cells` around every place of a `grid` (h, w) that are `stride` pixels apart; k = h w a, cells innermost."""
    y, x = (np.arange(n, dtype=np.float32) * s for n, s in zip(grid, stride, strict=True))
    corners = np.stack(np.broadcast_arrays(x[None], y[:, None], x[None], y[:, None]), -1)
    return (corners[:, :, None] + cells).astype(np.float32).reshape(-1, 4)


def pyramid_anchors(
    grids: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
    sizes: Sequence[Sequence[int | float]],
    ratios: Sequence[int | float],
) -> list[Float[np.ndarray, "k 4"]]:
    """Anchors of each feature map, whose strides are `image_size // grid`, as torchvision has them.

    `sizes` holds those of each map. They are functions of static shapes: constants of a compiled program.
    Raises ValueError where maps and sizes differ in number.
    """
    if len(grids) != len(sizes):
        raise ValueError(f"{len(grids)} feature maps need as many tuples of anchor sizes, got {len(sizes)}: {sizes}")
    return [
        anchor_grid(cell_anchors(s, ratios), grid, (image_size[0] // grid[0], image_size[1] // grid[1]))
        for grid, s in zip(grids, sizes, strict=True)
    ]
