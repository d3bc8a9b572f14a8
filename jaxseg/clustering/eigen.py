"""Smallest eigenpairs of (D - W) y = lambda D y on a pixel graph: LOBPCG with a multigrid preconditioner.

Knyazev 2001 for the block method; the hierarchy sums the graph over 2 x 2 cells, again and again; starts come
from the coarse graph's eigenvectors, and one cycle through the hierarchy preconditions each residual.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxseg.ops.affinity import Affinity, coarsen, laplacian_product

__all__ = ["Eigenpairs", "smallest_eigenpairs"]

HIGHEST = jax.lax.Precision.HIGHEST
SMOOTHING = 0.7
COARSEST = 6  # pixels on the shorter side
LEAST_ITERATIONS = 6  # on the image itself, for the fresh vectors to come down to their place
SOLVED_FROM = 400  # pixels: levels below this size only precondition


class Eigenpairs(NamedTuple):
    """Ascending, without the trivial pair (0, 1); y^T D y = 1. Residuals |D^-1/2 (A - lambda D) y|."""

    values: Float[Array, "k"]
    vectors: Float[Array, "k h w"]
    residuals: Float[Array, "k"]
    num_iterations: Int[Array, ""]


def _hierarchy(affinity: Affinity) -> list[Affinity]:
    levels = [affinity]
    while min(levels[-1].degree.shape) > COARSEST:
        levels.append(coarsen(levels[-1]))
    return levels


def _restrict(r: Float[Array, "m h w"]) -> Float[Array, "m ch cw"]:
    _, h, w = r.shape
    r = jnp.pad(r, ((0, 0), (0, h % 2), (0, w % 2)))
    return r[:, 0::2, 0::2] + r[:, 1::2, 0::2] + r[:, 0::2, 1::2] + r[:, 1::2, 1::2]


def _prolong(y: Float[Array, "m ch cw"], shape: tuple[int, ...]) -> Float[Array, "m h w"]:
    m, ch, cw = y.shape
    y = jnp.broadcast_to(y[:, :, None, :, None], (m, ch, 2, cw, 2)).reshape(m, 2 * ch, 2 * cw)
    return y[:, : shape[0], : shape[1]]


def _cycle(levels: list[Affinity], b: Float[Array, "m h w"], visits: int = 2) -> Float[Array, "m h w"]:
    """An approximate solution of (D - W) y = b: symmetric, so that LOBPCG may use it."""
    here = levels[0]
    step = SMOOTHING / jnp.maximum(here.diagonal, 1e-20) * (here.diagonal > 1e-12)

    def smooth(y):
        return y + step * (b - laplacian_product(here, y))

    if len(levels) == 1:
        return jax.lax.fori_loop(0, 8, lambda _, y: smooth(y), step * b)

    def visit(_, y):
        residual = b - laplacian_product(here, y)
        y = y + _prolong(_cycle(levels[1:], _restrict(residual), visits), here.degree.shape)
        return smooth(y)

    # a loop, so that the program is as long as the hierarchy and not as the number of visits
    return jax.lax.fori_loop(0, visits if len(levels) > 2 else 1, visit, step * b)


def _gram(x: Float[Array, "m h w"], y: Float[Array, "n h w"]) -> Float[Array, "m n"]:
    return jnp.einsum("mhw,nhw->mn", x, y, precision=HIGHEST)


def _combine(c: Float[Array, "m n"], x: Float[Array, "m h w"]) -> Float[Array, "n h w"]:
    return jnp.einsum("mn,mhw->nhw", c, x, precision=HIGHEST)


def _norms2(y: Float[Array, "m h w"], degree: Float[Array, "h w"]) -> Float[Array, "m 1 1"]:
    return jnp.sum(y * y * degree, axis=(1, 2), keepdims=True)


def _orthonormal(y: Array, against: Array, degree: Array) -> tuple[Array, Array]:
    """A basis with y^T D y = 1, orthogonal to `against`, from the Gram matrix's eigenvectors.

    Directions that `against` or the others already span come out as zero vectors; returns which do not.
    """
    y = y * jax.lax.rsqrt(jnp.maximum(_norms2(y, degree), 1e-36))
    for _ in range(2):  # twice is enough, unless next to nothing was left
        y = y - _combine(_gram(against * degree, y), against)
        left = _norms2(y, degree)
        y = jnp.where(left > 1e-9, y * jax.lax.rsqrt(jnp.maximum(left, 1e-9)), 0.0)
    values, c = jnp.linalg.eigh(_gram(y, y * degree))
    kept = values > 1e-5
    return _combine(c * jnp.where(kept, jax.lax.rsqrt(jnp.maximum(values, 1e-5)), 0.0), y), kept


def _residual_norms(r: Float[Array, "m h w"], degree: Float[Array, "h w"]) -> Float[Array, "m"]:
    return jnp.sqrt(jnp.sum(r * r / jnp.maximum(degree, 1e-20) * (degree > 0), axis=(1, 2)))


def _lobpcg(
    levels: list[Affinity],
    start: Float[Array, "m h w"],
    k: int,
    tolerance: Array,
    least: int,
    max_iterations: int,
) -> Eigenpairs:
    """The k smallest of the block's m pairs. All stays D-orthogonal to the trivial one."""
    graph = levels[0]
    degree = graph.degree
    m = start.shape[0]
    inside = (degree > 0).astype(degree.dtype)
    trivial = (inside / jnp.sqrt(jnp.sum(degree)))[None]

    def rayleigh_ritz(basis, image, kept):
        """The block's Ritz values, and coefficients; null vectors go above the spectrum's end, 2."""
        g = _gram(basis, image)
        values, c = jnp.linalg.eigh(0.5 * (g + g.T) + jnp.diag(jnp.where(kept, 0.0, 10.0)))
        return values[:m], c[:, :m]

    def residuals(x, ax, values):
        return ax - values[:, None, None] * x * degree

    def iterate(state):
        x, ax, p, values, _, step = state
        x_kept = _norms2(x, degree)[:, 0, 0] > 0.5
        basis = jnp.concatenate([trivial, x])
        w, w_kept = _orthonormal(_cycle(levels, residuals(x, ax, values)) * inside, basis, degree)
        basis = jnp.concatenate([basis, w])
        p, p_kept = _orthonormal(p, basis, degree)
        basis = jnp.concatenate([basis, p])[1:]
        image = jnp.concatenate([ax, laplacian_product(graph, basis[m:])])
        values, c = rayleigh_ritz(basis, image, jnp.concatenate([x_kept, w_kept, p_kept]))
        x, ax, p = _combine(c, basis), _combine(c, image), _combine(c[m:], basis[m:])
        return x, ax, p, values, _residual_norms(residuals(x, ax, values), degree), step + 1

    def unfinished(state):
        wanted = (jnp.max(state[4][:k]) > tolerance) | (state[5] < least)
        return wanted & (state[5] < max_iterations)

    x, kept = _orthonormal(start * inside, trivial, degree)
    ax = laplacian_product(graph, x)
    values, c = rayleigh_ritz(x, ax, kept)
    x, ax = _combine(c, x), _combine(c, ax)
    norms = _residual_norms(residuals(x, ax, values), degree)
    state = (x, ax, jnp.zeros_like(x), values, norms, jnp.int32(0))
    x, ax, _, values, norms, steps = jax.lax.while_loop(unfinished, iterate, state)
    return Eigenpairs(values, x, norms, steps)


def smallest_eigenpairs(
    affinity: Affinity,
    k: int,
    *,
    key: PRNGKeyArray,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
    guard: int = 6,
) -> Eigenpairs:
    """The k smallest non-trivial pairs, to residual `tolerance` or `max_iterations`, in a block of k + guard.

    A graph of fewer than k + 1 vertices with degree has the surplus vectors 0.
    """
    levels = _hierarchy(affinity)
    m = min(k + guard, affinity.degree.size)
    solved = [i for i, level in enumerate(levels) if i == 0 or level.degree.size >= SOLVED_FROM]
    y = jax.random.normal(key, (m, *levels[solved[-1]].degree.shape))
    for i in reversed(solved):
        graph = levels[i]
        if i != solved[-1]:
            # what a coarse graph cannot hold, such as a few pixels apart from the rest, enters here
            noise = jax.random.normal(jax.random.fold_in(key, i), (m - k, *graph.degree.shape))
            noise = _cycle(levels[i:], noise * jnp.sqrt(graph.degree))
            y = jnp.concatenate([_prolong(y, graph.degree.shape)[:k], noise])
        goal, least = (tolerance, LEAST_ITERATIONS) if i == 0 else (max(tolerance, 1e-4), 0)
        pairs = _lobpcg(levels[i:], y, k, jnp.float32(goal), least, max_iterations)
        y = pairs.vectors
    return Eigenpairs(pairs.values[:k], pairs.vectors[:k], pairs.residuals[:k], pairs.num_iterations)
