"""Reads a whole data set before a run spends an hour on it: every finding at once, and the pixel counts."""

import concurrent.futures
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from jaxseg.data.folder import folder
from jaxseg.data.source import IGNORE, DataError, Source

__all__ = ["DataReport", "check_data", "median_frequency"]


class DataReport(NamedTuple):
    """What a sound data set holds, with sizes as (h, w).

    `class_pixels[c]` counts the pixels of class c, `class_images[c]` the images where c is present,
    `present_pixels[c]` all pixels of those images, ignored ones included.
    """

    images: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    class_names: tuple[str, ...]
    class_pixels: Int64[np.ndarray, "k"]
    present_pixels: Int64[np.ndarray, "k"]
    class_images: Int64[np.ndarray, "k"]
    ignored_pixels: int


def check_data(
    data: Source | str | os.PathLike,
    split: str | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    **options,
) -> DataReport:
    """Decodes every example of a source, or of a folder's split (`options` are those of `folder`).

    Calls `progress(done, total)` after each example. Raises one DataError that lists every missing mask and
    image, stem that is there twice, unreadable file, mask of another size, and label out of range; the
    heading counts them.
    """
    if isinstance(data, str | os.PathLike):
        if split is None:
            raise ValueError("check_data needs the split of a folder; name one, such as split='train'")
        data = folder(data, split, strict=False, **options)
    source: Source = data
    problems = list(getattr(source, "problems", ()))
    k, total = source.num_classes, len(source)

    def look(index: int) -> tuple[tuple[int, ...], np.ndarray] | DataError:
        try:
            label = source[index]["label"]
        except DataError as error:
            return error
        # the source answers for the range; what is outside all the same must not grow the histogram
        outside = (label != IGNORE) & ((label < 0) | (label >= k))
        if outside.any():
            return DataError(f"{source.name(index)}: labels outside 0..{k - 1} and {IGNORE}; map or ignore them")
        return label.shape, np.bincount(np.where(label == IGNORE, k, label).ravel(), minlength=k + 1)

    shapes, counts = [], []
    with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for done, found in enumerate(pool.map(look, range(total)), start=1):
            if isinstance(found, DataError):
                problems.extend(found.problems)
            else:
                shapes.append(found[0])
                counts.append(found[1])
            if progress is not None:
                progress(done, total)
    if not total and not problems:
        problems.append("no example at all")
    if problems:
        raise DataError(*problems, heading=f"{len(problems)} problem(s) in {total} example(s):")

    pixels = np.stack(counts).astype(np.int64)
    present = pixels[:, :k] > 0
    heights, widths = zip(*shapes, strict=True)
    return DataReport(
        images=total,
        smallest=(min(heights), min(widths)),
        largest=(max(heights), max(widths)),
        class_names=tuple(source.class_names),
        class_pixels=pixels[:, :k].sum(0),
        present_pixels=(pixels.sum(1, keepdims=True) * present).sum(0),
        class_images=present.sum(0),
        ignored_pixels=int(pixels[:, k].sum()),
    )


def median_frequency(report: DataReport) -> Float32[np.ndarray, "k"]:
    """Class weights by median frequency balancing (Eigen and Fergus 2015, section 6.3.2; SegNet, section 3).

    weight(c) = median of all freq / freq(c), where freq(c) = pixels of c / pixels of the images where c is
    present. A class without a pixel weighs 0 and takes no part in the median.
    """
    seen = report.class_pixels > 0
    frequency = report.class_pixels / np.maximum(report.present_pixels, 1)
    median = np.median(frequency[seen])
    return np.where(seen, median / np.where(seen, frequency, 1), 0).astype(np.float32)
