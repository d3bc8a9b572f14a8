"""Types of the command line, and what several commands do with them."""

import contextlib
import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxseg import parallel
from jaxseg.cli import one_message
from jaxseg.data import DataError, FolderSource, ShapesSource, check_data, folder, folder_splits, shapes
from jaxseg.data.check import DataReport
from jaxseg.runlog import require_writable

__all__ = [
    "DISTRIBUTED",
    "Size",
    "bar",
    "checked",
    "class_share",
    "demand_output",
    "demand_positive",
    "demand_shared",
    "describe",
    "evaluation_split",
    "initialize_distributed",
    "mesh_axes",
    "nearest_model",
    "one_message",
    "open_split",
    "placement_of",
    "run_experiment",
]


DISTRIBUTED = "Several processes: `auto` on a cluster that JAX knows, else `ADDRESS:PORT,PROCESSES,THIS`."


def _size(words: list[str]) -> tuple[int, int]:
    parts = words[0].lower().split("x")
    if len(parts) == 1:
        parts *= 2
    if len(parts) != 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise ValueError(f"a size is height x width in pixels, such as 360x480 or 256, not {words[0]!r}")
    return int(parts[0]), int(parts[1])


Size = Annotated[
    tuple[int, int],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="HxW",
        instance_from_str=_size,
        is_instance=lambda x: isinstance(x, tuple) and len(x) == 2,
        str_from_instance=lambda size: [f"{size[0]}x{size[1]}"],
    ),
]


def nearest_model(name: str) -> str:
    """The name in the zoo that is nearest to `name`."""
    from jaxseg.models import MODELS

    return difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)[0]


def initialize_distributed(words: str) -> None:
    """Joins the other processes before any device is used; one that is lost brings the others down in half a minute."""
    lost: Any = {"heartbeat_timeout_seconds": 30}
    if words == "auto":
        jax.distributed.initialize(**lost)
        return
    parts = words.split(",")
    host, _, port = parts[0].rpartition(":")
    if len(parts) != 3 or not host or not all(p.isdecimal() for p in (port, *parts[1:])):
        raise ValueError(
            f"--distributed is auto or ADDRESS:PORT,PROCESSES,THIS, such as 10.0.0.1:1234,2,0; got {words}"
        )
    jax.distributed.initialize(parts[0], int(parts[1]), int(parts[2]), **lost)


def run_experiment(main: Callable[[Any], Any], config: type, doc: str | None) -> None:
    """Runs an experiment's `main` on its config from the command line, which takes `--distributed` besides."""
    several = Annotated[str | None, tyro.conf.arg(help=DISTRIBUTED)]
    fields: list[Any] = [("config", Annotated[config, tyro.conf.arg(name="")]), ("distributed", several, None)]
    words: Any = tyro.cli(dataclasses.make_dataclass("Words", fields, frozen=True), description=doc)
    with one_message():
        if words.distributed:
            initialize_distributed(words.distributed)
        main(words.config)


@contextlib.contextmanager
def bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar as a function of (done, total); it draws only where a terminal is."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console()
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def open_split(data: str, split: str, ignore_label: int | None, fraction: float) -> FolderSource | ShapesSource:
    """The split of `shapes` or of a folder."""
    if data == "shapes":
        with bar("drawing shapes") as progress:
            return shapes(split, progress=progress)
    return folder(pathlib.Path(data), split, ignore_label=ignore_label, validation_fraction=fraction, strict=False)


def evaluation_split(data: str) -> str:
    """The split to evaluate on while training: the validation part, else the test part."""
    if data == "shapes":
        return "validation"
    splits: Sequence[str] = folder_splits(pathlib.Path(data))
    for name in ("val", "validation", "valid", "test"):
        if name in splits:
            return name
    raise DataError(f"{data}: no split to evaluate on among {', '.join(splits)}; add val/ or test/")


def checked(source: FolderSource | ShapesSource, what: str) -> DataReport:
    """Reads the whole source behind a progress bar; raises DataError with every bad file."""
    with bar(f"checking {what}") as progress:
        return check_data(source, progress=progress)


def describe(report: DataReport) -> str:
    """A line of what a source holds."""
    low, high = ("x".join(map(str, size)) for size in (report.smallest, report.largest))
    pixels = report.class_pixels.sum() + report.ignored_pixels
    size = low if low == high else f"{low} to {high}"
    ignored = report.ignored_pixels / max(int(pixels), 1)
    return f"{report.images} images of {size}, {len(report.class_names)} classes, {ignored:.1%} of pixels ignored"


def class_share(report: DataReport) -> np.ndarray:
    """Each class's share of the labelled pixels."""
    return report.class_pixels / max(int(report.class_pixels.sum()), 1)


def placement_of(kind: str, shard: str) -> parallel.Placement:
    """The placement that `--parallel` and `--shard` ask for."""
    if kind == "pmap":
        if shard:
            raise ValueError("--shard belongs to --parallel jit; pmap is data-parallel over all devices")
        return parallel.over_pmap()
    return parallel.over_mesh(parallel.make_mesh(**mesh_axes(shard)))


def demand_output(out: pathlib.Path, *, file: bool = False) -> None:
    """Raises OSError where `--out`, a folder or a `file`, cannot be written to, before anything is loaded."""
    if not file:
        return require_writable(out)
    require_writable(out.parent)
    if out.is_dir():
        raise IsADirectoryError(f"--out {out} is a folder; name a file in it")
    if out.exists() and not os.access(out, os.W_OK):
        raise PermissionError(f"--out {out} cannot be written over; mend that, or name another file")


def demand_positive(**options: int | None) -> None:
    """Raises ValueError for the first option that is given and below 1."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is at least 1, got {value}")


def demand_shared(size: tuple[int, int], placement: parallel.Placement) -> None:
    """Raises ValueError for images whose height or width does not divide over the devices that share it."""
    good = [-(-side // n) * n for side, n in zip(size, placement.image_devices, strict=True)]
    if [*size] != good:
        raise ValueError(
            f"--size {size[0]}x{size[1]} does not divide over {placement.name}; use one such as {good[0]}x{good[1]}"
        )


def mesh_axes(shard: str) -> dict[str, Any]:
    """Axes and sizes of `data=4,fsdp=2`."""
    axes: dict[str, Any] = {}
    for part in filter(None, shard.split(",")):
        name, _, size = part.partition("=")
        known = name in ("data", "fsdp", "spatial", "width")
        if not known or not size.isdecimal() or int(size) < 1 or name in axes:
            raise ValueError(
                f"--shard is made of data=N, fsdp=N, spatial=N and width=N, each at most once and 1 or more, got "
                f"{part!r} in {shard!r}; e.g. data=4,fsdp=2"
            )
        axes[name] = int(size)
    return axes
