"""Boxes XYXY in pixels: coding against reference boxes, overlap, clipping. Float32 arithmetic throughout."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

__all__ = [
    "BOX_WEIGHTS",
    "DELTA_CLIP",
    "RPN_WEIGHTS",
    "Proposals",
    "box_area",
    "box_iou",
    "clip_boxes",
    "decode_boxes",
    "encode_boxes",
    "generalized_box_iou",
    "given_proposals",
]

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # of Detectron and torchvision, for (x, y, w, h)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of their box heads
DELTA_CLIP = math.log(1000 / 16)  # theirs too: a box grows to 62.5 times its reference at most


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first."""

    boxes: Any  # float32 [n, k, 4], within their images; 0 where not valid
    scores: Any  # float32 [n, k]
    valid: Any  # bool [n, k]


def given_proposals(boxes: Float[Array, "n k 4"]) -> Proposals:
    """Proposals that come as boxes alone, of which those without area are padding."""
    there = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return Proposals(boxes, there.astype(jnp.float32), there)


Boxes = Float[Array, "*#n 4"]  # broadcast against each other


def _centres(boxes: Array, offset: float) -> tuple[Array, Array]:
    """Centres and extents, each `[..., 2]`."""
    extent = boxes[..., 2:] - boxes[..., :2] + offset
    return boxes[..., :2] + 0.5 * extent, extent


def encode_boxes(
    boxes: Boxes,
    references: Boxes,
    weights: tuple[float, float, float, float] = RPN_WEIGHTS,
    *,
    offset: float = 0.0,
) -> Boxes:
    """What a regressor is to say of `references` to get `boxes` (Girshick et al. 2014, appendix C).

    Deltas of the centres in extents of the reference and logarithms of the extents' ratios, times `weights`.
    `offset` is 1 in Detectron (2018) and Caffe, where a box ends in its last pixel. A box without extent has
    a code of -inf.
    """
    centre, extent = _centres(boxes.astype(jnp.float32), offset)
    reference_centre, reference_extent = _centres(references.astype(jnp.float32), offset)
    weights_xy, weights_wh = jnp.array(weights[:2]), jnp.array(weights[2:])
    shift = weights_xy * (centre - reference_centre) / reference_extent
    scale = weights_wh * jnp.log(extent / reference_extent)
    return jnp.concatenate([shift, scale], -1)


def decode_boxes(
    codes: Boxes,
    references: Boxes,
    weights: tuple[float, float, float, float] = RPN_WEIGHTS,
    *,
    clip: float = DELTA_CLIP,
    offset: float = 0.0,
) -> Boxes:
    """The boxes that `codes` say of `references`, the inverse of `encode_boxes`.

    Logarithms of extents are cut at `clip` before the exponential.
    """
    centre, extent = _centres(references.astype(jnp.float32), offset)
    codes = codes.astype(jnp.float32) / jnp.array(weights)
    centre = codes[..., :2] * extent + centre
    half = 0.5 * (jnp.exp(jnp.minimum(codes[..., 2:], clip)) * extent)
    return jnp.concatenate([centre - half, centre + half - offset], -1)


def box_area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Area; negative where one side is reversed."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlap(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Intersection, union and smallest enclosing area of every pair, each `[..., n, m]`."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    inner = jnp.maximum(jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2]), 0)
    outer = jnp.maximum(jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2]), 0)
    shared = inner[..., 0] * inner[..., 1]
    return shared, box_area(a) + box_area(b) - shared, outer[..., 0] * outer[..., 1]


def _ratio(part: Array, whole: Array) -> Array:
    some = whole > 0
    return jnp.where(some, part / jnp.where(some, whole, 1), 0)


def box_iou(a: Float[Array, "*b n 4"], b: Float[Array, "*b m 4"]) -> Float[Array, "*b n m"]:
    """Intersection over union of every pair; 0 where neither box has an area."""
    shared, union, _ = _overlap(a, b)
    return _ratio(shared, union)


def generalized_box_iou(a: Float[Array, "*b n 4"], b: Float[Array, "*b m 4"]) -> Float[Array, "*b n m"]:
    """GIoU of every pair (Rezatofighi et al. 2019, algorithm 1): IoU less the empty share of the enclosing box."""
    shared, union, hull = _overlap(a, b)
    return _ratio(shared, union) - _ratio(hull - union, hull)


def clip_boxes(boxes: Float[Array, "*n k 4"], sizes: Num[Array, "*n 2"]) -> Float[Array, "*n k 4"]:
    """`boxes` cut to 0..width and 0..height of their images, whose `sizes` are (h, w)."""
    limit = jnp.flip(sizes, -1).astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.concatenate([limit, limit], -1)[..., None, :])
