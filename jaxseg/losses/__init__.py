"""Losses: float32 scalars of logits and labels, averaged over the global batch."""

from jaxseg.losses.segmentation import cross_entropy, dice_loss, focal_loss
from jaxseg.losses.style import OFFICIAL_WEIGHTS, PORT_WEIGHTS, StyleWeights, content_loss, style_loss

__all__ = [
    "OFFICIAL_WEIGHTS",
    "PORT_WEIGHTS",
    "StyleWeights",
    "content_loss",
    "cross_entropy",
    "dice_loss",
    "focal_loss",
    "style_loss",
]
