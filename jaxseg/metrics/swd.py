"""Sliced Wasserstein distance between sets of images, which needs no trained network."""

import numpy as np
from jaxtyping import Float, UInt8

__all__ = ["laplacian_pyramid", "sliced_wasserstein"]

BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def _smooth(x: Float[np.ndarray, "n h w c"], gain: float = 1.0) -> Float[np.ndarray, "n h w c"]:
    """The 5x5 binomial filter, borders mirrored about the last pixel."""
    for axis in (1, 2):
        n = x.shape[axis]
        pad = [(0, 0)] * 4
        pad[axis] = (2, 2)
        padded = np.pad(x, pad, "reflect")
        x = sum(gain * BINOMIAL[i] * np.take(padded, range(i, i + n), axis) for i in range(5))
    return x


def laplacian_pyramid(images: UInt8[np.ndarray, "n h w c"], least: int = 16) -> list[Float[np.ndarray, "n _ _ c"]]:
    """Differences between an image and its smoothed half, doubled again; the last level is the image itself."""
    levels = [images.astype(np.float32)]
    while min(levels[-1].shape[1:3]) // 2 >= max(least, 1):
        smaller = _smooth(levels[-1])[:, ::2, ::2]
        spread = np.zeros_like(levels[-1])
        spread[:, ::2, ::2] = smaller
        levels[-1] = levels[-1] - _smooth(spread, 2.0)
        levels.append(smaller)
    return levels


def _patches(x: np.ndarray, size: int, count: int, rng: np.random.Generator) -> Float[np.ndarray, "m d"]:
    n, h, w, c = x.shape
    if min(h, w) < size:
        raise ValueError(f"a level of the pyramid of {h}x{w} pixels holds no patch of {size}; use least={size}")
    rows, cols = (rng.integers(0, side - size + 1, (n, count)) for side in (h, w))
    offset = np.arange(size)
    picked = x[
        np.arange(n)[:, None, None, None],
        rows[..., None, None] + offset[:, None],
        cols[..., None, None] + offset,
    ].reshape(-1, size * size, c)
    picked = (picked - picked.mean((0, 1))) / np.maximum(picked.std((0, 1)), 1e-8)
    return picked.reshape(len(picked), -1)


def sliced_wasserstein(
    images: UInt8[np.ndarray, "n h w c"],
    reals: UInt8[np.ndarray, "m h2 w2 c"],
    *,
    seed: int,
    least: int = 16,
    patch: int = 7,
    patches_an_image: int = 128,
    directions: int = 512,
) -> tuple[float, ...]:
    """A distance for each level of the pyramid, finest first, times 1000 (Karras et al. 2018, section 5).

    Patches of `patch` pixels, each channel standardised over all of them, are projected on random directions;
    the distance between two sets of numbers is the mean difference of the sorted ones. Two draws from one set
    do not have distance zero: it falls with the number of images. Raises ValueError for two sets that differ
    in size, are empty, or are smaller than a patch at some level, and for no directions or patches.
    """
    if directions < 1 or patches_an_image < 1:
        raise ValueError(
            f"sliced_wasserstein needs at least one direction and one patch an image, got {directions} and "
            f"{patches_an_image}"
        )
    if patch < 1:
        raise ValueError(f"sliced_wasserstein takes patches of one pixel or more, got {patch}")
    if images.shape != reals.shape or images.ndim != 4 or not len(images):
        raise ValueError(
            "sliced_wasserstein needs as many images as reals, of one size, (n, h, w, c) with n of 1 or more: got "
            f"{images.shape} and {reals.shape}"
        )
    if min(images.shape[1:3]) < patch:
        raise ValueError(f"sliced_wasserstein takes patches of {patch} pixels from images of {images.shape[1:3]}")
    rng = np.random.default_rng(seed)
    distances = []
    for ours, theirs in zip(laplacian_pyramid(images, least), laplacian_pyramid(reals, least), strict=True):
        a, b = (_patches(x, patch, patches_an_image, rng) for x in (ours, theirs))
        total = 0.0
        for i in range(0, directions, 64):
            slices = rng.standard_normal((a.shape[1], min(64, directions - i)), np.float32)
            slices /= np.sqrt(np.square(slices).sum(0, keepdims=True))
            total += np.abs(np.sort(a @ slices, 0) - np.sort(b @ slices, 0)).mean(0).sum()
        distances.append(1000 * total / directions)
    return tuple(map(float, distances))
