"""Images a second from the input pipeline, by threads and cache, and how long a train step would wait.

    python experiments/benchmarks/input_pipeline.py --data DIR --size 360 480

Prints a table: img/s cold (the first `images`, decoded and fitted) and from the cache, and the wait for a
batch when a step of `step-ms` runs between two batches on the same cores. `--json FILE` keeps it.
"""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import time

import numpy as np
import tyro

from jaxseg.data import folder, shapes, train_batches


@dataclasses.dataclass(frozen=True)
class Config:
    data: str  # a folder of images and masks, or shapes
    split: str = "train"
    size: tuple[int, int] = (360, 480)
    batch: int = 16
    images: int = 320  # timed for each row, after one batch of warm-up
    threads: tuple[int, ...] = (0, 1, 2, 4)
    step_ms: float = 100.0  # a matrix product of about this long stands for the train step
    ignore_label: int | None = None
    json: pathlib.Path | None = None


def images_per_second(config: Config, source, threads: int, cached: bool) -> float:
    """Of `config.images` images after a warm-up of one batch or, if `cached`, of one and a half epochs."""
    batches = train_batches(
        source, config.size, config.batch, seed=0, threads=threads, cache_bytes=2**31 if cached else 0
    )
    steps = max(1, config.images // config.batch)
    for _ in range(1 + (len(source) * 3 // 2 // config.batch if cached else 0)):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    rate = steps * config.batch / (time.perf_counter() - start)
    batches.close()
    return rate


def median_wait(config: Config, source, threads: int) -> float:
    """Milliseconds that a step on the same cores waits for its batch, without cache, once warm."""
    a = np.ones((1024, 1024), np.float32)
    batches = train_batches(source, config.size, config.batch, seed=0, threads=threads, cache_bytes=0)
    waits = []
    for _ in range(12):
        start = time.perf_counter()
        next(batches)
        waits.append(1e3 * (time.perf_counter() - start))
        end = time.perf_counter() + config.step_ms / 1e3
        while time.perf_counter() < end:
            a @ a
    batches.close()
    return statistics.median(waits[2:])


def main(config: Config) -> None:
    if config.data == "shapes":
        source = shapes(config.split)
    else:
        source = folder(config.data, config.split, ignore_label=config.ignore_label)
    print(f"{len(source)} examples at {config.size}, batch {config.batch}, {os.cpu_count()} cores")
    print(f"{'threads':>7}  {'cold img/s':>10}  {'cached img/s':>12}  {'wait ms':>8}")
    rows = []
    for threads in config.threads:
        cold = images_per_second(config, source, threads, cached=False)
        cached = images_per_second(config, source, threads, cached=True)
        wait = median_wait(config, source, threads)
        print(f"{threads:>7}  {cold:>10.0f}  {cached:>12.0f}  {wait:>8.1f}", flush=True)
        rows.append({"threads": threads, "cold": cold, "cached": cached, "wait_ms": wait})
    if config.json is not None:
        facts = {
            "size": config.size,
            "batch": config.batch,
            "step_ms": config.step_ms,
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "rows": rows,
        }
        config.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
