"""`jaxseg convert`: a published checkpoint, or a run's, to a folder that says what it is."""

import dataclasses
import pathlib
import sys
from typing import Annotated, Any

import jax
import tyro

from jaxseg.cli.arguments import demand_output, demand_positive, nearest_model
from jaxseg.cli.trained import demand_classes, load_grown
from jaxseg.models import MODELS
from jaxseg.runs import has_grown, load_described
from jaxseg.weights import convert, save_model

__all__ = ["Convert", "convert_command"]


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a checkpoint to model.safetensors, in its publisher's layout, and model.json, for jaxseg.load_model."""

    model: tyro.conf.Positional[str]
    """The model's name."""
    weights: tyro.conf.Positional[pathlib.Path]
    """A checkpoint (.pth, .pt, .bin, .ckpt, .safetensors), a hub folder of segmentation-models-pytorch, or a run's."""
    out: pathlib.Path
    """The folder to write."""
    classes: int | None = None
    """Number of classes; default: the checkpoint's. With another, everything is kept but the head."""


def _convert_run(config: Convert) -> int:
    """The newest weights of a run: its model without what only says how it was computed."""
    about: dict[str, Any] = {"source": config.weights.resolve().name}
    if has_grown(config.weights):
        fields, variables = load_grown(config.weights)
        name, count = fields.pop("name"), fields.pop("num_classes")
    else:
        _, variables, trained = load_described(config.weights)
        name, count, fields = trained["model"], trained["num_classes"], trained["fields"]
        about |= {k: trained[k] for k in ("class_names", "size", "palette")}
    if name != config.model:
        raise ValueError(f"{config.weights} holds {name}, not {config.model}; name that model")
    demand_classes(config.weights, count, config.classes)
    fields = {k: v for k, v in fields.items() if k not in ("dtype", "remat")}
    save_model(config.out, variables, config.model, count, about=about, **fields)
    print(f"wrote the weights of {config.weights}, a {config.model}, to {config.out}")
    return 0


def convert_command(config: Annotated[Convert, tyro.conf.arg(name="")]) -> int:
    """Convert a published checkpoint, or a run, to safetensors and JSON."""
    if config.model not in MODELS:
        raise ValueError(
            f'no model "{config.model}"; did you mean "{nearest_model(config.model)}"? `jaxseg models` lists all'
        )
    demand_output(config.out)
    if (config.weights / "checkpoints").is_dir() or has_grown(config.weights):
        return _convert_run(config)
    demand_positive(classes=config.classes)
    loaded = convert(config.model, config.weights, config.out, config.classes)
    if loaded.left_out:
        print(f"warning: {loaded.left_out}", file=sys.stderr)
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded.variables["params"]))
    print(f"{config.weights} is {loaded.publisher}'s {config.model}, {count:,} parameters: wrote {config.out}")
    return 0
