"""Scores of a predictor on a source, image by image at their own sizes: how benchmarks are scored."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxseg.data.source import IGNORE, Source
from jaxseg.metrics.confusion import named_scores

__all__ = ["score"]


def score(
    predict: Callable[[np.ndarray], np.ndarray], source: Source, progress: Callable[[int, int], None] | None = None
) -> dict[str, float]:
    """Scores by name (`miou`, `iou/0`, ...) of `predict`, from an RGB image to labels of its size.

    With several processes each looks at its share of the images and all get the scores of the whole. Calls
    `progress(done, total)` after each image. Raises ValueError for a label that the source does not have, as
    from a model of other classes.
    """
    k = source.num_classes
    confusion = np.zeros((k, k), np.int64)
    for index in range(jax.process_index(), len(source), jax.process_count()):
        example = source[index]
        counted = example["label"] != IGNORE
        predicted = predict(example["image"])[counted]
        if predicted.size and not 0 <= predicted.min() <= predicted.max() < k:
            raise ValueError(
                f"{source.name(index)}: predicted label(s) {predicted.min()} to {predicted.max()}, and the source has "
                f"{k} classes; score a model of these classes"
            )
        cells = example["label"][counted] * k + predicted
        confusion += np.bincount(cells, minlength=k * k).reshape(k, k)
        if progress is not None:
            progress(index + 1, len(source))
    if jax.process_count() > 1:  # as bytes, for without x64 they would come back in 32 bits
        every = np.asarray(multihost_utils.process_allgather(confusion.view(np.uint8)))
        confusion = every.view(np.int64).sum(0)
    return named_scores(confusion)
