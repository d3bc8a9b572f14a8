"""Losses: float32 scalars of logits and labels, averaged over the global batch."""

from jaxseg.losses.segmentation import cross_entropy, dice_loss, focal_loss

__all__ = ["cross_entropy", "dice_loss", "focal_loss"]
