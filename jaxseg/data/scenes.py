"""Textured shapes on textured backgrounds: a small world with labels, instances and a class vector.

Neither colour nor texture gives a shape's class away; later shapes hide earlier ones. Pictures are the same
bytes on every machine: random numbers are raw Philox words, and arithmetic is elementwise + - * / and sqrt in
float64, which IEEE 754 rounds exactly (no sin, no exp, no sums whose order a CPU may choose).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from jaxseg.data.source import voc_palette

__all__ = ["CLASS_NAMES", "PALETTE", "Scene", "draw", "instance_boxes"]

CLASS_NAMES = ("background", "disc", "ring", "square", "triangle", "star", "cross")
PALETTE = voc_palette(len(CLASS_NAMES))

_Field = np.ndarray  # float64 [h, w]


class Scene(NamedTuple):
    """One picture and its truth.

    `instances` are 1..K in the order of drawing and 0 in the background; instance k has class `classes[k-1]`
    and, of what is visible, the box `boxes[k-1]` (XYXY in pixels, right and bottom edge outside). Shapes that
    are quite hidden have no id. `class_vector[c]` is 1 if class c has a pixel.
    """

    image: UInt8[np.ndarray, "h w 3"]
    label: Int32[np.ndarray, "h w"]
    instances: Int32[np.ndarray, "h w"]
    classes: Int32[np.ndarray, "k"]
    boxes: Float32[np.ndarray, "k 4"]
    class_vector: Float32[np.ndarray, "c"]


class _Random:
    """Uniform numbers from raw Philox words, whose stream NumPy promises to keep."""

    def __init__(self, seed: int, index: int):
        self._philox = np.random.Philox(key=np.array([seed, index], np.uint64))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * (int(self._philox.random_raw()) >> 11) * 2.0**-53

    def below(self, n: int) -> int:
        return int(self.uniform() * n)

    def field(self, *shape: int) -> np.ndarray:
        return (self._philox.random_raw(math.prod(shape)) >> np.uint64(11)).reshape(shape) * 2.0**-53

    def direction(self) -> tuple[float, float]:
        """A unit vector, by the rational circle: cos and sin may differ between machines, these cannot."""
        t = self.uniform(-1.0, 1.0)
        sign = 1.0 if self.below(2) else -1.0
        return sign * (1 - t * t) / (1 + t * t), sign * 2 * t / (1 + t * t)


# Signed distance in pixels to the outline of a shape of circumradius r, negative inside. A box or polygon's
# distance is that to the nearest of its lines: exact along the edges, short around the corners.
_PENTAGON = (  # unit normals, 72 degrees apart
    (0.0, 1.0),
    (0.9510565162951535, 0.30901699437494745),
    (0.5877852522924731, -0.8090169943749475),
    (-0.5877852522924731, -0.8090169943749475),
    (-0.9510565162951535, 0.30901699437494745),
)
_SIN60 = 0.8660254037844386


def _box(x: _Field, y: _Field, a: float, b: float) -> _Field:
    return np.maximum(np.abs(x) - a, np.abs(y) - b)


def _disc(x: _Field, y: _Field, r: float) -> _Field:
    return np.sqrt(x * x + y * y) - 0.9 * r


def _ring(x: _Field, y: _Field, r: float) -> _Field:
    return np.abs(np.sqrt(x * x + y * y) - 0.7 * r) - 0.24 * r


def _square(x: _Field, y: _Field, r: float) -> _Field:
    return _box(x, y, 0.75 * r, 0.75 * r)


def _triangle(x: _Field, y: _Field, r: float) -> _Field:
    x, y = x / 1.1, y / 1.1
    return np.maximum(np.maximum(_SIN60 * x - 0.5 * y, -_SIN60 * x - 0.5 * y), y) - 0.5 * r


def _star(x: _Field, y: _Field, r: float) -> _Field:
    # a pentagram is where at most one of the five lines is crossed: the second largest distance decides
    first = second = np.full(x.shape, -np.inf)
    for nx, ny in _PENTAGON:
        distance = nx * x + ny * y
        second = np.maximum(second, np.minimum(first, distance))
        first = np.maximum(first, distance)
    return second - 0.36 * r


def _cross(x: _Field, y: _Field, r: float) -> _Field:
    return np.minimum(_box(x, y, 0.95 * r, 0.3 * r), _box(x, y, 0.3 * r, 0.95 * r))


_OUTLINES: tuple[Callable[[_Field, _Field, float], _Field], ...] = (  # in the order of CLASS_NAMES[1:]
    _disc,
    _ring,
    _square,
    _triangle,
    _star,
    _cross,
)


def _smooth(x: _Field) -> _Field:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _wave(x: _Field) -> _Field:
    """A wave of period 1 between 0 and 1, by a smoothed triangle."""
    return _smooth(1.6 * np.abs(2.0 * (x - np.floor(x)) - 1.0) - 0.3)


def _clouds(random: _Random, x: _Field, y: _Field, cell: float) -> _Field:
    """Value noise: random values on a lattice of `cell` pixels, smoothly interpolated."""
    lattice = random.field(8, 8)
    u, v = x / cell, y / cell
    fu, fv = np.floor(u), np.floor(v)
    i, j = fu.astype(np.int64) % 8, fv.astype(np.int64) % 8
    u, v = _smooth(u - fu), _smooth(v - fv)
    near = lattice[j, i] * (1 - u) + lattice[j, (i + 1) % 8] * u
    far = lattice[(j + 1) % 8, i] * (1 - u) + lattice[(j + 1) % 8, (i + 1) % 8] * u
    return near * (1 - v) + far * v


def _texture(random: _Random, x: _Field, y: _Field, scale: float) -> _Field:
    """How much of the second colour, 0..1, in one of five patterns of about `scale` pixels."""
    cos, sin = random.direction()
    u, v = (cos * x + sin * y) / scale, (cos * y - sin * x) / scale
    kind = random.below(5)
    if kind == 0:
        return _wave(u)  # stripes
    if kind == 1:
        a, b = _wave(u / 1.5), _wave(v / 1.5)  # checks
        return a * (1 - b) + b * (1 - a)
    if kind == 2:
        du, dv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5  # dots
        return _smooth(3.0 - 8.0 * np.sqrt(du * du + dv * dv))
    if kind == 3:
        return _clouds(random, x, y, 1.5 * scale)
    return _smooth(0.5 + u / 16.0)  # a soft gradient


def _colour(random: _Random, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    hue, s, v = random.uniform(0.0, 6.0), random.uniform(*saturation), random.uniform(*value)
    ramp = [min(max(abs((hue + shift) % 6.0 - 3.0) - 1.0, 0.0), 1.0) for shift in (0.0, 4.0, 2.0)]
    return np.array([v * (1.0 - s * (1.0 - c)) for c in ramp])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return max(abs(float(x) - float(y)) for x, y in zip(a, b, strict=True))


def _shade(image: np.ndarray, colour: np.ndarray, coverage: _Field) -> None:
    image += (colour - image) * coverage[..., None]


def _draw_shape(
    random: _Random, outline: Callable, image: np.ndarray, y: _Field, x: _Field, ground: np.ndarray
) -> np.ndarray:
    """Paints one shape over `image` [h, w, 3] in place; returns where it lies, bool `[h, w]`."""
    h, w = y.size, x.size
    side = min(h, w)
    r = side * random.uniform(0.12, 0.27)
    cx, cy = w * random.uniform(0.08, 0.92), h * random.uniform(0.08, 0.92)
    stretch = random.uniform(0.85, 1.18)
    cos, sin = random.direction()
    colour = _colour(random, (0.35, 0.9), (0.35, 1.0))
    while _distance(colour, ground) < 0.3:
        colour = _colour(random, (0.35, 0.9), (0.35, 1.0))
    other = _colour(random, (0.2, 0.9), (0.3, 1.0))
    while not 0.2 < _distance(other, colour) < 0.6:
        other = _colour(random, (0.2, 0.9), (0.3, 1.0))
    scale = side * random.uniform(0.045, 0.1)

    reach = 1.25 * r + 6.0
    rows = slice(max(0, int(cy - reach)), min(h, int(cy + reach) + 1))
    cols = slice(max(0, int(cx - reach)), min(w, int(cx + reach) + 1))
    dx, dy = np.broadcast_arrays(x[:, cols] - cx, y[rows] - cy)
    u, v = (cos * dx + sin * dy) / stretch, (cos * dy - sin * dx) * stretch
    distance = outline(u, v, r)
    patch = image[rows, cols]
    patch *= 1.0 - 0.35 * _smooth(1.0 - distance / (0.04 * side))[..., None]  # a soft shadow around it
    body = colour + (other - colour) * _texture(random, dx, dy, scale)[..., None]
    # the light falls from above, and the rim is a little darker
    body *= (1.0 - 0.12 * dy / r - 0.25 * _smooth(1.0 + distance / (0.02 * side)))[..., None]
    _shade(patch, body, np.clip(0.5 - distance, 0.0, 1.0))
    inside = np.zeros((h, w), bool)
    inside[rows, cols] = distance < 0.0
    return inside


def draw(seed: int, index: int, size: tuple[int, int] = (128, 128)) -> Scene:
    """Draws picture `index` of the world `seed` at `size` (h, w): 2 to 6 shapes; a pure function."""
    random = _Random(seed, index)
    h, w = size
    side = min(h, w)
    y, x = np.arange(h)[:, None] + 0.5, np.arange(w)[None, :] + 0.5
    ground = _colour(random, (0.1, 0.5), (0.3, 0.85))
    other = _colour(random, (0.1, 0.5), (0.3, 0.85))
    while not 0.05 < _distance(ground, other) < 0.25:
        other = _colour(random, (0.1, 0.5), (0.3, 0.85))
    full_x, full_y = (np.ascontiguousarray(a) for a in np.broadcast_arrays(x, y))
    blend = _texture(random, full_x, full_y, side * random.uniform(0.06, 0.2))
    image = ground + (other - ground) * blend[..., None]

    kinds = [random.below(len(_OUTLINES)) for _ in range(2 + random.below(5))]
    drawn = np.zeros(size, np.int32)
    for k, kind in enumerate(kinds, start=1):
        drawn[_draw_shape(random, _OUTLINES[kind], image, y, x, (ground + other) / 2)] = k

    cos, sin = random.direction()
    light = 1.0 + random.uniform(0.0, 0.25) * (cos * (x / w - 0.5) + sin * (y / h - 0.5))
    grain = random.uniform(0.01, 0.05)
    image = image * light[..., None] + grain * (random.field(h, w, 3) - 0.5)
    pixels = np.floor(np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)

    visible = np.unique(drawn[drawn > 0])
    renumber = np.zeros(len(kinds) + 1, np.int32)
    renumber[visible] = np.arange(1, len(visible) + 1)
    classes = np.array([kinds[k - 1] + 1 for k in visible], np.int32)
    instances = renumber[drawn]
    label = np.concatenate([np.zeros(1, np.int32), classes])[instances]
    vector = np.zeros(len(CLASS_NAMES), np.float32)
    vector[label.ravel()] = 1.0
    return Scene(pixels, label, instances, classes, instance_boxes(instances), vector)


def instance_boxes(instances: Int32[np.ndarray, "h w"]) -> Float32[np.ndarray, "k 4"]:
    """Boxes XYXY of instance ids 1..K, in pixels; the right and bottom edges lie outside the last pixel."""
    boxes = np.zeros((int(instances.max(initial=0)), 4), np.float32)
    for k in range(len(boxes)):
        rows, cols = np.nonzero(instances == k + 1)
        if rows.size:
            boxes[k] = cols.min(), rows.min(), cols.max() + 1, rows.max() + 1
    return boxes
