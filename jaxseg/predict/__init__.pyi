from .canvas import labels_at, overlap_tile
from .objects import Judged, detect, detect_source, found_objects, score_objects, true_objects
from .score import score
from .sharded import sharded_predictor
from .sliding import averaged_scores, sliding_predictor
from .whole import batch_predictor, predictor

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
