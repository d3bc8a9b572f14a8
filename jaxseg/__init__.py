"""jaxseg: image segmentation and style-based generation as pure functions in JAX and Flax Linen."""

from jaxseg.models import MODELS, create_model
from jaxseg.runs import load_run
from jaxseg.weights import load_model, load_weights, save_model, save_weights

__all__ = ["MODELS", "create_model", "load_model", "load_run", "load_weights", "save_model", "save_weights"]
