"""Sources to batches of fixed shape, in an order that is a pure function of (seed, step).

Global example `step * batch_size + j` of a run is element `order[...]` of the source, whatever the number of
processes, devices and threads; so a run resumes at any step, on any topology, without saved iterator state.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxseg.data.canvas import MEAN_COLOUR, fit_geometry, fit_image, fit_map
from jaxseg.data.source import IGNORE, Example, Source

__all__ = ["batch_names", "eval_batches", "train_batches"]

_FOREVER = 2**40  # examples; a run that lasts longer has other worries
_FILL = {"label": IGNORE}  # in padding; other maps (instances, weight) are zero there


@runtime_checkable
class Batches(Protocol):
    """An iterator over batches whose threads end with `close`."""

    def __iter__(self) -> Iterator[Example]: ...
    def __next__(self) -> Example: ...
    def close(self) -> None: ...


def batch_names(source: Source, seed: int, step: int, batch_size: int) -> list[str]:
    """Names of the examples of a training step, without reading them."""
    order = _order(len(source), seed)
    return [source.name(int(order[step * batch_size + j])) for j in range(batch_size)]


def train_batches(
    source: Source,
    size: tuple[int, int],
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    buffer: int | None = None,
    cache_bytes: int = 512 * 2**20,
) -> Batches:
    """Endless batches for steps `start_step`, `start_step + 1`, ... of this process.

    A batch holds "image" uint8 `[B, H, W, 3]`, "label" int32 `[B, H, W]`, "index" int32 `[B]` (position in
    the source) and whatever maps and vectors the source adds; B is `batch_size`, the global one, divided by
    `process_count`, and the processes' batches in order of `process_index` make the global batch. Each epoch
    has its own order and every example once. `threads` decode up to `buffer` examples ahead (default: two
    batches); fitted examples are kept in memory up to `cache_bytes`. The iterator has `close()`.
    Raises ValueError for a batch size that does not divide, or an empty source.
    """
    local = _local_batch(len(source), batch_size, process_index, process_count)
    order = _order(len(source), seed)
    fitted = _Fitted(source, size, size, cache_bytes)

    def load(position: int) -> Example:
        step, j = divmod(position, local)
        return fitted[int(order[step * batch_size + process_index * local + j])]

    return _batches(load, start_step * local, _FOREVER, local, threads, buffer)


def eval_batches(
    source: Source,
    size: tuple[int, int],
    batch_size: int,
    *,
    label_size: tuple[int, int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    buffer: int | None = None,
    cache_bytes: int = 0,
) -> Batches:
    """Every example once over all processes, in the source's order, the same number of batches in each.

    As `train_batches`, but "label" is `[B, *label_size]` if that is given, for scores at a resolution that
    the network does not see; the two sizes share their aspect ratio. Places left over in the last batch have
    "index" -1 and labels of 255. Raises ValueError as `train_batches` does, and for another aspect ratio.
    """
    label_size = label_size or size
    if size[0] * label_size[1] != size[1] * label_size[0]:
        good = round(label_size[1] * size[0] / size[1])
        raise ValueError(
            f"eval_batches needs label_size of the aspect ratio of size {size}, got {label_size};"
            f" use ({good}, {label_size[1]})"
        )
    local = _local_batch(len(source), batch_size, process_index, process_count)
    fitted = _Fitted(source, size, label_size, cache_bytes)
    steps = -(-len(source) // batch_size)

    def load(position: int) -> Example:
        step, j = divmod(position, local)
        index = step * batch_size + process_index * local + j
        return fitted[index] if index < len(source) else fitted.blank()

    return _batches(load, 0, steps * local, local, threads, buffer)


def _order(n: int, seed: int) -> Any:
    """Endless: element i is the source position of the i-th example of a run; a new shuffle each epoch."""
    import grain  # which imports Orbax: half a second that a prediction has no use for

    # .seed() hashes; shuffle(seed=s) would make epoch 1 of seed 0 the same as epoch 0 of seed 1
    return grain.MapDataset.range(n).seed(seed).shuffle().repeat()


def _local_batch(n: int, batch_size: int, process_index: int, process_count: int) -> int:
    if n == 0:
        raise ValueError("the source is empty")
    if batch_size < 1 or batch_size % process_count:
        fix = max(1, batch_size // process_count) * process_count
        raise ValueError(
            f"batch_size is the global one and must divide by process_count={process_count},"
            f" got {batch_size}; use {fix}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0..{process_count - 1}, got {process_index}")
    return batch_size // process_count


class _Fitted:
    """Examples of a source on canvases of fixed size, the first `cache_bytes` of them kept in memory."""

    def __init__(self, source: Source, size: tuple[int, int], label_size: tuple[int, int], cache_bytes: int):
        self._source, self._size, self._label_size = source, size, label_size
        self._room, self._lock = cache_bytes, threading.Lock()
        self._kept: dict[int, Example] = {}

    def __getitem__(self, index: int) -> Example:
        kept = self._kept.get(index)
        if kept is None:
            kept = self._fit(index)
            with self._lock:
                cost = sum(v.nbytes for v in kept.values())
                if index not in self._kept and cost <= self._room:
                    self._kept[index] = kept
                    self._room -= cost
        return {k: v.astype(np.int32) if k == "label" else v for k, v in kept.items()}

    def blank(self) -> Example:
        """What fills a ragged last batch: nothing to see, nothing to score."""
        like = self[0]
        out = {k: np.full_like(v, _FILL.get(k, 0)) for k, v in like.items()}
        out["image"][:] = MEAN_COLOUR
        return out | {"index": np.array(-1, np.int32)}

    def _fit(self, index: int) -> Example:
        example = self._source[index]
        original = example["image"].shape[:2]
        fit, map_fit = fit_geometry(original, self._size), fit_geometry(original, self._label_size)
        out: Example = {"image": fit_image(example["image"], fit), "index": np.array(index, np.int32)}
        for key, value in example.items():
            if key == "label":  # nearly all semantic labels fit a byte: four times as many in the cache
                narrow = value if value.max(initial=0) > IGNORE else value.astype(np.uint8)
                out[key] = fit_map(narrow, map_fit, IGNORE)
            elif key != "image":
                is_map = value.shape == original
                out[key] = fit_map(value, map_fit, _FILL.get(key, 0)) if is_map else value
        return out


def _batches(
    load: Callable[[int], Example], start: int, stop: int, batch: int, threads: int, buffer: int | None
) -> Batches:
    import grain

    ahead = 0 if threads == 0 else max(threads, 2 * batch if buffer is None else buffer)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    examples = grain.MapDataset.range(start, stop).map(load).to_iter_dataset(options)
    # one batch is stacked ahead of its step; 0 threads mean no thread at all
    stacked = grain.experimental.ThreadPrefetchIterDataset(examples.batch(batch), prefetch_buffer_size=min(threads, 1))
    return iter(stacked)
