"""A published checkpoint to a folder that says what model it is, and such a folder to a model."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import PyTree

from jaxseg.backbones import BACKBONES, described_backbone
from jaxseg.layers import NORMS
from jaxseg.models import create_model, scores_classes
from jaxseg.models.adain_transfer import ENCODERS, AdaINTransfer
from jaxseg.models.pspnet import POOLS
from jaxseg.weights.files import of_run, read_weights, weights_file
from jaxseg.weights.folder import describing, description, read_json
from jaxseg.weights.genforce import genforce_fields, network_of
from jaxseg.weights.published import (
    GENERATION,
    Loaded,
    from_published,
    load_published,
    no_aux,
    recognize,
    save_weights,
)
from jaxseg.weights.wrapped import WeightsMismatch

__all__ = ["LoadedModel", "convert", "load_model", "published_arguments", "save_model"]

PREPROCESSING = {  # of every publisher's, and of jaxseg.data.normalize
    "channels": "RGB",
    "range": [0, 1],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


class LoadedModel(NamedTuple):
    """A model and its weights: `model.apply(variables, images, train=False)`."""

    model: nn.Module
    variables: PyTree


def load_model(folder: str | pathlib.Path) -> LoadedModel:
    """The model that a folder describes, with its weights: `convert`'s, or segmentation-models-pytorch's hub folder.

    Images are `[N, H, W, 3]`, ImageNet-normalised (`jaxseg.data.normalize`). Raises FileNotFoundError where the
    folder describes no model or holds no weights, WeightsMismatch where they do not fit.
    """
    folder = pathlib.Path(folder)
    described = description(folder)
    if described is None:
        raise FileNotFoundError(
            f"{folder} describes no model: it holds neither model.json nor config.json{of_run(folder)}"
        )
    with describing(folder):
        model = create_model(**described)
        return LoadedModel(model, load_published(weights_file(folder), model).variables)


def _jsonable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, backbones, encoders, norms and poolings by their names; ValueError for one that JSON cannot hold."""
    names = {id(constructor): name for name, constructor in (BACKBONES | ENCODERS | NORMS | POOLS).items()}
    plain = {k: names.get(id(v), described_backbone(v)) for k, v in fields.items()}
    for field, value in plain.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(f"model.json cannot hold the field {field}={value}") from error
    return plain


def save_model(
    folder: str | pathlib.Path,
    variables: Mapping[str, Any],
    name: str,
    num_classes: int | None,
    *,
    about: Mapping[str, Any] | None = None,
    **fields: Any,
) -> None:
    """Writes `variables` of `create_model(name, num_classes, **fields)` as `load_model` reads them.

    `model.safetensors` has the names of the model's publisher, or of our own tree where it has none;
    `model.json` the arguments of `create_model`, the preprocessing, and what `about` says.
    """
    folder = pathlib.Path(folder)
    model = create_model(name, num_classes, **fields)
    described = {"name": name, "num_classes": num_classes, **_jsonable(fields)}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "model.safetensors", model, variables)
    generates = isinstance(model, (*GENERATION, AdaINTransfer))  # of latents, or of images in [0, 1]
    seen = {} if generates else {"preprocessing": PREPROCESSING}
    text = json.dumps({"model": described, **seen, **(about or {})}, indent=1)
    (folder / "model.json").write_text(text + "\n")


def published_arguments(
    name: str, path: str | pathlib.Path, num_classes: int | None = None, **fields: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Arguments of `create_model` for the model of that name whose checkpoint is at `path`, and its state_dict.

    The classes are those of the file unless `num_classes` says others. The model has the fields that its publisher's
    has, and no auxiliary head where the file has none. Raises WeightsMismatch where the file is not of such a model.
    """
    path = pathlib.Path(path)
    file = path
    if path.is_dir():
        file, described = weights_file(path), dict(description(path) or {})
        theirs = described.pop("name", name)
        with describing(path):
            one, other = (create_model(n, 1 if scores_classes(n) else None) for n in (name, theirs))
            of_name = type(one) is type(other)
        if not of_name:
            raise WeightsMismatch(f"{path} is of {theirs}, not {name}; name that model")
        described.pop("num_classes", None)
        fields = described | fields
    state = read_weights(file)
    model: Any = create_model(name, (num_classes or 1) if scores_classes(name) else num_classes, **fields)
    if isinstance(model, AdaINTransfer):
        return {"name": name, "num_classes": None, **fields}, state
    if isinstance(model, GENERATION):
        if any(entry.startswith("params/") for entry in state):  # our own names, which say nothing
            return {"name": name, "num_classes": num_classes or 0, **fields}, state
        state = dict(network_of(state, model))
        found = genforce_fields(state, model)
        count = max(found.pop("num_classes") - (getattr(model, "condition", "") == "auxiliary"), 0)  # less the score
        return {"name": name, "num_classes": count if num_classes is None else num_classes, **found, **fields}, state
    if getattr(model, "aux", None) and not any("aux" in entry for entry in state):
        fields = {"aux": no_aux(model)} | fields
    known = recognize(state, model, where=str(file))
    num_classes = num_classes or known.num_classes
    if num_classes is None:
        raise WeightsMismatch(f"{file} does not say how many classes it scores; say it")
    return {"name": name, "num_classes": num_classes, **known.fields, **fields}, state


def convert(
    name: str, path: str | pathlib.Path, folder: str | pathlib.Path, num_classes: int | None = None, **fields: Any
) -> Loaded:
    """Writes the checkpoint at `path`, of the model of that name, to a folder that `load_model` reads.

    `path` is a file, or a hub folder of SMP, whose config.json then adds to `fields`. The classes are those of
    the file, and with another `num_classes` everything is kept but the head. The model has the fields that its
    publisher's has, and no auxiliary head where the file has none. Raises what `load_weights` does.
    """
    path = pathlib.Path(path)
    arguments, state = published_arguments(name, path, num_classes, **fields)
    loaded = from_published(state, create_model(**arguments), where=str(path))
    told = read_json(path / "model.json") if (path / "model.json").is_file() else {}
    left_out = loaded.left_out or told.get("left_out")  # a head that was left out before is no more trained now
    about = {"publisher": loaded.publisher, "source": path.name, "left_out": left_out}
    save_model(folder, loaded.variables, about=about, **arguments)
    return loaded
