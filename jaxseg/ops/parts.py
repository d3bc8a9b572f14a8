"""Losses that are sums over places of which few may be taken: parts without one are passed over."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

__all__ = ["sum_over_parts"]


def sum_over_parts(
    f: Callable[[PyTree, PyTree, PyTree, Array], Array],
    shared: PyTree,
    x: PyTree,
    targets: PyTree,
    valid: Bool[Array, "n k"],
    size: int,
) -> Float[Array, ""]:
    """`f(shared, x, targets, valid)`, a sum over the valid of the places `[n, k]`, taken `size` of each row at a time.

    Leaves of `x` and `targets` are `[n, k, ...]`; those of `shared` and `x`, which are floats, have gradients. A part
    without a valid place costs nothing, forward or backward. Since the gradient of a sum is known up to a factor it
    is found along with the value, so that nothing of a part is kept or computed twice; there is no second derivative.

    For CPUs: a branch taken by what was computed stops a GPU, and a TPU is idle in parts this small.
    """
    if short := -valid.shape[1] % size:  # of the last part
        x, targets, valid = jax.tree.map(
            lambda a: jnp.pad(a, [(0, 0), (0, short)] + [(0, 0)] * (a.ndim - 2)), (x, targets, valid)
        )

    def parts(*trees: PyTree) -> Any:
        return jax.tree.map(lambda a: jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0), trees)

    @jax.custom_vjp
    def total(shared: PyTree, x: PyTree, targets: PyTree, valid: Array) -> Array:
        def one(found: Array, part: Any) -> tuple[Array, None]:
            return jax.lax.cond(part[-1].any(), lambda: found + f(shared, *part), lambda: found), None

        return jax.lax.scan(one, jnp.float32(0), parts(x, targets, valid))[0]

    def forward(shared: PyTree, x: PyTree, targets: PyTree, valid: Array) -> tuple[Array, Any]:
        def one(sums: Any, part: Any) -> tuple[Any, PyTree]:
            def run() -> tuple[Any, PyTree]:
                found, (of_shared, of_part) = jax.value_and_grad(f, (0, 1))(shared, *part)
                return jax.tree.map(jnp.add, sums, (found, of_shared)), of_part

            return jax.lax.cond(part[-1].any(), run, lambda: (sums, jax.tree.map(jnp.zeros_like, part[0])))

        start = jnp.float32(0), jax.tree.map(jnp.zeros_like, shared)
        (found, of_shared), of_parts = jax.lax.scan(one, start, parts(x, targets, valid))
        of_x = jax.tree.map(lambda a, g: jnp.moveaxis(g, 0, 1).reshape(a.shape), x, of_parts)
        return found, (of_shared, of_x)

    def backward(slopes: Any, g: Array) -> tuple[PyTree, PyTree, None, None]:
        return *jax.tree.map(lambda a: (g * a).astype(a.dtype), slopes), None, None

    total.defvjp(forward, backward)
    return total(shared, x, targets, valid)
