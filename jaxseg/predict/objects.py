"""A detector on a source of objects, picture by picture at their own sizes: what average precision is computed on."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from jaxseg import parallel
from jaxseg.data.objects import ObjectSource, object_masks
from jaxseg.detect import detect
from jaxseg.metrics.coco import Objects, coco_average_precision, mask_to_rle

__all__ = ["Judged", "detect_source", "found_objects", "score_objects", "true_objects"]


class Judged(NamedTuple):
    """A picture of a source: what is true and what was found."""

    position: int  # in the source
    truth: Objects
    found: Objects


def true_objects(source: ObjectSource, index: int) -> tuple[np.ndarray, Objects]:
    """A picture and its objects, with masks as run lengths at its size and the flags and areas that the source has."""
    example = source[index]
    masks: Any = None
    if hasattr(source, "rles") and source.has_masks:
        masks = source.rles(index)
    elif (shown := object_masks(example)) is not None:
        masks = [mask_to_rle(mask) for mask in shown]
    flags = {k: example.get(k) for k in ("crowd", "difficult", "area")}
    return example["image"], Objects(example["boxes"], example["classes"], masks, **flags)


def found_objects(found: Any, threshold: float = 0.5) -> Objects:
    """`Detections` of one picture as `Objects`; a pixel is of a mask whose probability is above `threshold`."""
    valid = np.asarray(found.valid)
    boxes, classes, scores = (np.asarray(x)[valid] for x in (found.boxes, found.classes, found.scores))
    masks = None
    if found.masks is not None:
        pixels = np.asarray(found.masks)
        masks = [mask_to_rle(pixels[i] > threshold) for i in np.flatnonzero(valid)]
    return Objects(boxes, classes, masks, scores)


def detect_source(
    model: nn.Module,
    variables: PyTree,
    source: ObjectSource,
    *,
    batch: int = 4,
    pictures: int | None = None,
    canvas: tuple[int, int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Judged]:
    """What `model` finds in the first `pictures` of `source`, of which each process takes every n-th: each once.

    On one `canvas` for all (by default a square of the model's `max_size`), with a last batch filled up, so that
    there is one compiled program.
    """
    detector: Any = model
    side = -(-detector.max_size // 32) * 32
    count = len(source) if pictures is None else min(pictures, len(source))
    mine = range(process_index, count, process_count)
    for start in range(0, len(mine), batch):
        indices = mine[start : start + batch]
        images, truths = zip(*(true_objects(source, i) for i in indices), strict=True)
        filled = [*images, *[images[-1]] * (batch - len(images))]
        found = detect(model, variables, filled, canvas=canvas or (side, side))
        for index, truth, one in zip(indices, truths, found, strict=False):
            yield Judged(index, truth, found_objects(one))


def _everyones(rows: list[Judged]) -> list[Judged]:
    """The rows of all processes, in the order of the source."""
    if jax.process_count() > 1:
        mine = np.frombuffer(pickle.dumps(rows), np.uint8)
        lengths = np.ravel(multihost_utils.process_allgather(np.array(len(mine))))
        padded = np.pad(mine, (0, int(lengths.max()) - len(mine)))
        every = multihost_utils.process_allgather(padded)
        rows = [row for part, n in zip(every, lengths, strict=True) for row in pickle.loads(part[:n].tobytes())]
    return sorted(rows, key=lambda row: row.position)


def score_objects(
    model: nn.Module,
    variables: PyTree,
    source: ObjectSource,
    *,
    batch: int = 4,
    pictures: int | None = None,
    canvas: tuple[int, int] | None = None,
    score: Callable[..., dict[str, float]] = coco_average_precision,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """COCO's AP of boxes and masks, or what `score(truth, found, class_names)` says, such as `voc_average_precision`.

    Masks are judged at the pictures' own sizes. With several processes each looks at its share of the pictures and all
    get the scores of the whole. Calls `progress(done, total)` after each picture. Raises ValueError for a `batch` or
    `pictures` below 1.
    """
    for name, value in (("batch", batch), ("pictures", pictures)):
        if value is not None and value < 1:
            raise ValueError(f"score_objects needs {name} of at least 1, got {value}")
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    total = len(source) if pictures is None else min(pictures, len(source))
    variables = parallel.of_this_process(variables)
    rows = []
    for row in detect_source(model, variables, source, batch=batch, pictures=pictures, canvas=canvas, **share):
        rows.append(row)
        if progress is not None:
            progress(row.position + 1, total)
    rows = _everyones(rows)
    return score([row.truth for row in rows], [row.found for row in rows], source.class_names)
