"""`jaxseg convert`: a published checkpoint to a folder that says what it is."""

import dataclasses
import pathlib
import sys
from typing import Annotated

import jax
import tyro

from jaxseg.cli.arguments import nearest_model
from jaxseg.models import MODELS
from jaxseg.weights import convert

__all__ = ["Convert", "convert_command"]


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a published checkpoint to model.safetensors and model.json, which jaxseg.load_model reads."""

    model: tyro.conf.Positional[str]
    """The model's name."""
    weights: tyro.conf.Positional[pathlib.Path]
    """A checkpoint (.pth, .pt, .bin, .safetensors), or a hub folder of segmentation-models-pytorch."""
    out: pathlib.Path
    """The folder to write."""
    classes: int | None = None
    """Number of classes; default: the checkpoint's. With another, everything is kept but the head."""


def convert_command(config: Annotated[Convert, tyro.conf.arg(name="")]) -> int:
    """Convert a published checkpoint to safetensors and JSON."""
    if config.model not in MODELS:
        raise ValueError(
            f'no model "{config.model}"; did you mean "{nearest_model(config.model)}"? `jaxseg models` lists all'
        )
    loaded = convert(config.model, config.weights, config.out, config.classes)
    if loaded.left_out:
        print(f"warning: {loaded.left_out}", file=sys.stderr)
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded.variables["params"]))
    print(f"{config.weights} is {loaded.publisher}'s {config.model}, {count:,} parameters: wrote {config.out}")
    return 0
