"""What every segmentation model, and every detector, returns."""

from typing import Any

import flax

__all__ = ["Detections", "SegmentationOutput"]


@flax.struct.dataclass
class SegmentationOutput:
    """Class scores of every pixel.

    `logits` is float32 `[n, h, w, k]` at input resolution, unless the model's docstring says otherwise.
    `aux_logits` is None or scores of the same shape from an auxiliary head, which only a loss looks at.
    """

    logits: Any  # any leaf: a pytree of specs, shapes or shardings has this structure too
    aux_logits: Any = None


@flax.struct.dataclass
class Detections:
    """Objects found, best first, in a fixed number of places of which those that are `valid` are filled.

    `boxes` float32 `[..., k, 4]` XYXY in pixels, `scores` float32 `[..., k]`, `classes` int32 `[..., k]` with
    the background, 0, never among them, `masks` None or float32 `[..., k, h, w]`: a model's are in the frames
    of the boxes, those of `jaxseg.predict.detect` on the image. `valid` bool `[..., k]`; all else is 0.
    """

    boxes: Any
    scores: Any
    classes: Any
    masks: Any
    valid: Any
