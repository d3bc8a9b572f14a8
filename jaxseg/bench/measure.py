"""Programs timed beside their peers, in turns, in one process."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

__all__ = ["Setting", "Task", "alternate", "facts", "matmul_rate", "measure", "without_compilation_cache"]

Task = Literal["forward", "train"]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "scikit-learn", "scipy")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured, and how."""

    size: tuple[int, int] = (128, 128)
    """Height and width of an image."""
    batch: int = 4
    """Images at once."""
    classes: int = 11
    """Number of classes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of compute, in both; parameters are float32."""
    tasks: tuple[Task, ...] = ("forward", "train")
    """What is measured."""
    rounds: int = 7
    """Times that each is measured."""
    threads: int = 0
    """Of each of the two; 0: as many as this process may use."""
    clock: Literal["wall", "cpu"] = "wall"
    """`cpu` counts processor time, of all threads."""

    def seconds(self) -> float:
        """The clock."""
        return time.process_time() if self.clock == "cpu" else time.perf_counter()


def facts() -> dict[str, Any]:
    """Device, versions and the state of the source, for a row that shall be understood later.

    `commit` is "unknown" where jaxseg is no checkout; of one with changes `diff` tells these from others.
    """
    root = pathlib.Path(__file__).parents[2]

    def git(*words: str) -> str:
        if (root / ".git").exists():  # not the repository that an environment lies in
            with contextlib.suppress(OSError):
                done = subprocess.run(["git", *words], cwd=root, capture_output=True, errors="replace", check=False)
                return done.stdout.strip()
        return ""

    diff = git("diff", "--no-ext-diff", "HEAD")
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "commit": git("rev-parse", "HEAD") or "unknown",
        "changed": bool(diff),
        **({"diff": hashlib.sha1(diff.encode()).hexdigest()[:12]} if diff else {}),
    }


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Compiles anew what is compiled inside: a program read from a file says nothing of the time to compile it."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def matmul_rate(setting: Setting, rounds: int = 5) -> float:
    """FLOPs a second of the device's best large matrix product in the dtype of `setting`, by its clock."""
    best = 0.0
    for n in (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192):
        x = jnp.ones((n, n), jnp.dtype(setting.dtype))
        product = jax.jit(jnp.matmul).lower(x, x).compile()
        for turn in range(rounds + 1):
            start = setting.seconds()
            jax.block_until_ready(product(x, x))
            if turn:
                best = max(best, 2.0 * n**3 / (setting.seconds() - start))
    return best


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def alternate(calls: Mapping[str, Callable[[], None]], setting: Setting) -> dict[str, dict[str, Any]]:
    """Milliseconds of each call, taken in turns: median, half the interquartile range, and each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(setting.rounds + 1):
        for name, call in calls.items():
            if setting.clock == "wall" and len(calls) > 1:
                time.sleep(0.05)  # threads of the one before still spin
            start = setting.seconds()
            call()
            if turn:  # the first warms up
                times[name].append(max(1e3 * (setting.seconds() - start), 1e-6))  # a clock may stand still
    rows = {}
    for name, taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else taken * 3
        each = [_rounded(ms) for ms in taken]
        rows[name] = {"ms": _rounded(median), "spread_ms": _rounded((high - low) / 2), "each_ms": each}
    return rows


Peers = Callable[[Any], Mapping[str, Mapping[str, Callable[[], Any]]]]


def measure(ours: Any, rate: float, peers: Peers | None = None) -> list[dict[str, Any]]:
    """A row for each of the tasks of a `jaxseg.bench.subjects.Subject`; `rate` is `matmul_rate` of its setting.

    `peers(ours)` gives other implementations as `{what: {task: call}}`. `ratio` is jaxseg's time over
    theirs: below 1 jaxseg is faster. `utilisation` is the FLOPs of the model's own convolutions and products a
    second, as a share of `rate`. Peak memory is the compiler's figure: arguments, outputs and temporaries.
    """
    setting = ours.setting
    theirs = peers(ours) if peers is not None else {}
    rows = []
    for task in (task for task in setting.tasks if ours.calls[task]):
        calls = {**ours.calls[task], **{what: peer[task] for what, peer in theirs.items() if task in peer}}
        times = alternate(calls, setting)
        own = [what for what in times if what.startswith("jaxseg")]
        rows.append(
            {
                "model": ours.name,
                "task": task,
                "size": list(setting.size),
                "batch": setting.batch,
                "classes": setting.classes,
                "dtype": setting.dtype,
                "parameters": ours.parameters,
                "threads": setting.threads,
                "clock": setting.clock,
                "times": times,
                "images_per_second": {k: _rounded(1e3 * setting.batch / v["ms"]) for k, v in times.items()},
                "ratio": {k: _rounded(times["jaxseg"]["ms"] / v["ms"]) for k, v in times.items() if k not in own},
                "compile_s": {k: round(v, 1) for k, v in ours.compile_seconds[task].items()},
                "peak_bytes": ours.peak_bytes[task],
                "flops": ours.flops[task],
                "matmul_flops_per_second": round(rate),
                "utilisation": {k: round(ours.flops[task] / (times[k]["ms"] / 1e3 * rate), 4) for k in own},
            }
        )
    return rows


def threads_of(setting: Setting, available: Sequence[int]) -> int:
    """The number of threads asked for; raises ValueError for more than there are cores."""
    threads = setting.threads or len(available)
    if threads > len(available):
        raise ValueError(f"--threads {threads}: this process may use {len(available)} cores")
    return threads
