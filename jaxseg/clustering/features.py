"""Pixels as feature vectors: colour, position, texture; and images of any kind as RGB in [0, 1]."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

__all__ = ["apply_filters", "as_rgb", "filter_bank", "pixel_features", "rgb_to_lab", "texture_responses"]


def as_rgb(image: Any) -> Float[Array, "h w 3"]:
    """RGB in [0, 1] from [H, W] or [H, W, 1..4]: grey is repeated, alpha laid on white, integers scaled.

    Raises:
      ValueError: another shape, an empty image, signed or complex numbers, NaN, floats outside [0, 1].
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or not 1 <= image.shape[-1] <= 4 or 0 in image.shape:
        raise ValueError(f"needs an image [H, W] or [H, W, 1..4] with pixels, got {tuple(image.shape)}")
    if image.dtype == bool:
        x = jnp.asarray(image, jnp.float32)
    elif jnp.issubdtype(image.dtype, jnp.unsignedinteger):
        x = jnp.asarray(image, jnp.float32) / float(np.iinfo(image.dtype).max)
    elif jnp.issubdtype(image.dtype, jnp.floating):
        x = jnp.asarray(image, jnp.float32)
        if not isinstance(x, jax.core.Tracer):
            if not bool(jnp.isfinite(x).all()):
                raise ValueError(f"needs a finite image, got {int((~jnp.isfinite(x)).sum())} NaN or infinite values")
            if float(x.min()) < 0 or float(x.max()) > 1:
                raise ValueError(
                    f"needs a float image in [0, 1], got {float(x.min()):.4g} to {float(x.max()):.4g}; "
                    "divide by the white level"
                )
    else:
        raise ValueError(f"needs an unsigned integer or float image, got {image.dtype}; convert to uint8 or uint16")
    channels = x.shape[-1]
    if channels in (2, 4):
        alpha = x[..., -1:]
        x = x[..., :-1] * alpha + 1 - alpha
    return jnp.broadcast_to(x, (*x.shape[:2], 3)) if channels <= 2 else x


def rgb_to_lab(rgb: Float[Array, "*hw 3"]) -> Float[Array, "*hw 3"]:
    """CIE L*a*b* (D65, 2 degrees) of sRGB in [0, 1]; L from 0 to 100."""
    linear = jnp.where(rgb <= 0.04045, rgb / 12.92, ((jnp.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4)
    to_xyz = jnp.array(
        [
            [0.412453, 0.357580, 0.180423],
            [0.212671, 0.715160, 0.072169],
            [0.019334, 0.119193, 0.950227],
        ]
    )
    white = jnp.array([0.95047, 1.0, 1.08883])
    t = jnp.einsum("...c,xc->...x", linear, to_xyz, precision=jax.lax.Precision.HIGHEST) / white
    f = jnp.where(t > 0.008856, jnp.cbrt(jnp.maximum(t, 0.008856)), 7.787 * t + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def filter_bank(scales: tuple[float, ...] = (1.0, 2.0), orientations: int = 6) -> Float[np.ndarray, "filters s s"]:
    """Pairs of even and odd elongated filters by scale and orientation, and a centre-surround one by scale.

    Malik et al. 2001: second and first derivatives of a Gaussian across, one three times as long along;
    zero mean, unit L1 norm.
    """
    reach = math.ceil(3 * 3 * max(scales) / 1.5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    filters = []
    for s in scales:
        for o in range(orientations):
            angle = math.pi * o / orientations
            across, along = (
                x * math.cos(angle) + y * math.sin(angle),
                -x * math.sin(angle) + y * math.cos(angle),
            )
            envelope = np.exp(-0.5 * (across / s) ** 2 - 0.5 * (along / (3 * s)) ** 2)
            filters += [envelope * ((across / s) ** 2 - 1), envelope * across]
        r2 = (x**2 + y**2) / s**2
        filters.append(np.exp(-0.5 * r2) * (r2 - 2))
    bank = np.stack(filters)
    bank -= bank.mean(axis=(1, 2), keepdims=True)
    return (bank / np.abs(bank).sum(axis=(1, 2), keepdims=True)).astype(np.float32)


def apply_filters(grey: Float[Array, "h w"], bank: Float[np.ndarray, "filters s s"]) -> Float[Array, "h w filters"]:
    """Correlation with each filter; edge values are repeated beyond the border."""
    r = bank.shape[-1] // 2
    padded = jnp.pad(grey, r, mode="edge")
    out = jax.lax.conv(
        padded[None, None], jnp.asarray(bank)[:, None], (1, 1), "VALID", precision=jax.lax.Precision.HIGHEST
    )
    return jnp.moveaxis(out[0], 0, -1)


def _luminance(rgb: Float[Array, "h w 3"]) -> Float[Array, "h w"]:
    return rgb @ jnp.array([0.299, 0.587, 0.114], rgb.dtype)


def texture_responses(rgb: Float[Array, "h w 3"]) -> Float[Array, "h w filters"]:
    """Responses of `filter_bank` to luminance; edge values are repeated beyond the border."""
    return apply_filters(_luminance(rgb), filter_bank())


def pixel_features(
    image: Real[Array, "*s"] | Real[np.ndarray, "*s"],
    *,
    space: str = "rgb",
    position_weight: float = 0.0,
    texture_weight: float = 0.0,
) -> Float[Array, "h w d"]:
    """Colour ("rgb", "lab" / 100, "grey"), if weighted: position / longer side, texture responses.

    Raises ValueError on what is no float RGB, which `as_rgb` makes of any image, and on an unknown space.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"pixel_features needs a float RGB image [H, W, 3] in [0, 1], got {image.dtype} {tuple(image.shape)}; "
            "jaxseg.clustering.features.as_rgb makes one"
        )
    image = jnp.asarray(image)
    h, w, _ = image.shape
    if space == "rgb":
        colour = image
    elif space == "lab":
        colour = rgb_to_lab(image) / 100
    elif space == "grey":
        colour = _luminance(image)[..., None]
    else:
        raise ValueError(f"pixel_features space is 'rgb', 'lab' or 'grey', got {space!r}")
    parts = [colour]
    if position_weight:
        y, x = jnp.mgrid[:h, :w].astype(image.dtype) / max(h, w)
        parts.append(position_weight * jnp.stack([y, x], axis=-1))
    if texture_weight:
        parts.append(texture_weight * texture_responses(image))
    return jnp.concatenate(parts, axis=-1)
