"""Losses: float32 scalars of logits and labels, averaged over the global batch."""

from jaxseg.losses.detection import box_losses, mask_loss, proposal_losses
from jaxseg.losses.segmentation import cross_entropy, dice_loss, focal_loss

__all__ = ["box_losses", "cross_entropy", "dice_loss", "focal_loss", "mask_loss", "proposal_losses"]
