"""What every segmentation model returns."""

from typing import Any

import flax

__all__ = ["SegmentationOutput"]


@flax.struct.dataclass
class SegmentationOutput:
    """Class scores of every pixel.

    `logits` is float32 `[n, h, w, k]` at input resolution, unless the model's docstring says otherwise.
    `aux_logits` is None or scores of the same shape from an auxiliary head, which only a loss looks at.
    """

    logits: Any  # any leaf: a pytree of specs, shapes or shardings has this structure too
    aux_logits: Any = None
