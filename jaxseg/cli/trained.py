"""What the words `RUN`, or `MODEL --weights FILE`, stand for: a model with its weights."""

import os
import pathlib
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import PyTree

from jaxseg.cli.arguments import nearest_model
from jaxseg.data import voc_palette
from jaxseg.models import MODELS, create_model
from jaxseg.runs import load_variables, model_from_config
from jaxseg.weights import load_model, load_weights

__all__ = ["Trained", "load_trained"]

DESCRIPTIONS = ("model.json", "config.json")


class Trained(NamedTuple):
    """A model, its variables, the size at which it sees images, and the colours of its classes."""

    model: nn.Module
    variables: PyTree
    size: tuple[int, int]
    palette: np.ndarray


def _described(path: pathlib.Path) -> bool:
    """Whether it is a folder that `jaxseg convert` wrote, or a hub's."""
    return any((path / name).is_file() for name in DESCRIPTIONS) and not (path / "checkpoints").is_dir()


def load_trained(name: str, weights: pathlib.Path | None, classes: int, size: tuple[int, int] | None) -> Trained:
    """The model `name` with `weights`; or that of the folder `name`, of a run or a converted checkpoint.

    `classes` are those of a published file, which does not say; `size` the one asked for, 512 x 512 where neither
    that nor a run says one. Raises ValueError and FileNotFoundError for words that fit nothing.
    """
    if weights is None:
        if name in MODELS:
            raise ValueError(f"{name} is a model without weights; add --weights, or name the folder of a run")
        weights = pathlib.Path(name)
        if not (weights / "checkpoints").is_dir() and not _described(weights):
            near = "" if os.sep in name or weights.exists() else f"; of models: {nearest_model(name)}"
            raise FileNotFoundError(f"{name} is not the folder of a run (it holds no checkpoints){near}")
    elif name not in MODELS:
        raise ValueError(f'no model "{name}"; did you mean "{nearest_model(name)}"? `jaxseg models` lists all')
    elif weights.is_file():
        model = create_model(name, classes)
        return Trained(model, load_weights(weights, model), size or (512, 512), voc_palette(classes))
    if _described(weights):
        model, variables = load_model(weights)
        if name in MODELS and type(model) is not type(create_model(name, classes)):
            raise ValueError(f"{weights} holds a {type(model).__name__}, not {name}; leave the model's name out")
        count = getattr(model, "num_classes", None) or classes
        return Trained(model, variables, size or (512, 512), voc_palette(count))
    variables, trained = load_variables(weights)
    if name in MODELS and trained["model"] != name:
        raise ValueError(f"{weights} holds {trained['model']}, not {name}; name that model")
    if size not in (None, tuple(trained["size"])):
        raise ValueError(f"{weights} sees images at {'x'.join(map(str, trained['size']))}; leave --size out")
    palette = np.array(trained["palette"], np.uint8)
    return Trained(model_from_config(trained), variables, tuple(trained["size"]), palette)
