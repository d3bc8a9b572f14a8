"""Short traces of deep models: a convolution traced once for all the layers of one shape, and kernels left blank."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jaxtyping import Array

__all__ = ["are_blank", "blank_kernels", "traced_once"]

_OPTIONS = (
    *("batch_group_count", "dimension_numbers", "feature_group_count", "lhs_dilation", "out_sharding"),
    *("precision", "preferred_element_type", "rhs_dilation"),
)


def _hashable(option: Any) -> Any:
    return tuple(map(_hashable, option)) if type(option) in (list, tuple) else option


def traced_once(operation: Callable[..., Array]) -> Callable[..., Array]:
    """`operation`, with the arguments of `jax.lax.conv_general_dilated`, inlined from a trace that is kept.

    The program is the one there would be without. Where `jax.lax.platform_dependent` is replaced, as on the way to
    ONNX, traces are kept apart.
    """

    def chosen(_: Callable, x: Array, kernel: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
        return operation(x, kernel, window_strides, padding, **options)

    traced = jax.jit(chosen, inline=True, static_argnums=(0, 3, 4), static_argnames=_OPTIONS)

    @functools.wraps(operation)
    def convolve(x: Array, kernel: Array, window_strides: Any = (1, 1), padding: Any = "SAME", **options: Any) -> Array:
        options = {name: _hashable(option) for name, option in options.items()}
        chooser = jax.lax.platform_dependent
        return traced(chooser, x, kernel, _hashable(window_strides), _hashable(padding), **options)

    return convolve


_blank = contextvars.ContextVar("blank", default=False)
are_blank = _blank.get


@contextlib.contextmanager
def blank_kernels() -> Iterator[None]:
    """Within it He's kernels start as zeros, undrawn: for a trace that asks for the variables' shapes alone.

    The draws are a third of such a trace; a forward pass is one, as Flax compares the shapes of what it is given.
    """
    before = _blank.set(True)
    try:
        yield
    finally:
        _blank.reset(before)
