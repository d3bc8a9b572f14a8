"""Metrics: additive sums on the device, scores from the sums on the host."""

from jaxseg.metrics.boundary_f import BoundaryF, BoundaryFSums, boundary_f_scores, boundary_f_sums
from jaxseg.metrics.confusion import SegmentationScores, confusion_matrix, segmentation_scores
from jaxseg.metrics.panoptic import PanopticScores, PanopticSums, panoptic_scores, panoptic_sums

__all__ = [
    "BoundaryF",
    "BoundaryFSums",
    "PanopticScores",
    "PanopticSums",
    "SegmentationScores",
    "boundary_f_scores",
    "boundary_f_sums",
    "confusion_matrix",
    "panoptic_scores",
    "panoptic_sums",
    "segmentation_scores",
]
