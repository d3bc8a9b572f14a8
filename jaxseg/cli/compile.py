"""`jaxseg compile`: what a model costs on a TPU that is not here."""

import dataclasses
import json
import pathlib
import sys
import time
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import jaxlib
import tyro
from rich.console import Console
from rich.table import Table

from jaxseg import aot, parallel
from jaxseg.cli.arguments import Size, nearest_model
from jaxseg.cli.train import mesh_axes
from jaxseg.models import MODELS, create_model

__all__ = ["Compile", "compile_command"]


@dataclasses.dataclass(frozen=True)
class Compile:
    """Compile a sharded training step or forward pass for a named TPU topology, and print its cost on each chip."""

    model: tyro.conf.Positional[str | None] = None
    """A name that `jaxseg models` lists."""
    all: bool = False
    """Every model of the zoo."""
    topology: str = "v5e:2x4"
    """Chip and shape of the slice."""
    batch: int = 64
    """Global batch."""
    size: Size = (512, 512)
    """Height x width of an image."""
    train: bool = False
    """The training step; the default."""
    apply: bool = False
    """The forward pass."""
    shard: str = ""
    """Mesh axes, such as `data=4,spatial=2`; default: all chips on data."""
    classes: int = 21
    """Number of classes."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What the model computes in."""
    out: pathlib.Path | None = None
    """A JSON file for the figures; rows for other programs in it stay."""


def _row(config: Compile, name: str, what: str) -> dict[str, Any]:
    chip = aot.CHIPS[config.topology.split(":")[0]]
    devices = parallel.topology_devices(config.topology)
    placement = parallel.over_mesh(parallel.make_mesh(devices=devices, **mesh_axes(config.shard)))
    if config.batch % placement.batch_devices:
        raise ValueError(f"--batch {config.batch} does not divide over {placement.batch_devices} chips")
    model = create_model(name, config.classes, dtype=jnp.dtype(config.dtype).type)
    start = time.perf_counter()
    compiler = aot.compile_train if what == "train" else aot.compile_apply
    cost = compiler(model, placement, config.size, config.batch, devices=len(devices))
    bound = cost.roofline(chip)
    return {
        "model": name,
        "program": what,
        "topology": config.topology,
        "mesh": placement.name,
        "batch": config.batch,
        "size": list(config.size),
        "dtype": config.dtype,
        **cost._asdict(),
        "fits": cost.peak <= chip.memory,
        "intensity": cost.intensity,
        "roofline_seconds": bound,
        "bound": "memory" if cost.bytes / chip.bandwidth > cost.flops / chip.flops else "arithmetic",
        "images_per_second_at_most": config.batch / bound,
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def _show(rows: list[dict[str, Any]], config: Compile) -> None:
    chip = aot.CHIPS[config.topology.split(":")[0]]
    table = Table(title=f"{config.topology}, batch {config.batch} of {'x'.join(map(str, config.size))}, each chip")
    for title in ("program", "peak GB", "arguments", "temporaries", "GFLOPs", "GB moved", "FLOPs/byte"):
        table.add_column(title, justify="right")
    for title in ("matmul", "roofline ms", "collectives"):
        table.add_column(title, justify="right")
    for row in rows:
        peak = f"{row['peak'] / 1e9:.2f} of {chip.memory / 1e9:.0f}" + ("" if row["fits"] else " DOES NOT FIT")
        table.add_row(
            f"{row['model']} {row['program']}",
            peak,
            f"{row['arguments'] / 1e9:.2f}",
            f"{row['temporaries'] / 1e9:.2f}",
            f"{row['flops'] / 1e9:,.0f}",
            f"{row['bytes'] / 1e9:.2f}",
            f"{row['intensity']:.0f}",
            f"{row['matmul_share']:.1%}",
            f"{row['roofline_seconds'] * 1e3:.2f} {row['bound']}",
            "\n".join(f"{n} {kind} {size / 1e6:.1f} MB" for kind, (n, size) in sorted(row["collectives"].items())),
        )
    Console(width=None if Console().is_terminal else 200).print(table)


def _merge(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    identity = ("model", "program", "topology", "mesh", "batch", "size", "dtype")
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {json.dumps([row[k] for k in identity]): row for row in [*kept, *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    path.write_text(json.dumps({"versions": versions, "rows": list(new.values())}, indent=1) + "\n")


def compile_command(config: Annotated[Compile, tyro.conf.arg(name="")]) -> int:
    """Compile for a TPU that is not here; print memory, FLOPs, collectives and the roofline of each chip."""
    if config.all == (config.model is not None):
        raise ValueError("name one model, or --all")
    if config.model is not None and config.model not in MODELS:
        raise ValueError(f'no model "{config.model}"; did you mean "{nearest_model(config.model)}"?')
    if config.topology.split(":")[0] not in aot.CHIPS:
        raise ValueError(f"no figures for the chip of {config.topology}; there are {', '.join(aot.CHIPS)}")
    programs = [what for what in ("train", "apply") if getattr(config, what)] or ["train"]
    failed = []
    rows: list[dict[str, Any]] = []
    for name in MODELS if config.all else (config.model,):
        for what in programs:
            try:
                row = _row(config, str(name), what)
            except ValueError as error:
                if not config.all:
                    raise
                failed.append(f"{name} {what}: {error}")
                continue
            rows.append(row)
            if config.out:
                _merge(config.out, [row])  # each as it comes: a zoo takes hours
    _show(rows, config)
    for line in failed:
        print(f"not compiled: {line}", file=sys.stderr)
    return 1 if failed or not all(row["fits"] for row in rows) else 0
