"""`jaxseg models` and `jaxseg check-data`: looking before running."""

import dataclasses
import functools
import pathlib
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from jaxseg.cli.arguments import Size, bar, checked, class_share, describe, nearest_model, open_split
from jaxseg.data import DataError, folder_splits
from jaxseg.models import MODELS, create_model, model_source, scores_classes

__all__ = ["CheckData", "Models", "check_data_command", "models_command"]


@dataclasses.dataclass(frozen=True)
class Models:
    """List the zoo: parameters and source; of models named, FLOPs of a forward pass too."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Only these, with their FLOPs."""
    size: Size = (512, 512)
    """Height x width of the image that the FLOPs are for."""
    classes: int = 21
    """Number of classes."""


@dataclasses.dataclass(frozen=True)
class CheckData:
    """Read every file of a data set, and report what is wrong, or what it holds."""

    data: tyro.conf.Positional[pathlib.Path]
    """A folder of images and masks."""
    ignore_label: int | None = None
    """A label to ignore, beside 255."""
    validation_fraction: float = 0.1
    """Share of a folder without splits that is kept for evaluation."""


def _cost(model: nn.Module, size: tuple[int, int], flops: bool) -> tuple[int, str]:
    """Parameters, and GFLOPs of one image of `size`, or where the model refuses it one that it takes."""
    key = jax.random.key(0)
    for shape in (size, (512, 512), (572, 572)):  # the last is that of U-Net's valid form
        images = jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32)
        inputs = model.inputs(images) if hasattr(model, "inputs") else (images,)
        try:
            variables = jax.eval_shape(functools.partial(model.init, train=False), key, *inputs)
        except ValueError:
            continue
        count = sum(x.size for x in jax.tree.leaves(variables["params"]))
        if not flops:
            return count, ""
        height, width = (model.resolution, model.resolution) if hasattr(model, "resolution") else shape
        lowered = jax.jit(functools.partial(model.apply, train=False)).lower(variables, *inputs)
        said = f"{(lowered.cost_analysis() or {}).get('flops', float('nan')) / 1e9:,.1f}"
        return count, said if (height, width) == size else f"{said} ({height}x{width})"
    raise ValueError(f"{type(model).__name__} takes neither {size} nor 512x512 nor 572x572; choose another --size")


def models_command(config: Annotated[Models, tyro.conf.arg(name="")]) -> int:
    """List the zoo, or the models named with what a forward pass costs."""
    for name in config.names:
        if name not in MODELS:
            raise ValueError(f'no model "{name}"; did you mean "{nearest_model(name)}"? `jaxseg models` lists all')
    table = Table(title=f"jaxseg models, {config.classes} classes")
    table.add_column("model", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    if config.names:
        table.add_column("GFLOPs at " + "x".join(map(str, config.size)), justify="right")
    table.add_column("source", overflow="fold")
    names = config.names or tuple(MODELS)
    with bar("tracing models") as progress:
        for done, name in enumerate(names):
            progress(done, len(names))
            model = create_model(name, config.classes if scores_classes(name) else None)
            count, flops = _cost(model, config.size, bool(config.names))
            table.add_row(name, f"{count:,}", *([flops] if config.names else []), model_source(name))
    Console(width=None if Console().is_terminal else 160).print(table)
    return 0


def check_data_command(config: Annotated[CheckData, tyro.conf.arg(name="")]) -> int:
    """Check a folder of images and masks before training on it."""
    problems: list[str] = []
    for split in folder_splits(config.data):
        try:
            source = open_split(str(config.data), split, config.ignore_label, config.validation_fraction)
            report = checked(source, split)
        except DataError as error:
            problems += [f"{split}: {problem}" for problem in error.problems]
            continue
        print(f"{split}: {describe(report)}")
        for name, share, images in zip(report.class_names, class_share(report), report.class_images, strict=True):
            print(f"  {name:20} {share:7.2%} of labelled pixels, in {images} images")
    if problems:
        raise DataError(*problems, heading=f"{config.data}: {len(problems)} problem(s)")
    print(f"{config.data} is sound")
    return 0
