"""Smallest eigenpairs of (D - W) y = lambda D y on a pixel graph: LOBPCG with a multigrid preconditioner.

Knyazev 2001 for the block method; the hierarchy sums the graph over 2 x 2 cells, again and again; starts come
from the eigenvectors of the graph of half the size, and one cycle through the hierarchy preconditions each residual.
"""

import functools
import itertools
from collections.abc import Callable
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


def _ramp_energy(affinity: Affinity) -> Float[Array, ""]:
    """y^T (D - W) y for y the row, and for y the column, together."""
    squared = jnp.array([dy * dy + dx * dx for dy, dx in affinity.offsets], affinity.weights.dtype)
    return jnp.sum(jnp.sum(affinity.weights, axis=(1, 2)) * squared)


def _corrections(levels: list[Affinity]) -> list[Float[Array, ""]]:
    """How much too stiff each coarser graph is, from 1 to about 2: its energy of a ramp over the finer one's.

    Piecewise constant vectors put a ramp's slope on the edges between cells alone. A coarse solution is too
    small by that much (Braess 1995).
    """
    energies = [_ramp_energy(level) for level in levels]
    scaled = [4 * coarse / jnp.where(fine > 0, fine, 1.0) for fine, coarse in itertools.pairwise(energies)]
    return [jnp.clip(x, 1.0, 2.0) for x in scaled]  # a cell is two pixels wide


def _cycle(
    levels: list[Affinity], corrections: list[Float[Array, ""]], b: Float[Array, "m h w"], visits: int = 2
) -> Float[Array, "m h w"]:
    """An approximate solution of (D - W) y = b."""
    here = levels[0]
    step = SMOOTHING / jnp.maximum(here.diagonal, 1e-20) * (here.diagonal > 1e-12)

    def smooth(y):
        return y + step * (b - laplacian_product(here, y))

    if len(levels) == 1:
        return jax.lax.fori_loop(0, 8, lambda _, y: smooth(y), step * b)

    def visit(_, y):
        residual = b - laplacian_product(here, y)
        coarse = _cycle(levels[1:], corrections[1:], _restrict(residual), visits)
        return smooth(y + corrections[0] * _prolong(coarse, here.degree.shape))

    # a loop, so that the program is as long as the hierarchy and not as the number of visits
    return jax.lax.fori_loop(0, visits if len(levels) > 2 else 1, visit, step * b)


def _image_cycle(
    levels: list[Affinity], corrections: list[Float[Array, ""]], b: Float[Array, "m h w"]
) -> Float[Array, "m h w"]:
    """`_cycle` with one product on the image itself, where it costs most: coarse, then smooth.

    Not symmetric, which the block method does without: it takes the best of what the vectors span.
    """
    if len(levels) == 1:
        return _cycle(levels, corrections, b)
    here = levels[0]
    step = SMOOTHING / jnp.maximum(here.diagonal, 1e-20) * (here.diagonal > 1e-12)
    y = corrections[0] * _prolong(_cycle(levels[1:], corrections[1:], _restrict(b)), here.degree.shape)
    return y + step * (b - laplacian_product(here, y))


def _entering(k: int, m: int) -> int:
    """How many vectors a step adds."""
    return min(-(-k // 4) * 4, m)


def _gram(x: Float[Array, "m h w"], y: Float[Array, "n h w"]) -> Float[Array, "m n"]:
    return jnp.einsum("mhw,nhw->mn", x, y, precision=HIGHEST)


def _combine(c: Float[Array, "m n"], x: Float[Array, "m h w"]) -> Float[Array, "n h w"]:
    return jnp.einsum("mn,mhw->nhw", c, x, precision=HIGHEST)


def _unit(y: Float[Array, "m h w"], degree: Float[Array, "h w"], least: float = 1e-36) -> Float[Array, "m h w"]:
    """y^T D y = 1; vectors of `least` or less become 0."""
    squared = jnp.sum(y * y * degree, axis=(1, 2), keepdims=True)
    return y * jnp.where(squared > least, jax.lax.rsqrt(jnp.maximum(squared, least)), 0.0)


def _residual_norms(r: Float[Array, "m h w"], degree: Float[Array, "h w"]) -> Float[Array, "m"]:
    return jnp.sqrt(jnp.sum(r * r / jnp.maximum(degree, 1e-20) * (degree > 0), axis=(1, 2)))


def _whiten(gram: Float[Array, "n n"], least: float = 1e-4) -> Float[Array, "n n"]:
    """s with s^T gram s = 1 on directions that are more than rounding, and 0 for the others."""
    values, turn = jnp.linalg.eigh(gram)
    return turn * jnp.where(values > least, jax.lax.rsqrt(jnp.maximum(values, least)), 0.0)


def _rayleigh_ritz(
    metric: Float[Array, "n n"], energy: Float[Array, "n n"], m: int
) -> tuple[Array, Float[Array, "n m"], Float[Array, "n m"]]:
    """The m least Ritz values, coefficients of their vectors, and of the conjugate directions.

    The first basis vector is the trivial one, then the m old vectors: Cholesky's triangular factor makes each
    orthogonal to those before, and so keeps the old, whose energy is least, apart from the others' rounding.
    Directions are what of the new vectors is not of the old, made orthogonal to the new (Hetmaniuk & Lehoucq
    2006): on the small coefficients, so that their images need no new product.
    """
    dot = functools.partial(jnp.matmul, precision=HIGHEST)
    null = (jnp.diag(metric) < 0.9).astype(metric.dtype)  # all have length 1, but what is left of rounding
    factor = jnp.linalg.cholesky(0.5 * (metric + metric.T) + jnp.diag(null))
    s = jax.scipy.linalg.solve_triangular(factor, jnp.eye(len(null)), lower=True)[1:].T
    energy = dot(s.T, dot(0.5 * (energy + energy.T), s)) + jnp.diag(3 * null[1:])  # the spectrum ends at 2
    values, c = jnp.linalg.eigh(energy)
    values, c = values[:m], c[:, :m]
    q = c.at[:m].set(0.0)
    for _ in range(2):
        q = q - dot(c, dot(c.T, q))
        q = q / jnp.maximum(jnp.linalg.norm(q, axis=0), 1e-12)
    return values, dot(s, c), dot(s, dot(q, _whiten(dot(q.T, q))))


def _lobpcg(
    levels: list[Affinity],
    precondition: Callable[[Array], Array],
    start: Float[Array, "m h w"],
    more: Float[Array, "a h w"],
    k: int,
    tolerance: Array,
    least: int,
    max_iterations: int,
) -> Eigenpairs:
    """The k smallest of the block's m pairs, every vector D-orthogonal to the trivial one.

    What enters at a step are preconditioned residuals, those of the first vectors that are not yet at `tolerance`,
    and at the start, before the first iteration, as many of `more` in their stead. Vectors and their images under
    D - W stay in two arrays with slots [trivial, x, directions p]: products with small matrices read and write
    these whole, and nothing is copied together.
    """
    graph = levels[0]
    degree = graph.degree
    m, entering = start.shape[0], more.shape[0]
    x, p = slice(1, m + 1), slice(m + 1, 2 * m + 1)
    inside = (degree > 0).astype(degree.dtype)
    trivial = inside / jnp.sqrt(jnp.sum(degree))

    def orthonormal(basis, y):
        """What of `y` is not in the span of `basis`; 0 where that is rounding."""
        outside = lambda y: y - _combine(_gram(basis, y * degree), basis)  # noqa: E731
        y = _unit(outside(_unit(y * inside, degree)), degree, 1e-9)  # less is rounding
        y = _combine(_whiten(_gram(y, y * degree)), y)
        return _unit(outside(y), degree, 0.5)  # what shrinks a second time was rounding too

    def enter(basis, image, y):
        """A Rayleigh-Ritz step on what is there and `y`."""
        y = orthonormal(basis, y)
        z = laplacian_product(graph, y)

        def grams(old, new):
            across = _gram(new, basis)
            return jnp.block([[_gram(basis, old), across.T], [across, _gram(new, y)]])

        metric, energy = grams(basis * degree, y * degree), grams(image, z)
        values, c, q = _rayleigh_ritz(metric, energy, m)
        n = basis.shape[0]
        whole = jnp.zeros((n + entering, n)).at[0, 0].set(1.0).at[:, x].set(c).at[:, p].set(q)
        # of vectors that float32 cannot tell apart the step is not taken, and the directions, the cause, are dropped
        told = jnp.isfinite(values).all()
        whole = jnp.where(told, whole, jnp.eye(n + entering, n).at[:, p].set(0.0))
        values = jnp.where(told, values, jnp.diagonal(energy)[x])
        basis = _combine(whole[:n], basis) + _combine(whole[n:], y)
        image = _combine(whole[:n], image) + _combine(whole[n:], z)
        residuals = image[x] - values[:, None, None] * basis[x] * degree
        return basis, image, values, _residual_norms(residuals, degree)

    def iterate(state):
        basis, image, values, norms, step = state
        first = jnp.argsort(norms <= tolerance, stable=True)[:entering]
        residuals = image[first + 1] - values[first, None, None] * basis[first + 1] * degree
        return *enter(basis, image, precondition(jnp.where(step < 0, more, residuals))), step + 1

    def unfinished(state):
        *_, norms, step = state
        return ((jnp.max(norms[:k]) > tolerance) | (step < least)) & (step < max_iterations)

    basis = jnp.zeros((2 * m + 1, *degree.shape)).at[0].set(trivial)
    start = orthonormal(basis, start)
    image = jnp.zeros_like(basis).at[x].set(laplacian_product(graph, start))
    # the start is a turn of the same loop: a second copy of its body is as much again to compile
    unknown = jnp.full(m, jnp.inf)
    state = basis.at[x].set(start), image, jnp.zeros(m), unknown, jnp.int32(-1)
    basis, _, values, norms, steps = jax.lax.while_loop(unfinished, iterate, state)
    return Eigenpairs(values, basis[x], norms, steps)


@functools.partial(jax.jit, static_argnames=("k", "m", "max_iterations"))
def _start(
    affinity: Affinity, key: PRNGKeyArray, tolerance: Float[Array, ""], *, k: int, m: int, max_iterations: int
) -> tuple[list[Affinity], Float[Array, "m h w"]]:
    """The hierarchy, and the eigenvectors of the graph of half the size on the image; noise where that is small."""
    levels = _hierarchy(affinity)
    coarse = levels[1:]
    if not coarse:
        return levels, jax.random.normal(key, (m, *affinity.degree.shape))
    y = jax.random.normal(key, (m, *coarse[0].degree.shape))
    nothing = jnp.zeros((_entering(k, m), *coarse[0].degree.shape))
    precondition = functools.partial(_cycle, coarse, _corrections(coarse))
    y = _lobpcg(coarse, precondition, y, nothing, k, tolerance, 0, max_iterations).vectors
    return levels, _prolong(y, affinity.degree.shape)


@functools.partial(jax.jit, static_argnames=("k", "max_iterations"))
def _refine(
    levels: list[Affinity],
    start: Float[Array, "m h w"],
    key: PRNGKeyArray,
    tolerance: Float[Array, ""],
    *,
    k: int,
    max_iterations: int,
) -> Eigenpairs:
    degree = levels[0].degree
    # what a coarse graph cannot hold, such as a few pixels apart from the rest, enters here
    noise = jax.random.normal(jax.random.fold_in(key, 0), (_entering(k, len(start)), *degree.shape)) * jnp.sqrt(degree)
    precondition = functools.partial(_image_cycle, levels, _corrections(levels))
    pairs = _lobpcg(levels, precondition, start, noise, k, tolerance, LEAST_ITERATIONS, max_iterations)
    # signs are free: those of the products with a random image, so that rounding does not choose
    against = jax.random.normal(jax.random.fold_in(key, 1), degree.shape)
    sign = jnp.where(jnp.sum(pairs.vectors * against, axis=(1, 2)) < 0, -1.0, 1.0)
    pairs = pairs._replace(vectors=pairs.vectors * sign[:, None, None])
    return Eigenpairs(pairs.values[:k], pairs.vectors[:k], pairs.residuals[:k], pairs.num_iterations)


def smallest_eigenpairs(
    affinity: Affinity,
    k: int,
    *,
    key: PRNGKeyArray,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
    guard: int = 4,
) -> Eigenpairs:
    """The k smallest non-trivial pairs, to residual `tolerance` or `max_iterations`, in a block of k + guard or more.

    A graph of fewer than k + 1 vertices with degree has the surplus vectors 0. Two compiled programs unless
    under `jit`: to compile them as one takes the memory of both.
    """
    if not 1 <= k <= max(1, affinity.degree.size - 1):
        raise ValueError(f"smallest_eigenpairs needs k from 1 to pixels - 1 = {affinity.degree.size - 1}, got {k}")
    m = min(-(-(k + guard) // 4) * 4, affinity.degree.size)  # XLA's CPU code for 13 vectors is as slow as for 24
    enough = jnp.float32(max(tolerance, 1e-4))  # the image's own iterations do the rest
    levels, start = _start(affinity, key, enough, k=k, m=m, max_iterations=max_iterations)
    return _refine(levels, start, key, jnp.float32(tolerance), k=k, max_iterations=max_iterations)
