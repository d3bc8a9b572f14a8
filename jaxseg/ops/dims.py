"""The type of a length along an axis."""

from typing import Any, TypeAlias

__all__ = ["Dim"]

Dim: TypeAlias = Any  # an int, or a symbolic dimension where jax.export leaves a size open
