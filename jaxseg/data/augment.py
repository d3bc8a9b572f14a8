"""Augmentation on the device: pure functions of (key, example), vmapped inside the compiled train step.

An example is {"image": float32 [H, W, 3] in 0..1, "label": int32 [H, W]}; "instances" and "weight" `[H, W]`,
where they ride along, move with the label. What comes from outside the image has the ImageNet mean colour and
label 255, so that it is near zero after `normalize` and no loss counts it. Shapes never depend on data; each
example has its own key, so any sharding of the batch draws the same numbers.

Objects (`jaxseg.data.padded_objects`) move too: "masks" bool `[g, H, W]` with the label, and "boxes" float32 `[g, 4]`
are then those around the masks; without masks they are scaled, moved and cut, which `rotate` and `elastic` cannot.
"valid" bool `[g]` says what is left of them. "size" is the (h, w) of the picture, at the top left, without padding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxseg.data.source import IGNORE
from jaxseg.ops.boxes import clip_boxes
from jaxseg.ops.masks import boxes_of_masks

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Augmentation",
    "color_jitter",
    "elastic",
    "flip",
    "normalize",
    "rotate",
    "scale_crop",
    "scaled",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Example = dict[str, Array]
Augmentation = Callable[[PRNGKeyArray, Example], Example]

# NumPy, because a jax array made at import would start the devices
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)

_MAPS = {"label": IGNORE, "instances": 0, "weight": 0}  # and their values outside the image


def normalize(image: Float[Array, "*n h w 3"]) -> Float[Array, "*n h w 3"]:
    """(image - mean) / std of ImageNet, for images in 0..1."""
    return (image - jnp.array(IMAGENET_MEAN, image.dtype)) / jnp.array(IMAGENET_STD, image.dtype)


def flip(key: PRNGKeyArray, example: Example) -> Example:
    """Mirrors left and right, every second time; where "size" says what is picture, that part, in its place."""
    mirror = jax.random.bernoulli(key)
    w = example["image"].shape[1]
    width = example["size"][1] if "size" in example else w

    def mirrored(x: Array, axis: int) -> Array:
        if "size" not in example:
            return jnp.flip(x, axis)
        at = jnp.arange(w)
        return jnp.take(x, jnp.where(at < width, width - 1 - at, at), axis)

    moved = {k: mirrored(v, 1) for k, v in example.items() if k == "image" or k in _MAPS}
    if "masks" in example:
        moved["masks"] = mirrored(example["masks"], 2)
    if "boxes" in example:
        x0, y0, x1, y1 = jnp.moveaxis(example["boxes"], -1, 0)
        there = jnp.stack([width - x1, y0, width - x0, y1], -1)
        moved["boxes"] = jnp.where(example["valid"][:, None], there, 0)
    return example | {k: jnp.where(mirror, v, example[k]) for k, v in moved.items()}


def scale_crop(size: tuple[int, int], scales: tuple[float, float] = (0.5, 2.0)) -> Augmentation:
    """Scales by a factor uniform in `scales` and crops, or pads, to `size` (H, W), in one resampling.

    The window is uniform over the scaled image; where the scaled image is the smaller, its place is uniform
    over the window. Images are bilinear, antialiased when they shrink; labels take the nearest pixel.
    Raises ValueError for scales that are not positive and in order.
    """
    if not 0 < scales[0] <= scales[1]:
        raise ValueError(f"scale_crop needs 0 < low <= high, got scales={scales}; DeepLab uses (0.5, 2.0)")

    def augment(key: PRNGKeyArray, example: Example) -> Example:
        scale_key, place_key = jax.random.split(key)
        scale = jax.random.uniform(scale_key, minval=scales[0], maxval=scales[1])
        # in both cases the offset lies between 0 and the difference of the sizes
        spare = jnp.array(size, jnp.float32) - scale * jnp.array(example["image"].shape[:2], jnp.float32)
        offset = spare * jax.random.uniform(place_key, (2,))
        return _all_picture(scaled(example, size, scale, offset), size)

    return augment


def scaled(example: Example, size: tuple[int, int], scale: Array, offset: Float[Array, "2"]) -> Example:
    """The example scaled and moved to (row, column) `offset` on a canvas of `size` (H, W), in one resampling."""
    mean = jnp.array(IMAGENET_MEAN)
    image = jax.image.scale_and_translate(
        example["image"] - mean, (*size, 3), (0, 1), jnp.stack([scale, scale]), offset, "bilinear"
    )
    rows, cols = ((jnp.arange(size[a]) + 0.5 - offset[a]) / scale - 0.5 for a in range(2))
    moved = example | {"image": image + mean} | move_maps(example, rows[:, None], cols[None, :])
    return with_boxes(moved, scale, offset)


def rotate(degrees: float) -> Augmentation:
    """Rotates about the centre by an angle uniform in -`degrees`..`degrees`."""

    def augment(key: PRNGKeyArray, example: Example) -> Example:
        angle = jnp.deg2rad(jax.random.uniform(key, minval=-degrees, maxval=degrees))
        h, w = example["image"].shape[:2]
        y, x = jnp.arange(h)[:, None] - (h - 1) / 2, jnp.arange(w)[None, :] - (w - 1) / 2
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return _resample(example, cos * y - sin * x + (h - 1) / 2, sin * y + cos * x + (w - 1) / 2)

    return augment


def elastic(sigma: float = 10.0, grid: int = 3) -> Augmentation:
    """Smooth random deformation (Ronneberger et al. 2015, section 3.1).

    Displacements are normal with standard deviation `sigma` pixels on a `grid` x `grid` lattice, and bicubic
    in between. Raises ValueError for a grid below 2.
    """
    if grid < 2:
        raise ValueError(f"elastic needs a grid of at least 2, got {grid}; U-Net uses 3")

    def augment(key: PRNGKeyArray, example: Example) -> Example:
        h, w = example["image"].shape[:2]
        coarse = sigma * jax.random.normal(key, (grid, grid, 2))
        moves = jax.image.resize(coarse, (h, w, 2), "cubic")
        return _resample(example, jnp.arange(h)[:, None] + moves[..., 0], jnp.arange(w)[None, :] + moves[..., 1])

    return augment


def color_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Augmentation:
    """Factors uniform in 1 - a..1 + a for brightness, contrast and saturation, then a turn of the hue.

    In this order; the last by a share of the circle uniform in -`hue`..`hue`, as a rotation of the YIQ
    colour plane: linear, so its gradient has no hole at grey, as that of HSV has. The image stays in 0..1.
    Raises ValueError for an amount outside 0..1, or 0..0.5 for hue.
    """
    for name, amount, limit in (
        ("brightness", brightness, 1.0),
        ("contrast", contrast, 1.0),
        ("saturation", saturation, 1.0),
        ("hue", hue, 0.5),
    ):
        if not 0 <= amount <= limit:
            raise ValueError(f"color_jitter needs {name} in 0..{limit}, got {amount}; 0 switches it off")

    def augment(key: PRNGKeyArray, example: Example) -> Example:
        draws = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
        image = example["image"]
        image = image * (1 + brightness * draws[0])
        mean = _grey(image).mean()
        image = mean + (image - mean) * (1 + contrast * draws[1])
        grey = _grey(image)
        image = grey + (image - grey) * (1 + saturation * draws[2])
        angle = 2 * jnp.pi * hue * draws[3]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turn = jnp.eye(3).at[1:, 1:].set(jnp.array([[cos, -sin], [sin, cos]]))
        by_hue = jnp.linalg.multi_dot([_FROM_YIQ, turn, _TO_YIQ], precision="highest")
        image = jnp.einsum("hwc,dc->hwd", image, by_hue, precision="highest")
        return example | {"image": jnp.clip(image, 0.0, 1.0)}

    return augment


def _grey(image: Float[Array, "h w 3"]) -> Float[Array, "h w 1"]:
    return (image * jnp.array(_TO_YIQ[0], image.dtype)).sum(-1, keepdims=True)


def move_maps(example: Example, rows: Float[Array, "#h #w"], cols: Float[Array, "#h #w"]) -> Example:
    """The maps of an example at (rows, cols), in pixel indices of its image, by nearest neighbour."""
    h, w = example["image"].shape[:2]
    i, j = jnp.floor(rows + 0.5).astype(jnp.int32), jnp.floor(cols + 0.5).astype(jnp.int32)
    inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
    i, j = i.clip(0, h - 1), j.clip(0, w - 1)
    moved = {k: jnp.where(inside, example[k][i, j], fill) for k, fill in _MAPS.items() if k in example}
    if "masks" in example:
        separable = i.shape[1] == j.shape[0] == 1  # whole rows, then whole columns: no gather of single pixels
        there = example["masks"][:, i[:, 0]][:, :, j[0]] if separable else example["masks"][:, i, j]
        moved["masks"] = there & inside
    return moved


def _all_picture(example: Example, size: tuple[int, int]) -> Example:
    """The picture may now lie anywhere on the canvas of `size`."""
    return example | ({"size": jnp.array(size, jnp.int32)} if "size" in example else {})


def with_boxes(example: Example, scale: Any = None, offset: Any = None) -> Example:
    """Boxes around the masks that have moved, or scaled and moved to (row, column) `offset` as the image was."""
    if "boxes" not in example:
        return example
    if "masks" in example:
        boxes, seen = boxes_of_masks(example["masks"] & example["valid"][:, None, None])
    elif scale is None:
        raise ValueError("rotate and elastic move boxes by their masks, and there are none; use flip and scale_crop")
    else:
        moved = example["boxes"] * scale + jnp.stack([offset[1], offset[0]] * 2)
        boxes = clip_boxes(moved, jnp.array(example["image"].shape[:2]))
        seen = example["valid"] & (boxes[:, 2:] > boxes[:, :2]).all(-1)
    return example | {
        "boxes": jnp.where(seen[:, None], boxes, 0),
        "classes": jnp.where(seen, example["classes"], 0),
        "valid": seen,
    }


def _resample(example: Example, rows: Float[Array, "h w"], cols: Float[Array, "h w"]) -> Example:
    """The example at (rows, cols), in pixel indices: image bilinear, maps nearest, mean colour outside."""
    image, mean = example["image"], jnp.array(IMAGENET_MEAN)
    h, w = image.shape[:2]
    top, left = jnp.floor(rows), jnp.floor(cols)
    down, right = (rows - top)[..., None], (cols - left)[..., None]
    i0, j0 = top.astype(jnp.int32), left.astype(jnp.int32)

    def corner(i: Array, j: Array) -> Array:
        return image[i.clip(0, h - 1), j.clip(0, w - 1)]

    upper = corner(i0, j0) * (1 - right) + corner(i0, j0 + 1) * right
    lower = corner(i0 + 1, j0) * (1 - right) + corner(i0 + 1, j0 + 1) * right
    inside = ((rows >= -0.5) & (rows < h - 0.5) & (cols >= -0.5) & (cols < w - 0.5))[..., None]
    moved = jnp.where(inside, upper * (1 - down) + lower * down, mean)
    return with_boxes(_all_picture(example | {"image": moved} | move_maps(example, rows, cols), (h, w)))
