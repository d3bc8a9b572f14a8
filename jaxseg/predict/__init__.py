"""From a photograph of any size to a label map of that size, by compiled programs of fixed shapes.

Images are RGB, uint8, and normalised by ImageNet's mean and standard deviation on the device: what torchvision,
segmentation-models-pytorch and semseg all do (semseg writes the same numbers times 255). Caffe's VGG weights, which
want BGR less a mean, take the difference into their first layer when they load (`jaxseg.weights.load_encoder`).
"""

from jaxseg.detect import detect
from jaxseg.predict.objects import Judged, detect_source, found_objects, score_objects, true_objects
from jaxseg.predict.score import score
from jaxseg.predict.sharded import sharded_predictor
from jaxseg.predict.sliding import averaged_scores, sliding_predictor
from jaxseg.predict.whole import batch_predictor, labels_at, overlap_tile, predictor

__all__ = [
    "Judged",
    "averaged_scores",
    "batch_predictor",
    "detect",
    "detect_source",
    "found_objects",
    "labels_at",
    "overlap_tile",
    "predictor",
    "score",
    "score_objects",
    "sharded_predictor",
    "sliding_predictor",
    "true_objects",
]
