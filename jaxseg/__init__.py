"""jaxseg: image segmentation and style-based generation as pure functions in JAX and Flax Linen."""

from jaxseg.models import MODELS, create_model

__all__ = ["MODELS", "create_model"]
