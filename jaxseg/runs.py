"""What a checkpoint says of its model, and the model and variables from it."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxseg.models import create_model

__all__ = [
    "LoadedRun",
    "has_grown",
    "is_described",
    "load_described",
    "load_run",
    "load_variables",
    "model_config",
    "model_from_config",
]


LARGEST = 2**16  # number of classes, or of pixels on a side, in a config


class LoadedRun(NamedTuple):
    """A trained model: `model.apply(variables, images, train=False)`."""

    model: nn.Module
    variables: PyTree


def model_config(
    name: str, num_classes: int, size: tuple[int, int], class_names: Sequence[str], palette: np.ndarray, **fields: Any
) -> dict[str, Any]:
    """What a checkpoint's config must say for `load_run` and `jaxseg predict`; `fields` go to `create_model`."""
    return {
        "model": name,
        "num_classes": num_classes,
        "fields": fields,
        "size": list(size),
        "class_names": list(class_names),
        "palette": np.asarray(palette).tolist(),
    }


def model_from_config(config: Mapping[str, Any]) -> nn.Module:
    """The module that a config describes."""
    fields = dict(config["fields"])
    if "dtype" in fields:
        fields["dtype"] = jnp.dtype(fields["dtype"]).type
    return create_model(config["model"], config["num_classes"], **fields)


def is_described(config: Any) -> bool:
    """Whether it is what `model_config` gives."""
    match config:
        case {"model": str(), "num_classes": int(n), "fields": dict(), "size": [int(h), int(w)], "palette": list(rows)}:
            return (
                0 < n <= LARGEST
                and 0 < h <= LARGEST
                and 0 < w <= LARGEST
                and len(rows) >= n  # a colour for each
                and all(isinstance(row, list) and len(row) == 3 for row in rows)
                and all(isinstance(c, int) and 0 <= c <= 255 for row in rows for c in row)
                and isinstance(names := config.get("class_names"), list)
                and len(names) == n
                and all(isinstance(name, str) for name in names)
            )
    return False


def load_described(run: str | os.PathLike) -> tuple[nn.Module, PyTree, dict[str, Any]]:
    """The model and variables of a run's newest checkpoint, and the config that was saved with them.

    Raises FileNotFoundError where `run` is not the output folder of a run, and ValueError where its config does not
    describe a model, as that of a run without `model_config`.
    """
    variables, config = load_variables(run)
    if config.get("model") == "adain_transfer":
        raise ValueError(
            f"{run} is of a style transfer: `jaxseg stylize --weights {run}` takes it as it is, and jaxseg.save_model "
            "writes a folder of what jaxseg.runs.load_variables reads"
        )
    if not is_described(config):
        raise ValueError(
            f"{run} does not say which model it holds: its config lacks what jaxseg.runs.model_config gives, as the "
            "config of `fit`, or is damaged"
        )
    try:
        return model_from_config(config), variables, config
    except (TypeError, LookupError, AttributeError) as error:  # fields of other types than the model's
        raise ValueError(f"{run} describes no model that there is: {error}") from error


def load_run(run: str | os.PathLike) -> LoadedRun:
    """The model and variables of a run's newest checkpoint: averaged parameters where the run kept an average.

    Images are `[N, H, W, 3]`, ImageNet-normalised (`jaxseg.data.normalize`). Raises what `load_described` does.
    """
    return LoadedRun(*load_described(run)[:2])


def has_grown(run: str | os.PathLike) -> bool:
    """Whether it is the folder of a generator's run, with a run for each resolution."""
    folder = pathlib.Path(run)
    return not (folder / "checkpoints").is_dir() and any(folder.glob("[0-9]*/checkpoints"))


def load_variables(run: str | os.PathLike) -> tuple[PyTree, dict[str, Any]]:
    """The variables of a run's newest checkpoint, and the config that was saved with them, whatever it says.

    Raises FileNotFoundError where there is none, and of a generator that grew, which has a run for each resolution.
    """
    from jaxseg import checkpoint  # Orbax takes a third of a second to import

    if has_grown(run):
        raise FileNotFoundError(
            f"{run} is of a generator that grew: jaxseg.grow.load_generator({str(run)!r}) reads it, and "
            "`jaxseg convert` makes a folder of it for jaxseg.load_model"
        )
    state, meta = checkpoint.restore_params(pathlib.Path(run) / "checkpoints")
    params = state.get("ema_params") or state["params"]
    config = meta.get("config")
    return {"params": params, **state.get("model_state", {})}, config if isinstance(config, dict) else {}
