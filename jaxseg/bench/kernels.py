"""The kernels under the zoo that are measured by themselves, and on what."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseg.clustering import graph, kmeans, smallest_eigenpairs
from jaxseg.ops.adain import adaptive_instance_norm
from jaxseg.ops.depthwise import depthwise_conv
from jaxseg.ops.doubling import conv_after_doubling
from jaxseg.ops.generation import blur
from jaxseg.ops.nms import nms
from jaxseg.ops.pooling import max_pool
from jaxseg.ops.resize import resize_bilinear
from jaxseg.ops.roi import roi_align

__all__ = ["BOXES", "CLUSTERS", "EIGENVECTORS", "ITERATIONS", "KERNELS", "TOLERANCE", "Kernel"]

BOXES = 1000  # of an image: what an RPN leaves
CLUSTERS, ITERATIONS = 8, 10
EIGENVECTORS, TOLERANCE = 7, 1e-5  # for eight segments


class Kernel(NamedTuple):
    """A function of arrays, and examples of these for a batch of images of a size (h, w)."""

    apply: Callable[..., Any]
    inputs: Callable[[np.random.Generator, int, tuple[int, int]], tuple[np.ndarray, ...]]
    has_gradient: bool = True  # by its first input, of the sum of squares: its "train"


def _boxes(rng: np.random.Generator, n: int, size: tuple[int, int]) -> np.ndarray:
    corners = rng.uniform(0, 0.7, (n, BOXES, 2)) * size[::-1]
    sides = rng.uniform(min(8, 0.1 * min(size)), 0.2 * min(size), (n, BOXES, 2))
    return np.concatenate([corners, corners + sides], -1).astype(np.float32)


def _features(channels: int, stride: int, count: int = 1) -> Callable[..., tuple[np.ndarray, ...]]:
    def inputs(rng: np.random.Generator, n: int, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
        shape = (n, -(-size[0] // stride), -(-size[1] // stride), channels)
        return tuple(rng.standard_normal(shape, np.float32) for _ in range(count))

    return inputs


def _with(inputs: Callable[..., tuple[np.ndarray, ...]], *kernel: int) -> Callable[..., tuple[np.ndarray, ...]]:
    return lambda rng, n, size: (
        *inputs(rng, n, size),
        rng.standard_normal(kernel, np.float32) / np.float32(np.prod(kernel[:3])) ** 0.5,
    )


def _nms_inputs(rng: np.random.Generator, n: int, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    return _boxes(rng, n, size), rng.random((n, BOXES), np.float32)


def _roi_inputs(rng: np.random.Generator, n: int, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    return *_features(256, 8)(rng, n, size), _boxes(rng, n, size)


def _pixels(rng: np.random.Generator, n: int, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    pixels = rng.random((n * size[0] * size[1], 3), np.float32)
    return pixels, pixels[:: len(pixels) // CLUSTERS][:CLUSTERS].copy()


def _shaded(rng: np.random.Generator, n: int, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    noise = 0.02 * rng.standard_normal((*size, 1))
    discs = sum(0.2 * ((y - cy) ** 2 + (x - cx) ** 2 < 0.04) for cy, cx in rng.random((6, 2)))
    return (np.clip((0.3 + 0.3 * x + discs)[..., None] + noise, 0, 1).repeat(3, -1).astype(np.float32),)


KERNELS: dict[str, Kernel] = {
    "nms": Kernel(jax.vmap(lambda boxes, scores: nms(boxes, scores, 0.7, BOXES)), _nms_inputs, False),
    "roi_align": Kernel(functools.partial(roi_align, size=7, scale=1 / 8), _roi_inputs),
    "kmeans": Kernel(
        lambda x, init: kmeans(x, CLUSTERS, init=init, max_iterations=ITERATIONS, tolerance=0.0), _pixels, False
    ),
    "ncut_eigenpairs": Kernel(
        lambda image: smallest_eigenpairs(graph(image), EIGENVECTORS, key=jax.random.key(0), tolerance=TOLERANCE),
        _shaded,
        False,
    ),
    "adain": Kernel(adaptive_instance_norm, _features(512, 8, 2)),
    "doubling_conv_blur": Kernel(
        lambda x, kernel: blur(conv_after_doubling(x, kernel)), _with(_features(128, 4), 3, 3, 128, 64)
    ),
    "depthwise_3x3": Kernel(depthwise_conv, _with(_features(64, 4), 3, 3, 1, 64)),
    "max_pool_2x2": Kernel(max_pool, _features(64, 2)),
    "bilinear_x2": Kernel(lambda x: resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2])), _features(64, 4)),
}
