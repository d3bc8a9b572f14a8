"""What the words `RUN`, or `MODEL --weights FILE`, stand for: a model with its weights."""

import os
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from jaxseg.cli.arguments import nearest_model
from jaxseg.data import voc_palette
from jaxseg.models import MODELS, create_model, scores_classes
from jaxseg.runs import has_grown, is_described, load_described
from jaxseg.weights import from_published, load_model, load_weights, published_arguments
from jaxseg.weights.files import DESCRIPTIONS
from jaxseg.weights.folder import read_json
from jaxseg.weights.genforce import blank_variables, demand_variables
from jaxseg.weights.published import GENERATION

__all__ = ["Trained", "demand_classes", "load_grown", "load_trained"]


class Trained(NamedTuple):
    """A model, its variables, the size at which it sees images, and the colours of its classes."""

    model: nn.Module
    variables: PyTree
    size: tuple[int, int]
    palette: np.ndarray


def _described(path: pathlib.Path) -> bool:
    """Whether it is a folder that `jaxseg convert` wrote, or a hub's."""
    return any((path / name).is_file() for name in DESCRIPTIONS) and not (path / "checkpoints").is_dir()


def demand_classes(where: pathlib.Path, count: int | None, classes: int | None) -> None:
    """Raises ValueError where `classes`, if given, are not those of the weights."""
    if classes is not None and count is not None and count != classes:
        raise ValueError(f"{where} scores {count} classes, not {classes}; leave --classes out")


def _of_file(name: str, weights: pathlib.Path, classes: int | None, size: tuple[int, int]) -> Trained:
    """The model as the publisher of the file has it, and a generator of its resolution."""
    generates = not scores_classes(name) and isinstance(create_model(name), GENERATION)
    if not scores_classes(name) and not generates:
        model = create_model(name, classes)
        return Trained(model, load_weights(weights, model), size, voc_palette(max(classes or 0, 2)))
    arguments, state = published_arguments(name, weights, classes if generates else None)
    demand_classes(weights, arguments["num_classes"], classes)
    model = create_model(**arguments)
    loaded = from_published(state, model, where=str(weights))
    if loaded.left_out:
        raise ValueError(loaded.left_out)
    return Trained(model, loaded.variables, size, voc_palette(max(arguments["num_classes"], 2)))


def _of_folder(name: str, weights: pathlib.Path, classes: int | None, size: tuple[int, int] | None) -> Trained:
    """The model that a converted checkpoint's folder, or a hub's, describes; of a run also its size and colours."""
    about = weights / DESCRIPTIONS[0]
    told = read_json(about) if about.is_file() else {}
    if left_out := told.get("left_out"):
        raise ValueError(f"{weights} has no trained head ({left_out}): `jaxseg train --weights {weights}` trains one")
    model, variables = load_model(weights)
    if name in MODELS and type(model) is not type(create_model(name, 1 if scores_classes(name) else None)):
        raise ValueError(f"{weights} holds {type(model).__name__}, not {name}; leave the model's name out")
    count = getattr(model, "num_classes", None)
    demand_classes(weights, count, classes)
    if not is_described(described := {**told, "model": name, "num_classes": count, "fields": {}}):
        return Trained(model, variables, size or (512, 512), voc_palette(max(count or 0, 2)))
    return Trained(model, variables, size or tuple(described["size"]), np.array(described["palette"], np.uint8))


def load_grown(run: pathlib.Path) -> tuple[dict[str, Any], PyTree]:
    """The averaged generator of a run that grew: arguments of `create_model`, of the size that it has grown to, and
    its variables. Raises FileNotFoundError where the run does not describe it, ValueError where it has not grown
    beyond 4x4, and WeightsMismatch where it is not as described.
    """
    from jaxseg.grow import load_generator

    variables, told = load_generator(run)
    match told:
        case {"model": str(name), "num_classes": int(count), "stage": int(stage), "fields": dict(fields)}:
            widths = {k: told[k] for k in ("base_features", "max_features") if k in told}
            arguments = {"name": name, "num_classes": count, "resolution": 4 << stage, **widths, **fields}
        case _:
            raise FileNotFoundError(
                f"{run} is of a generator that grew: jaxseg.grow.load_generator({str(run)!r}) reads it, and its config "
                "does not say what create_model makes it with (model, num_classes and fields)"
            )
    if stage == 0:
        raise ValueError(f"{run} has grown to 4x4, and a model begins at 8x8; go on with the run")
    flat = traverse_util.flatten_dict(dict(variables))
    model = create_model(**arguments)
    shapes = {path: x.shape for path, x in traverse_util.flatten_dict(blank_variables(model)).items()}
    grown = {path: array for path, array in flat.items() if path in shapes}  # without what is yet to grow
    demand_variables(model, shapes, grown)
    return arguments, traverse_util.unflatten_dict(grown)


def load_trained(name: str, weights: pathlib.Path | None, classes: int | None, size: tuple[int, int] | None) -> Trained:
    """The model `name` with `weights`; or that of the folder `name`, of a run or a converted checkpoint.

    `classes`, where given, must be those that the weights score: a head is never left out. `size` is the one asked
    for, 512 x 512 where neither that nor a run says one. Raises ValueError and FileNotFoundError for words that fit
    nothing.
    """
    if weights is None:
        if name in MODELS:
            raise ValueError(f"{name} is a model without weights; add --weights, or name the folder of a run")
        weights = pathlib.Path(name)
        if not (weights / "checkpoints").is_dir() and not _described(weights) and not has_grown(weights):
            near = "" if os.sep in name or weights.exists() else f"; of models: {nearest_model(name)}"
            raise FileNotFoundError(f"{name} is not the folder of a run (it holds no checkpoints){near}")
    elif name not in MODELS:
        raise ValueError(f'no model "{name}"; did you mean "{nearest_model(name)}"? `jaxseg models` lists all')
    elif not weights.exists():
        raise FileNotFoundError(f"--weights {weights}: no such file or folder")
    elif weights.is_file():
        return _of_file(name, weights, classes, size or (512, 512))
    if _described(weights):
        return _of_folder(name, weights, classes, size)
    if not (weights / "checkpoints").is_dir() and not has_grown(weights):
        raise FileNotFoundError(f"--weights {weights} is the folder of no run (checkpoints) and no model (model.json)")
    if has_grown(weights):
        arguments, variables = load_grown(weights)
        demand_classes(weights, arguments["num_classes"], classes)
        side = arguments["resolution"]
        if name in MODELS and arguments["name"] != name:
            raise ValueError(f"{weights} holds {arguments['name']}, not {name}; name that model")
        return Trained(create_model(**arguments), variables, (side, side), voc_palette(2))
    model, variables, trained = load_described(weights)
    demand_classes(weights, trained["num_classes"], classes)
    if name in MODELS and trained["model"] != name:
        raise ValueError(f"{weights} holds {trained['model']}, not {name}; name that model")
    if size not in (None, tuple(trained["size"])):
        raise ValueError(f"{weights} sees images at {'x'.join(map(str, trained['size']))}; leave --size out")
    palette = np.array(trained["palette"], np.uint8)
    return Trained(model, variables, tuple(trained["size"]), palette)
