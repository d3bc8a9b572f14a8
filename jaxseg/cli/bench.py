"""`jaxseg bench`: the zoo measured, beside PyTorch where it is installed; and two such files compared."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import jax
import tyro

from jaxseg import bench
from jaxseg.bench.measure import Peers, Task, threads_of
from jaxseg.cli.arguments import Size, demand_output, demand_positive, nearest_model
from jaxseg.models import MODELS
from jaxseg.runlog import write_whole

__all__ = ["Bench", "bench_command"]

PEERS = pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks" / "torch_models.py"


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure models: forward pass, training step, compile time, memory, utilisation; or compare two files of it."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names that `jaxseg models` lists, or of kernels: see --kernels."""
    all: bool = False
    """Every model of the zoo."""
    kernels: bool = False
    """Every kernel, forward and, as its training step, its gradient: NMS, RoIAlign, k-means and others."""
    size: Size = (128, 128)
    """Height x width of an image."""
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
    """`cpu` counts processor time, which neighbours hardly change: use it with --threads 1 on a shared machine."""
    peers: bool = True
    """Measure PyTorch's model of that name too, where it is installed and this is a checkout."""
    compiled: bool = False
    """Also by torch.compile."""
    out: pathlib.Path | None = None
    """A JSON file that the rows are added to; what it has at this setting and of this source is passed over."""
    compare: tuple[pathlib.Path, pathlib.Path] | None = None
    """Two such files: say what changed from the first to the second beyond noise; exit code 1 where any is worse."""
    table: pathlib.Path | None = None
    """Such a file: print its rows as Markdown."""


def _torch_peers(config: Bench, threads: int) -> tuple[Peers | None, str]:
    """PyTorch's models, or why there are none."""
    if not config.peers:
        return None, "not asked for"
    if importlib.util.find_spec("torch") is None:
        return None, "not installed"
    if not PEERS.is_file():
        return None, "its models come with a checkout of the repository"
    spec: Any = importlib.util.spec_from_file_location("torch_models", PEERS)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        return None, f"{error}; pip install 'jaxseg[parity]'"
    return module.peers(config.classes, config.dtype, threads=threads, compiled=config.compiled), ""


@contextlib.contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """This process on its first `count` cores: XLA makes as many threads as it may use cores."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


FIGURES = ("images_per_second", "utilisation", "peak_bytes", "compile_s")  # of jaxseg's programs, beside their times
LARGEST = 1e30  # figure in a row: beyond floats lie integers that JSON may hold, and infinity


def _is_row(row: Any) -> bool:
    """Whether it has what comparisons and tables read of it."""
    try:
        bench.label(row)
        each = [row["times"][what] for what in {"jaxseg", *row["ratio"]}] + list(row["times"].values())
        figures = [row.get(name, {"jaxseg": 0}) for name in FIGURES]
        return (
            all(1 / LARGEST < t["ms"] < LARGEST and 0 <= t["spread_ms"] < LARGEST for t in each)
            and all(0 <= ms < LARGEST for t in each for ms in t.get("each_ms", [0]))
            and all("jaxseg" in figure for figure in figures)
            and all(0 <= value < LARGEST for figure in (*figures, row["ratio"]) for value in figure.values())
            and isinstance(row["task"], str)
            and isinstance(row["model"], str)
        )
    except (LookupError, TypeError, AttributeError, ValueError):
        return False


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no rows of `jaxseg bench`")
    if wrong := [i for i, row in enumerate(rows) if not _is_row(row)]:
        if all(isinstance(row, dict) and {"what", "times"} <= row.keys() for row in rows):
            raise ValueError(
                f"{path} holds rows of experiments/benchmarks/detection.py, not of `jaxseg bench`; "
                "experiments/readme_tables.py makes tables of those under experiments/results"
            )
        raise ValueError(f"{path} holds no rows of `jaxseg bench`: entry {wrong[0]} is none")
    return rows


def _add(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    kept = _read(path) if path.exists() else []
    write_whole(path, json.dumps(kept + rows, indent=1) + "\n")


def _measured(path: pathlib.Path | None, name: str, asked: dict[str, Any], tasks: Sequence[str]) -> bool:
    """Whether the file has the rows of all tasks of a model, of this source and setting."""
    rows = _read(path) if path is not None and path.exists() else []
    same = [row for row in rows if row["model"] == name and all(row.get(k) == v for k, v in asked.items())]
    return set(tasks) <= {task for row in same for task in row.get("tasks", [row["task"]])}


def bench_command(config: Annotated[Bench, tyro.conf.arg(name="")]) -> int:
    """Measure models beside PyTorch, compare two measurements, or print one as a table.

    Times are medians over --rounds, taken in turns in one process after one to warm up; the train step is the same
    work in both: train mode, cross-entropy, gradients, SGD with momentum. `jaxseg update` is what `jaxseg train`
    does, which besides normalises the images and scores them.
    """
    if (config.compare or config.table) and (config.models or config.all or config.kernels or config.out):
        raise ValueError("--compare and --table measure nothing: leave models and --out out")
    if config.compare is not None:
        comparison = bench.compare(*map(_read, config.compare))
        print(bench.comparison_table(comparison))
        return 1 if comparison.worse else 0
    if config.table is not None:
        rows = _read(config.table)
        print("\n".join(table(rows) for table in (bench.zoo_table, bench.ratio_table)))
        return 0
    demand_positive(batch=config.batch, classes=config.classes, rounds=config.rounds, threads=config.threads or None)
    names = [*(MODELS if config.all else ()), *(bench.KERNELS if config.kernels else ()), *config.models]
    if not names or (config.all and config.models):
        raise ValueError("name models, or --all, or --kernels; or give --compare A.json B.json, or --table FILE.json")
    for name in names:
        if name not in MODELS and name not in bench.KERNELS:
            kernels = ", ".join(bench.KERNELS)
            raise ValueError(f'no model "{name}"; did you mean "{nearest_model(name)}"? Kernels are {kernels}')
    if config.out is not None:
        demand_output(config.out, file=True)
    fields = [f.name for f in dataclasses.fields(bench.Setting)]
    setting = bench.Setting(**{name: getattr(config, name) for name in fields})
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    setting = dataclasses.replace(setting, threads=threads_of(setting, cores))
    failed = []
    with _on_cores(setting.threads), bench.without_compilation_cache():
        peers, why = _torch_peers(config, setting.threads)
        if why:
            print(f"without PyTorch: {why}")
        rate, now = bench.matmul_rate(setting), bench.facts()
        print(f"{now['device']}: matrix products at {rate / 1e9:,.0f} GFLOP/s", flush=True)
        asked = {k: v for k, v in dataclasses.asdict(setting).items() if k not in ("tasks", "rounds")}
        asked |= {"size": list(setting.size), "commit": now["commit"], "diff": now.get("diff")}
        asked |= {} if peers is None else {"peers": True, "compiled": config.compiled}
        for name in names:
            if _measured(config.out, name, asked, setting.tasks):
                print(f"{name} is in {config.out} already")
                continue
            try:
                rows = bench.measure(bench.subject(name, setting), rate, peers)
            except (ValueError, jax.errors.JaxRuntimeError) as error:  # a size that it does not take, no memory left
                failed.append(f"{name}: {str(error).splitlines()[0]}")
                continue
            print(bench.zoo_table(rows), flush=True)
            if config.out is not None:  # after each model: the next may not fit in memory
                with_what = {"tasks": list(setting.tasks), "peers": peers is not None, "compiled": config.compiled}
                _add(config.out, [{**row, **now, **with_what} for row in rows])
    for line in failed:
        print(f"not measured: {line}")
    return 1 if failed else 0
