"""jaxseg: image segmentation and style-based generation as pure functions in JAX and Flax Linen."""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxseg.models import MODELS, create_model
    from jaxseg.runs import load_run
    from jaxseg.weights import load_model, load_weights, save_model, save_weights

__all__ = ["MODELS", "create_model", "load_model", "load_run", "load_weights", "save_model", "save_weights"]

_HOMES = {"MODELS": "models", "create_model": "models", "load_run": "runs"}  # the others are of weights


def __getattr__(name: str) -> Any:
    """What is exported, and every module, imported when it is asked for: the command line sets itself up before."""
    if name in __all__:
        return getattr(importlib.import_module(f"jaxseg.{_HOMES.get(name, 'weights')}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"jaxseg.{name}"):
        return importlib.import_module(f"jaxseg.{name}")
    raise AttributeError(f"module 'jaxseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
