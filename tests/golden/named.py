"""Weights and images that are functions of their names, so that a golden file need not hold them."""

import zlib

import jax
import numpy as np

__all__ = ["fill", "image", "value"]


def _generator(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def value(path, shape):
    """The array of that path of variables, such as `params/conv1_1/kernel`, in Flax's layout."""
    noise = _generator(path).standard_normal(shape, np.float32)
    field = path.split("/")[-1]
    if field == "kernel":
        return noise * np.float32((2 / np.prod(shape[:-1])) ** 0.5)
    if field == "scale":
        return 1 + 0.2 * noise
    if field == "var":
        return np.exp(0.3 * noise)
    return 0.2 * noise


def fill(shapes):
    """Variables of those shapes, as `jax.eval_shape` of a model's init gives them."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.numpy.asarray(value("/".join(key.key for key in path), leaf.shape)), shapes
    )


def image(n, h, w, channels=3):
    return jax.numpy.asarray(_generator(f"{n} {h} {w}").standard_normal((n, h, w, channels), np.float32))


def close_as_theirs(ours, theirs, exact, atol=None):
    """As near to float64 as 1e-4 everywhere, or, where theirs is not that near itself, as three times its distance.

    Fifty norms by the statistics of a hundred pixels, or of two, make more of a rounding than 1e-4. Distances are
    those of all elements together: the largest, of one draw of such noise each, are as 1 to 4 now and then.
    """
    ours, theirs, exact = (np.asarray(x, np.float64) for x in (ours, theirs, exact))
    rounding, error = np.linalg.norm(theirs - exact), np.linalg.norm(ours - exact)
    near = np.abs(ours - exact).max() <= (1e-4 * max(1e-2, np.std(exact)) if atol is None else atol)
    assert near or error <= 3 * rounding, (error, rounding)
