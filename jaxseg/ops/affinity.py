"""The pixel graph of Shi & Malik 2000 as a stencil: every pixel a vertex, edges within a radius.

No matrix: an edge weight is stored once, at the earlier of its pixels in raster order, in one plane per
offset; products with W, D - W and D are sums of shifted planes.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = [
    "Affinity",
    "affinity_product",
    "coarsen",
    "degrees",
    "half_offsets",
    "laplacian_product",
    "pixel_affinity",
    "subgraph",
]


LOOPED = 4  # vectors a step of a product with many


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weights", "degree", "diagonal"], meta_fields=["offsets"]
)
@dataclass(frozen=True)
class Affinity:
    """Edge weights by offset, zero where an edge would leave the image.

    `weights[o, y, x]`, with margins of `reach` above and at both sides, joins (y, x) to (y, x) + offsets[o].
    `degree` is D, the row sums of W with its diagonal; `diagonal` is that of D - W.
    """

    weights: Array  # [offsets, h + reach, w + 2 reach]
    degree: Array  # [h, w]
    diagonal: Array  # [h, w]
    offsets: tuple[tuple[int, int], ...]

    @property
    def reach(self) -> int:
        return reach(self.offsets)


def reach(offsets: tuple[tuple[int, int], ...]) -> int:
    """The largest row or column distance of an edge."""
    return max((max(abs(dy), abs(dx)) for dy, dx in offsets), default=0)


def half_offsets(radius: float) -> tuple[tuple[int, int], ...]:
    """Offsets (dy, dx) after (0, 0) in raster order with length below `radius` (as in the paper)."""
    m = math.ceil(radius)
    square = ((dy, dx) for dy in range(m + 1) for dx in range(-m, m + 1))
    return tuple((dy, dx) for dy, dx in square if (dy, dx) > (0, 0) and dy * dy + dx * dx < radius * radius)


def _shift(x: Float[Array, "*c h w"], dy: int, dx: int, fill: float = 0.0) -> Float[Array, "*c h w"]:
    """x at (y + dy, x + dx)."""
    h, w = x.shape[-2:]
    pad = [(0, 0)] * (x.ndim - 2) + [(max(-dy, 0), max(dy, 0)), (max(-dx, 0), max(dx, 0))]
    x = jnp.pad(x, pad, constant_values=fill)
    return x[..., max(dy, 0) : max(dy, 0) + h, max(dx, 0) : max(dx, 0) + w]


def _assemble(planes: Array | list[Array], offsets: tuple[tuple[int, int], ...], self_weight: Array) -> Affinity:
    r = reach(offsets)
    h, w = self_weight.shape
    weights = jnp.stack(planes) if offsets else jnp.zeros((0, h, w), self_weight.dtype)
    # slices of what is padded once: a pad for each shift is much more code to compile
    weights = jax.lax.optimization_barrier(jnp.pad(weights, ((0, 0), (r, 0), (r, r))))
    diagonal = jnp.zeros_like(self_weight)
    for plane, (dy, dx) in zip(weights, offsets, strict=True):
        diagonal = diagonal + plane[r : r + h, r : r + w] + plane[r - dy : r - dy + h, r - dx : r - dx + w]
    return Affinity(weights, diagonal + self_weight, diagonal, offsets)


def _line(dy: int, dx: int) -> list[tuple[int, int]]:
    """The pixels on the straight line from (0, 0) to (dy, dx), ends included."""
    steps = max(abs(dy), abs(dx))
    return sorted({(round(t * dy / steps), round(t * dx / steps)) for t in range(steps + 1)})


@functools.partial(jax.jit, static_argnames=("radius", "self_loops"))
def pixel_affinity(
    features: Float[Array, "h w c"],
    *,
    radius: float = 5.0,
    sigma_feature: float | Float[Array, ""] = 0.1,
    sigma_distance: float | Float[Array, ""] = 4.0,
    contour: Float[Array, "h w"] | None = None,
    sigma_contour: float | Float[Array, ""] = 0.1,
    self_loops: bool = True,
) -> Affinity:
    """w_ij = exp(-|F_i - F_j|^2 / sigma_feature^2 - |X_i - X_j|^2 / sigma_distance^2), |X_i - X_j| < radius.

    Shi & Malik 2000, eq. 11 (features: brightness, colour or filter responses; X in pixels). With `contour`,
    the factor exp(-max / sigma_contour) for the strongest contour between i and j (Leung & Malik 1998).
    `self_loops` keeps w_ii = 1, as the formula has it; it counts in D and in no cut.
    """
    h, w, _ = features.shape
    channels = jnp.moveaxis(features, -1, 0)
    offsets = tuple(o for o in half_offsets(radius) if o[0] < h and abs(o[1]) < w)
    rows, columns = jnp.arange(h)[:, None], jnp.arange(w)[None]
    r = reach(offsets)

    def shifted(x):
        """x at (y + dy, x + dx), as slices of one padded array."""
        x = jax.lax.optimization_barrier(jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, r), (r, r)]))
        origin = [0] * (x.ndim - 2)
        return lambda dy, dx: jax.lax.dynamic_slice(x, [*origin, dy, r + dx], (*x.shape[:-2], h, w))

    others = shifted(channels)
    contours = None if contour is None else shifted(contour)

    def plane(edge):
        offset, line = edge
        dy, dx = offset
        exponent = jnp.sum((channels - others(dy, dx)) ** 2, axis=0) / sigma_feature**2
        exponent = exponent + (dy * dy + dx * dx) / sigma_distance**2
        if contours is not None:
            strongest = functools.reduce(jnp.maximum, [contours(*at) for at in line])
            exponent = exponent + strongest / sigma_contour
        inside = (rows + dy < h) & (columns + dx >= 0) & (columns + dx < w)
        return jnp.where(inside, jnp.exp(-exponent), 0.0)

    self_weight = jnp.full((h, w), 1.0 if self_loops else 0.0, features.dtype)
    if not offsets:
        return _assemble([], offsets, self_weight)
    lines = [_line(*o) for o in offsets]
    longest = max(map(len, lines))  # the shorter ones look at an end again
    lines = [line + line[-1:] * (longest - len(line)) for line in lines]
    # a loop: written out, each edge of a pixel is code to compile, which takes more memory than the graph
    planes = jax.lax.map(plane, (jnp.array(offsets), jnp.array(lines)))
    return _assemble(planes, offsets, self_weight)


def _terms(affinity: Affinity, y: Float[Array, "m h w"]):
    """Pairs of (edge weight at each pixel, the value at the edge's other end), for both directions."""
    r = affinity.reach
    h, w = affinity.degree.shape
    y = jax.lax.optimization_barrier(y)
    # without the barrier XLA's CPU backend fuses, and so computes anew, y's own expression into every shift
    padded = jax.lax.optimization_barrier(jnp.pad(y, ((0, 0), (r, r), (r, r))))
    for weight, (dy, dx) in zip(affinity.weights, affinity.offsets, strict=True):
        yield weight[r : r + h, r : r + w], padded[:, r + dy : r + dy + h, r + dx : r + dx + w]
        yield (
            weight[r - dy : r - dy + h, r - dx : r - dx + w],
            padded[:, r - dy : r - dy + h, r - dx : r - dx + w],
        )


def affinity_product(affinity: Affinity, y: Float[Array, "m h w"]) -> Float[Array, "m h w"]:
    """W y."""
    return sum((w * x for w, x in _terms(affinity, y)), (affinity.degree - affinity.diagonal) * y)


def laplacian_product(affinity: Affinity, y: Float[Array, "m h w"]) -> Float[Array, "m h w"]:
    """(D - W) y, as sums of w_ij (y_i - y_j): smooth y cancel before float32 rounds, not after."""

    def product(y):
        return sum((w * (y - x) for w, x in _terms(affinity, y)), jnp.zeros_like(y))

    m, h, w = y.shape
    if m <= LOOPED or m % LOOPED:
        return jax.lax.optimization_barrier(product(y))
    # a loop, since XLA's CPU backend may fuse a product into each of its uses, and compute it for each
    return jax.lax.map(product, y.reshape(m // LOOPED, LOOPED, h, w)).reshape(m, h, w)


def degrees(affinity: Affinity) -> Float[Array, "h w"]:
    """The diagonal of D."""
    return affinity.degree


def subgraph(affinity: Affinity, inside: Float[Array, "h w"]) -> Affinity:
    """The graph induced on the pixels where `inside` is 1; the others lose all edges and have degree 0."""
    r = affinity.reach
    w = inside.shape[1]
    planes = [
        plane[r:, r : r + w] * inside * _shift(inside, dy, dx)
        for plane, (dy, dx) in zip(affinity.weights, affinity.offsets, strict=True)
    ]
    return _assemble(planes, affinity.offsets, (affinity.degree - affinity.diagonal) * inside)


def coarsen(affinity: Affinity) -> Affinity:
    """The graph on 2 x 2 cells: weights and degrees summed (P^T W P, P piecewise constant)."""
    r = affinity.reach
    h, w = affinity.degree.shape
    ch, cw = -(-h // 2), -(-w // 2)

    def even(x):
        return jnp.pad(x, ((0, 2 * ch - h), (0, 2 * cw - w)))

    degree, self_weight = (
        even(x).reshape(ch, 2, cw, 2).sum(axis=(1, 3)) for x in (affinity.degree, affinity.degree - affinity.diagonal)
    )
    cells = jnp.pad(affinity.weights[:, r:, r : r + w], ((0, 0), (0, 2 * ch - h), (0, 2 * cw - w)))
    cells = cells.reshape(-1, ch, 2, cw, 2).transpose(0, 2, 4, 1, 3).reshape(-1, ch, cw)
    joins = [((py + dy) // 2, (px + dx) // 2) for dy, dx in affinity.offsets for py in (0, 1) for px in (0, 1)]
    # the earlier cell in raster order keeps an edge: where that is the one to the left, `cells` has it at the other
    back = [max(-dx, 0) if dy == 0 else 0 for dy, dx in joins]
    joins = [(0, abs(dx)) if dy == 0 else (dy, dx) for dy, dx in joins]
    offsets = tuple(sorted(set(joins) - {(0, 0)}))
    slots = [0 if at == (0, 0) else 1 + offsets.index(at) for at in joins]  # the first: edges within a cell

    def add(total, edge):
        part, slot, back = edge
        return total.at[slot].add(jax.lax.dynamic_slice(part, (0, back), (ch, cw))), None

    # a loop, as in `pixel_affinity`
    cells = jnp.pad(cells, ((0, 0), (0, 0), (0, max(back, default=0))))
    total = jnp.zeros((1 + len(offsets), ch, cw), cells.dtype)
    total = jax.lax.scan(add, total, (cells, jnp.array(slots, jnp.int32), jnp.array(back, jnp.int32)))[0]
    coarse = _assemble(total[1:], offsets, self_weight + 2 * total[0])
    return Affinity(coarse.weights, degree, coarse.diagonal, offsets)
