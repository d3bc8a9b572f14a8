"""What a cut of a pixel graph is worth (Shi & Malik 2000): cut, association, Ncut, where to split a vector."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from jaxseg.ops.affinity import Affinity, affinity_product, laplacian_product

__all__ = ["assoc", "cut", "is_stable", "ncut_value", "splitting_point"]


def cut(affinity: Affinity, a: Real[Array, "h w"] | Bool[Array, "h w"]) -> Float[Array, ""]:
    """Sum of w_ij over i in A and j not in A."""
    a = a.astype(affinity.degree.dtype)
    return jnp.sum(a * laplacian_product(affinity, a[None])[0])


def assoc(
    affinity: Affinity,
    a: Real[Array, "h w"] | Bool[Array, "h w"],
    b: Real[Array, "h w"] | Bool[Array, "h w"] | None = None,
) -> Float[Array, ""]:
    """Sum of w_ij over i in A and j in B; in V, all pixels, by default."""
    a = a.astype(affinity.degree.dtype)
    if b is None:
        return jnp.sum(a * affinity.degree)
    return jnp.sum(a * affinity_product(affinity, b.astype(a.dtype)[None])[0])


def ncut_value(affinity: Affinity, labels: Int[Array, "h w"], num_segments: int) -> Float[Array, ""]:
    """Sum over the segments that have pixels of cut(A, V - A) / assoc(A, V); differentiable."""

    def one(j):
        a = (labels == j).astype(affinity.degree.dtype)
        volume = assoc(affinity, a)
        return jnp.where(volume > 0, cut(affinity, a) / jnp.where(volume > 0, volume, 1.0), 0.0)

    return jnp.sum(jax.lax.map(one, jnp.arange(num_segments)))


def splitting_point(
    affinity: Affinity, y: Float[Array, "h w"], num_candidates: int = 32
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The threshold of least two-way Ncut among evenly spaced ones (section 2.1 of the paper), and that Ncut.

    Only pixels with edges or weight count: those outside a subgraph have degree 0.
    """
    inside = affinity.degree > 0
    low, high = jnp.min(jnp.where(inside, y, jnp.inf)), jnp.max(jnp.where(inside, y, -jnp.inf))
    even = low + (high - low) * (jnp.arange(num_candidates) + 0.5) / num_candidates
    volume = jnp.sum(affinity.degree)

    def value(t):
        a = ((y > t) & inside).astype(y.dtype)
        across, va = cut(affinity, a), jnp.sum(a * affinity.degree)
        both = (va > 0) & (va < volume)
        return jnp.where(both, across / jnp.maximum(va, 1e-20) + across / jnp.maximum(volume - va, 1e-20), jnp.inf)

    values = jax.lax.map(value, even)
    best = jnp.argmin(values)
    return even[best], values[best]


def is_stable(
    y: Float[Array, "h w"], inside: Bool[Array, "h w"], *, bins: int = 20, ratio: float = 0.06
) -> Bool[Array, ""]:
    """Whether an eigenvector splits its segment sharply: least over greatest histogram count at most `ratio`.

    Shi & Malik 2000, section 3: a vector that varies continuously fills all bins alike, and is not cut.
    """
    low, high = jnp.min(jnp.where(inside, y, jnp.inf)), jnp.max(jnp.where(inside, y, -jnp.inf))
    at = jnp.clip((bins * (y - low) / jnp.maximum(high - low, 1e-20)).astype(jnp.int32), 0, bins - 1)
    counts = jnp.zeros(bins).at[jnp.where(inside, at, 0)].add(inside.astype(jnp.float32))
    return (counts.min() <= ratio * counts.max()) & (high > low)
