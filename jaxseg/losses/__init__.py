"""Losses: float32 scalars of logits and labels, averaged over the global batch."""

from jaxseg.losses.boundary import boundary_loss, signed_distance
from jaxseg.losses.detection import box_losses, mask_loss, proposal_losses
from jaxseg.losses.lovasz import lovasz_softmax
from jaxseg.losses.segmentation import (
    cross_entropy,
    dice_loss,
    focal_loss,
    jaccard_loss,
    ohem_cross_entropy,
    tversky_loss,
)
from jaxseg.losses.style import OFFICIAL_WEIGHTS, PORT_WEIGHTS, StyleWeights, content_loss, style_loss

__all__ = [
    "OFFICIAL_WEIGHTS",
    "PORT_WEIGHTS",
    "StyleWeights",
    "boundary_loss",
    "box_losses",
    "content_loss",
    "cross_entropy",
    "dice_loss",
    "focal_loss",
    "jaccard_loss",
    "lovasz_softmax",
    "mask_loss",
    "ohem_cross_entropy",
    "proposal_losses",
    "signed_distance",
    "style_loss",
    "tversky_loss",
]
