"""Reductions over the global batch: one definition for jit, where a sharded batch is whole, and for pmap.

Under jit over a mesh an array of a sharded batch is the global array, so a plain sum is already global.
Inside `jax.pmap(..., axis_name=BATCH_AXIS)` a device sees its own slice, and the same sum needs a psum.
These functions look whether the axis is bound, so that losses, norms and dropout are written once.

A loss built on `batch_sum` is the global loss on every device. Its gradient with respect to replicated
parameters is then averaged over devices (`batch_mean`), because the transpose of psum is psum.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Shaped

__all__ = ["BATCH_AXIS", "batch_gather", "batch_mean", "batch_sum", "example_index", "in_mapped_batch"]

BATCH_AXIS = "data"


def in_mapped_batch() -> bool:
    """Whether this trace is inside a map (pmap, shard_map, vmap) that names the axis `BATCH_AXIS`."""
    try:
        jax.lax.axis_index(BATCH_AXIS)
    except NameError:  # jax's documented answer for an unbound axis
        return False
    return True


def batch_sum(tree: PyTree) -> PyTree:
    """Sums each leaf over the devices that share the global batch."""
    return jax.lax.psum(tree, BATCH_AXIS) if in_mapped_batch() else tree


def batch_mean(tree: PyTree) -> PyTree:
    """Averages each leaf over the devices that share the global batch."""
    return jax.lax.pmean(tree, BATCH_AXIS) if in_mapped_batch() else tree


def batch_gather(x: Shaped[Array, "n *s"]) -> Shaped[Array, "m *s"]:
    """The slices of all devices that share the global batch, on each of them; for what sorts the whole batch."""
    return jax.lax.all_gather(x, BATCH_AXIS, tiled=True) if in_mapped_batch() else x


def example_index(n: int) -> Int[Array, "n"]:
    """Positions in the global batch of the `n` examples seen here; what per-example keys are folded with."""
    first = jax.lax.axis_index(BATCH_AXIS) * n if in_mapped_batch() else 0
    return first + jnp.arange(n, dtype=jnp.int32)
