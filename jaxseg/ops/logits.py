"""Class scores in the one form that losses, metrics and predictions read."""

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["two_class_logits"]


def two_class_logits(logits: Float[Array, "n h w k"]) -> Float[Array, "n h w k2"]:
    """Logits of at least two classes: the one of a binary model, z, stands against 0, and is label 1 where z > 0."""
    return jnp.concatenate([jnp.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits
