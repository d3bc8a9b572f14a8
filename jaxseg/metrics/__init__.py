"""Metrics: additive sums on the device, scores from the sums on the host."""

from jaxseg.metrics.confusion import SegmentationScores, confusion_matrix, segmentation_scores

__all__ = ["SegmentationScores", "confusion_matrix", "segmentation_scores"]
