"""`jaxseg compile`: what a model costs on a TPU that is not here, or whether it lowers for a platform that is not."""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib
import tyro
from rich.console import Console
from rich.table import Table

from jaxseg import aot, parallel
from jaxseg.bench.tables import markdown
from jaxseg.cli.arguments import Size, demand_output, demand_positive, demand_shared, mesh_axes, nearest_model
from jaxseg.models import MODELS
from jaxseg.programs import is_trained_alone, sized_model
from jaxseg.runlog import write_whole

__all__ = ["Compile", "compile_command", "compile_markdown"]

WASTE = ("in float32", "padding", "GB copied", "gathers")
OF_CHIP = (
    *("peak GB", "GFLOPs", "GB moved", "FLOPs/byte", "matmul"),
    *WASTE,
    *("roofline ms", "img/s at most", "collectives"),
)
VALID = (572, 572)  # what U-Net's valid form takes where it refuses the size asked for


@dataclasses.dataclass(frozen=True)
class Compile:
    """Compile a sharded training step or forward pass for a named TPU topology, and print its cost on each chip."""

    model: tyro.conf.Positional[str | None] = None
    """A name that `jaxseg models` lists."""
    all: bool = False
    """Every model of the zoo; what --out holds is passed over, and what does not fit tried at half the batch."""
    topology: str = "v5e:2x4"
    """Chip and shape of the slice."""
    lower: Literal["cuda", "rocm", "tpu", "cpu"] | None = None
    """Lower for that platform instead, by jax.export, without its compiler: says whether the program exists there."""
    batch: int = 64
    """Global batch."""
    size: Size = (512, 512)
    """Height x width of an image."""
    train: bool = False
    """The training step; the default."""
    apply: bool = False
    """The forward pass."""
    shard: str = ""
    """Mesh axes, such as `data=4,spatial=2` or `spatial=4,width=2`; default: all chips on data."""
    classes: int = 21
    """Number of classes."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What the model computes in."""
    remat: bool = False
    """Recompute activations in the backward pass, where the model can."""
    quick: bool = False
    """Ask the compiler for its least effort: a third of its time, the same FLOPs and collectives, a training step's
    memory within a few percent; the traffic it estimates may differ more."""
    out: pathlib.Path | None = None
    """A JSON file for the figures, and beside it the same as .md; rows for other programs in it stay."""


def _model(config: Compile, name: str) -> tuple[nn.Module, tuple[int, int]]:
    """The model, and the size at which it is compiled: the one asked for, or the one that it takes."""
    fields: dict[str, Any] = {"dtype": jnp.dtype(config.dtype).type}
    model = sized_model(name, config.classes, config.size, **fields)
    if config.remat and hasattr(model, "remat"):
        model = model.clone(remat=True)
    return model, VALID if name == "unet_valid" and config.size != VALID and config.all else config.size


def _placement(config: Compile) -> parallel.Placement:
    return parallel.over_mesh(
        parallel.make_mesh(devices=parallel.topology_devices(config.topology), **mesh_axes(config.shard))
    )


def _identity(config: Compile, name: str, what: str) -> dict[str, Any]:
    model, size = _model(config, name)
    where: dict[str, Any] = {"platform": config.lower}
    if not config.lower:
        where = {"topology": config.topology, "mesh": _placement(config).name, "quick": config.quick}
    return {
        "model": name,
        "program": what,
        "batch": config.batch,
        "size": list(size),
        "dtype": config.dtype,
        "remat": bool(getattr(model, "remat", False)),
        **where,
    }


@contextlib.contextmanager
def _effort(quick: bool) -> Iterator[None]:
    """XLA's effort for what is compiled within."""
    before = jax.config.jax_optimization_level  # type: ignore[attr-defined]
    jax.config.update("jax_optimization_level", "O0" if quick else before)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _compiled(config: Compile, name: str, what: str) -> dict[str, Any]:
    chip = aot.CHIPS[config.topology.split(":")[0]]
    placement = _placement(config)
    model, size = _model(config, name)
    if config.batch % placement.batch_devices:
        raise ValueError(f"--batch {config.batch} does not divide over {placement.batch_devices} chips")
    demand_shared(size, placement)
    row = _identity(config, name, what)
    start = time.perf_counter()
    compiler = aot.compile_train if what == "train" else aot.compile_apply
    devices = placement.batch_devices * math.prod(placement.image_devices)
    try:
        with _effort(config.quick):
            cost = compiler(model, placement, size, config.batch, devices=devices)
    except jax.errors.JaxRuntimeError as error:  # the compiler's own word that it does not fit
        if "RESOURCE_EXHAUSTED" not in str(error) and "memory" not in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if "emory" in line or "xceeded" in line]
        return row | {"fits": False, "error": " ".join(lines)[:300]}
    bound = cost.roofline(chip)
    return {
        **row,
        **cost._asdict(),
        "fits": cost.peak <= chip.memory,
        "intensity": cost.intensity,
        "roofline_seconds": bound,
        "bound": "memory" if cost.bytes / chip.bandwidth > cost.flops / chip.flops else "arithmetic",
        "images_per_second_at_most": config.batch / bound,
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def _lowered(config: Compile, name: str, what: str) -> dict[str, Any]:
    model, size = _model(config, name)
    lower = aot.lower_train if what == "train" else aot.lower_apply
    assert config.lower is not None
    return _identity(config, name, what) | lower(model, size, config.batch, config.lower)._asdict()


def _megabytes(collectives: dict[str, Any]) -> Iterator[str]:
    for kind, (count, size) in sorted(collectives.items()):
        yield f"{count} {kind} {size / 1e6:.1f} MB"


def _program(row: dict[str, Any]) -> str:
    return row["program"] + (", quick" if row.get("quick") else "")


def _waste(row: dict[str, Any]) -> list[str]:
    """What a program that suits the chip has little of."""
    if "padding" not in row:  # an older file's
        return [""] * len(WASTE)
    copied = f"{row['copied'] / 1e9:.2f}"
    return [f"{row['float32_share']:.1%}", f"{row['padding']:.0%}", copied, str(row["indexed"])]


def compile_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows of a file as Markdown tables, one for what is compiled and one for what is lowered."""
    compiled, lowered = [], []
    for row in rows:
        shape = "x".join(map(str, (row["batch"], *row["size"])))
        first = [f"`{row['model']}`", _program(row), shape + (", remat" if row.get("remat") else "")]
        if "platform" in row:
            convolutions = " + ".join(f"{n} {dtype}" for dtype, n in sorted(row["convolutions"].items()))
            calls = ", ".join(f"{n} {target}" for target, n in sorted(row["custom_calls"].items()))
            counts = [f"{row[k]:,}" for k in ("operations", "transposes", "gathers")]
            lowered.append([*first, row["platform"], counts[0], convolutions, *counts[1:], calls])
        elif "error" in row:
            compiled.append([*first, row["topology"], "does not fit", *[""] * (len(OF_CHIP) - 1)])
        else:
            compiled.append(
                [
                    *first,
                    row["topology"],
                    f"{row['peak'] / 1e9:.2f}" + ("" if row["fits"] else " does not fit"),
                    f"{row['flops'] / 1e9:,.0f}",
                    f"{row['bytes'] / 1e9:.2f}",
                    f"{row['intensity']:.0f}",
                    f"{row['matmul_share']:.1%}",
                    *_waste(row),
                    f"{row['roofline_seconds'] * 1e3:.2f} {row['bound']}",
                    f"{row['images_per_second_at_most']:,.0f}",
                    "; ".join(_megabytes(row["collectives"])),
                ]
            )
    tables = []
    if compiled:
        tables.append(markdown(("model", "program", "batch x size", "topology", *OF_CHIP), compiled, left=4))
    if lowered:
        titles = ("platform", "operations", "convolutions", "transposes", "gathers", "custom calls")
        tables.append(markdown(("model", "program", "batch x size", *titles), lowered, left=4))
    return "\n".join(tables)


def _show(rows: list[dict[str, Any]], config: Compile) -> None:
    chip = aot.CHIPS[config.topology.split(":")[0]]
    table = Table(title=f"{config.topology}, {chip.memory / 1e9:.0f} GB: each chip")
    for title in ("program", "peak GB", "arguments", "temporaries", "GFLOPs", "GB moved", "FLOPs/byte"):
        table.add_column(title, justify="right")
    for title in ("matmul", *WASTE, "roofline ms", "collectives"):
        table.add_column(title, justify="right")
    for row in rows:
        shape = "x".join(map(str, (row["batch"], *row["size"])))
        name = f"{row['model']} {_program(row)}\n{shape}"
        if "error" in row:
            table.add_row(name, "DOES NOT FIT", row["error"])
            continue
        table.add_row(
            name,
            f"{row['peak'] / 1e9:.2f}" + ("" if row["fits"] else " DOES NOT FIT"),
            f"{row['arguments'] / 1e9:.2f}",
            f"{row['temporaries'] / 1e9:.2f}",
            f"{row['flops'] / 1e9:,.0f}",
            f"{row['bytes'] / 1e9:.2f}",
            f"{row['intensity']:.0f}",
            f"{row['matmul_share']:.1%}",
            *_waste(row),
            f"{row['roofline_seconds'] * 1e3:.2f} {row['bound']}",
            "\n".join(_megabytes(row["collectives"])),
        )
    Console(width=None if Console().is_terminal else 200).print(table)


IDENTITY = ("model", "program", "topology", "platform", "mesh", "batch", "size", "dtype", "remat", "quick")


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row.get(k) or None for k in IDENTITY])  # older rows lack the last


def _kept(path: pathlib.Path | None) -> dict[str, dict[str, Any]]:
    """The rows of a file by what they are of."""
    if path is None or not path.exists():
        return {}
    try:
        rows = json.loads(path.read_bytes())["rows"]
        compile_markdown(rows)  # as it will be, of these and the new ones
        return {_key(row): row for row in rows}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} holds no rows of `jaxseg compile`; choose another --out") from None


def _merge(path: pathlib.Path, row: dict[str, Any]) -> None:
    rows = list((_kept(path) | {_key(row): row}).values())
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    write_whole(path, json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    write_whole(path.with_suffix(".md"), compile_markdown(rows))


def _row(config: Compile, name: str, what: str) -> dict[str, Any]:
    """One program's row, from the file where a whole zoo is asked for and it is there."""
    if config.all and (there := _kept(config.out).get(_key(_identity(config, name, what)))):
        return there
    row = (_lowered if config.lower else _compiled)(config, name, what)
    if config.out:
        _merge(config.out, row)  # each as it comes: a zoo takes hours
    return row


def compile_command(config: Annotated[Compile, tyro.conf.arg(name="")]) -> int:
    """Compile for a TPU that is not here; print memory, FLOPs, collectives and the roofline of each chip.

    With --lower cuda the programs are lowered for GPUs instead. The exit code is 1 where one does not compile or fit.
    """
    demand_positive(batch=config.batch, classes=config.classes)
    if config.all == (config.model is not None):
        raise ValueError("name one model, or --all")
    if config.model is not None and config.model not in MODELS:
        raise ValueError(f'no model "{config.model}"; did you mean "{nearest_model(config.model)}"?')
    if config.topology.split(":")[0] not in aot.CHIPS:
        raise ValueError(f"no figures for the chip of {config.topology}; there are {', '.join(aot.CHIPS)}")
    if config.lower and (config.shard or config.quick or config.topology != Compile.topology):
        raise ValueError("--shard, --quick and --topology are of programs that are compiled: --lower knows no devices")
    if config.out is not None:
        if config.out.suffix == ".md":
            raise ValueError(f"--out {config.out} is the file of figures, such as {config.out.with_suffix('.json')}")
        demand_output(config.out, file=True)
    _kept(config.out)  # before a program is compiled that could not be kept
    programs = [what for what in ("train", "apply") if getattr(config, what)] or ["train"]
    failed = []
    rows: list[dict[str, Any]] = []
    for name in MODELS if config.all else (str(config.model),):
        for what in programs:
            if config.all and what == "train" and not is_trained_alone(_model(config, name)[0]):
                continue  # in its generator's step
            asked = config
            while True:
                try:
                    rows.append(_row(asked, name, what))
                except (ValueError, NotImplementedError) as error:
                    if not config.all:
                        raise
                    failed.append(f"{name} {what}: {error}")
                    break
                print(f"{name} {what}, batch {asked.batch}: done", file=sys.stderr, flush=True)
                if not config.all or rows[-1].get("fits", True) or asked.batch % 2:
                    break
                asked = dataclasses.replace(asked, batch=asked.batch // 2)
    if config.lower:
        print(compile_markdown(rows))
    else:
        _show(rows, config)
    for line in failed:
        print(f"not compiled: {line}", file=sys.stderr)
    last = {(row["model"], row["program"]): row.get("fits", True) for row in rows}  # of several batches the least
    return 1 if failed or not all(last.values()) else 0
