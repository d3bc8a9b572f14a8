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
    "load_run",
    "load_variables",
    "model_config",
    "model_from_config",
]


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


def load_run(run: str | os.PathLike) -> LoadedRun:
    """The model and variables of a run's newest checkpoint: averaged parameters where the run kept an average.

    Images are `[N, H, W, 3]`, ImageNet-normalised (`jaxseg.data.normalize`). Raises FileNotFoundError where
    `run` is not the output folder of a run.
    """
    variables, config = load_variables(run)
    return LoadedRun(model_from_config(config), variables)


def load_variables(run: str | os.PathLike) -> tuple[PyTree, dict[str, Any]]:
    """The variables of a run's newest checkpoint, and the config that was saved with them."""
    from jaxseg import checkpoint  # Orbax takes a third of a second to import

    state, meta = checkpoint.restore_params(pathlib.Path(run) / "checkpoints")
    params = state.get("ema_params") or state["params"]
    return {"params": params, **state.get("model_state", {})}, meta["config"]
