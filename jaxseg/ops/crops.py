"""Boxes cut out of an image and warped to a square, with some of what lies around them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["warp_crops"]


def _lines(start: Array, stop: Array, size: int, length: int, limit: Array) -> Array:
    """Bilinear weights `[..., size, length]` of `size` samples between `start` and `stop`; none beyond `limit`."""
    at = start[..., None] + (jnp.arange(size) + 0.5) * ((stop - start)[..., None] / size) - 0.5
    inside = (at >= -0.5) & (at <= limit[..., None] - 0.5)
    at = jnp.clip(at, 0, jnp.maximum(limit[..., None] - 1, 0))
    near = jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(length)), 0)
    return jnp.where(inside[..., None], near, 0)


def warp_crops(
    images: Float[Array, "n h w c"],
    boxes: Float[Array, "n k 4"],
    size: int,
    *,
    padding: int = 16,
    sizes: Int[Array, "n 2"] | None = None,
) -> Float[Array, "n k size size c"]:
    """Each box warped to `size` x `size`, whatever its aspect, `padding` pixels of it around it (R-CNN's crops).

    Girshick et al. 2014, appendix A: the box grows so that after warping its surroundings are `padding` pixels wide;
    what lies outside the image is the mean, which is 0 in a normalised one. Bilinear, without antialiasing, as R-CNN's
    code. `sizes` (h, w) are those of the images on their canvas. Raises ValueError where the padding leaves nothing.
    """
    if not 0 <= 2 * padding < size:
        raise ValueError(
            f"warp_crops needs 0 <= 2 padding < size, got padding={padding}, size={size}; R-CNN has 16 of 224"
        )
    n, h, w, _ = images.shape
    limits = jnp.broadcast_to(jnp.array([h, w]), (n, 2)) if sizes is None else sizes
    boxes = boxes.astype(jnp.float32)
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    half *= size / (size - 2 * padding)
    (x0, y0), (x1, y1) = (jnp.moveaxis(corner, -1, 0) for corner in (centre - half, centre + half))
    rows = _lines(y0, y1, size, h, limits[:, :1]).astype(images.dtype)
    columns = _lines(x0, x1, size, w, limits[:, 1:]).astype(images.dtype)
    highest = jax.lax.Precision.HIGHEST
    lines = jnp.einsum("nkph,nhwc->nkpwc", rows, images, precision=highest)
    return jnp.einsum("nkqw,nkpwc->nkpqc", columns, lines, precision=highest)
