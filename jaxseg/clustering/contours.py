"""Contours of an image: where histograms of brightness, colour and texture change.

After Martin, Fowlkes & Malik 2004 (Pb), who compare the histograms of a disc's two halves by chi-squared at
every angle. Here the halves are the lobes of a Gaussian's first derivative: the difference of histograms at any
angle is then a combination of two, and chi-squared a quadratic form in the angle (Di Zenzo 1986).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxseg.clustering.features import apply_filters, filter_bank, rgb_to_lab

__all__ = [
    "contour_scale",
    "contour_strength",
    "contour_tensor",
    "cue_strength",
    "eigenvector_tensor",
    "histogram_tensor",
    "segmentation_strength",
    "strongest",
    "texture_shares",
    "thin",
]

LIGHTNESS_BINS = 10
COLOUR_BINS = 12
COLOUR_RANGE = 60.0  # a* and b* beyond are counted with the last bin
# by channel, scales (of `contour_scale`) and weights; brightness finest and texture coarsest, as in Martin et al. 2004
CUES = {
    "L": ((1 / 3, 0.10), (2 / 3, 0.15), (4 / 3, 0.07)),
    "a": ((2 / 3, 0.10), (4 / 3, 0.12)),
    "b": ((2 / 3, 0.10), (4 / 3, 0.12)),
    "texture": ((3.0, 0.60),),
}
SPECTRAL = 0.20


def contour_scale(height: int, width: int) -> float:
    """1.5 pixels for an image 240 long, and in proportion; at least 1."""
    return max(1.0, max(height, width) / 160)


def _soft_bins(x: Float[Array, "h w"], bins: int) -> Float[Array, "bins h w"]:
    """Membership of values in [0, 1] in evenly spaced bins, shared linearly between the nearest two."""
    at = jnp.clip(x, 0, 1) * (bins - 1)
    return jnp.maximum(0.0, 1 - jnp.abs(at - jnp.arange(bins)[:, None, None]))


def _along(x: Float[Array, "h w"], taps: Float[np.ndarray, "s"], axis: int) -> Float[Array, "h w"]:
    """Correlation with `taps` along an axis; edge values are repeated beyond the border."""
    reach = len(taps) // 2
    n = x.shape[axis]
    x = jnp.pad(x, [(reach, reach) if a == axis else (0, 0) for a in range(2)], mode="edge")
    x = jax.lax.optimization_barrier(x)  # computed once, and not again for every tap
    parts = [float(t) * jax.lax.slice_in_dim(x, i, i + n, axis=axis) for i, t in enumerate(taps)]
    return functools.reduce(jnp.add, parts)


def _derivatives(x: Float[Array, "h w"], scale: float) -> tuple[Array, Array, Array]:
    """x smoothed, and its derivatives by x and y as differences of lobes that each sum to 1/2."""
    reach = math.ceil(3 * scale)
    at = np.arange(-reach, reach + 1)
    smooth = np.exp(-0.5 * (at / scale) ** 2)
    slope = at * smooth / np.abs(at * smooth).sum()
    smooth = smooth / smooth.sum()
    down, across = _along(x, smooth, 0), _along(x, smooth, 1)
    return _along(down, smooth, 1), _along(down, slope, 1), _along(across, slope, 0)


def _form(dx: Float[Array, "h w"], dy: Float[Array, "h w"], weight: Array) -> Float[Array, "3 h w"]:
    return jnp.stack([dx * dx, dx * dy, dy * dy]) * weight


def histogram_tensor(memberships: Float[Array, "bins h w"], scale: float) -> Float[Array, "3 h w"]:
    """(xx, xy, yy) of the form whose value at a unit normal is the chi-squared distance across it, about [0, 1]."""

    def add(total, x):  # a bin at a time: a photograph's many bins need no memory together
        mean, dx, dy = _derivatives(x, scale)
        return total + _form(dx, dy, 1 / (mean + 1e-3)), None

    return jax.lax.scan(add, jnp.zeros((3, *memberships.shape[1:])), memberships)[0]


def strongest(tensor: Float[Array, "3 h w"]) -> tuple[Float[Array, "h w"], Float[Array, "2 h w"]]:
    """The square root of the form's largest value, and its unit normal (x, y)."""
    xx, xy, yy = tensor
    spread = jnp.hypot(0.5 * (xx - yy), xy)
    angle = 0.5 * jnp.arctan2(xy, 0.5 * (xx - yy))
    return jnp.sqrt(jnp.maximum(0.5 * (xx + yy) + spread, 0.0)), jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def thin(strength: Float[Array, "h w"], normal: Float[Array, "2 h w"]) -> Float[Array, "h w"]:
    """`strength` where it is a maximum along the normal (Canny 1986), 0 elsewhere."""
    h, w = strength.shape
    y, x = jnp.mgrid[:h, :w].astype(strength.dtype)
    longest = jnp.max(jnp.abs(normal), axis=0)  # to the edge of the 3 x 3 neighbourhood

    def beside(sign):
        at = [y + sign * normal[1] / longest, x + sign * normal[0] / longest]
        return jax.scipy.ndimage.map_coordinates(strength, at, order=1, mode="nearest")

    return jnp.where((strength >= beside(1.0)) & (strength > beside(-1.0)), strength, 0.0)


def _channels(rgb: Float[Array, "h w 3"]) -> dict[str, Float[Array, "bins h w"]]:
    """Memberships in bins of L*, a* and b*."""
    lab = rgb_to_lab(rgb)
    colour = {name: _soft_bins(lab[..., i] / (2 * COLOUR_RANGE) + 0.5, COLOUR_BINS) for i, name in ((1, "a"), (2, "b"))}
    return {"L": _soft_bins(lab[..., 0] / 100, LIGHTNESS_BINS), **colour}


def contour_tensor(rgb: Float[Array, "h w 3"], scale: float | None = None) -> Float[Array, "3 h w"]:
    """The mean of the forms of lightness, a* and b* at `scale` and 2 `scale` pixels; at most about 1."""
    scale = contour_scale(*rgb.shape[:2]) if scale is None else scale
    bins = jnp.concatenate(list(_channels(rgb).values()))
    return (histogram_tensor(bins, scale) + histogram_tensor(bins, 2 * scale)) / 6


def contour_strength(rgb: Float[Array, "h w 3"], scale: float | None = None) -> Float[Array, "h w"]:
    """Thinned contours of lightness and colour, from 0 to about 1; `scale` in pixels, or `contour_scale`."""
    return thin(*strongest(contour_tensor(rgb, scale)))


def eigenvector_tensor(values: Float[Array, "k"], vectors: Float[Array, "k h w"]) -> Float[Array, "3 h w"]:
    """The sum of squared derivatives of the eigenvectors of Normalized Cut, each over its eigenvalue.

    After Arbelaez et al. 2011, section 3.2 (sPb), who add absolute derivatives over sqrt(lambda).
    """

    def add(total, pair):
        value, y = pair
        _, dx, dy = _derivatives(y, 1.0)
        return total + _form(dx, dy, 1 / jnp.maximum(value, 1e-5)), None

    return jax.lax.scan(add, jnp.zeros((3, *vectors.shape[1:])), (values, vectors))[0]


def texture_shares(rgb: Float[Array, "h w 3"], scale: float = 1.0) -> Float[Array, "21 h w"]:
    """Shares, of sum 1, in a pixel's texture of the halves of `filter_bank`'s responses at `scale` pixels, and of none.

    In place of the textons of Malik et al. 2001, which need a clustering: lightness by filter, even responses
    above and below 0 apart, odd ones as magnitudes; a sum of 0.02 (of white) is half a texture.
    """
    responses = jnp.moveaxis(apply_filters(rgb_to_lab(rgb)[..., 0] / 100, filter_bank((scale,))), -1, 0)
    even, odd = jnp.concatenate([responses[0:-1:2], responses[-1:]]), responses[1:-1:2]
    halves = jnp.concatenate([jnp.maximum(even, 0), jnp.maximum(-even, 0), jnp.abs(odd)])
    none = jnp.full((1, *rgb.shape[:2]), 0.02, halves.dtype)
    return jnp.concatenate([halves, none]) / (jnp.sum(halves, axis=0) + none)


def cue_strength(rgb: Float[Array, "h w 3"], scale: float | None = None) -> Float[Array, "h w"]:
    """Contours of brightness, colour and texture at the scales and weights of `CUES`, not thinned; below 1.4."""
    scale = contour_scale(*rgb.shape[:2]) if scale is None else scale
    memberships = {**_channels(rgb), "texture": texture_shares(rgb, 2 / 3 * scale)}
    cues = [
        weight * strongest(histogram_tensor(memberships[name], times * scale))[0]
        for name, at in CUES.items()
        for times, weight in at
    ]
    return functools.reduce(jnp.add, cues)


def segmentation_strength(
    rgb: Float[Array, "h w 3"], values: Float[Array, "k"], vectors: Float[Array, "k h w"], scale: float | None = None
) -> Float[Array, "h w"]:
    """The image's own contours, `cue_strength`, and those of its eigenvectors, not thinned, from 0 to about 1.8.

    After Arbelaez et al. 2011, section 3.3 (gPb). Eigenvector contours are relative to their 98th percentile, at
    most twice that, and weigh `SPECTRAL`.
    """
    spectral = strongest(eigenvector_tensor(values, vectors))[0]
    spectral = jnp.minimum(spectral / jnp.maximum(jnp.percentile(spectral, 98), 1e-20), 2.0)
    return cue_strength(rgb, scale) + SPECTRAL * spectral
