"""Predictors of a model: whole images on a canvas, or in seamless tiles where its convolutions are valid."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from jaxseg.data.augment import normalize
from jaxseg.ops.logits import two_class_logits
from jaxseg.ops.tracing import blank_kernels
from jaxseg.predict.canvas import canvas_predictor

__all__ = ["batch_predictor", "compiled_logits", "logits_size", "predictor"]


def compiled_logits(model: nn.Module) -> Callable[[PyTree, UInt8[Array, "b h w 3"]], Float[Array, "b h2 w2 k"]]:
    """The logits of uint8 images, of at least two classes, as a compiled function of (variables, images)."""

    @jax.jit
    def logits(variables: PyTree, images: Array) -> Array:
        with blank_kernels():  # of which Flax asks the shapes, to compare
            output: Any = model.apply(variables, normalize(images.astype(jnp.float32) / 255), train=False)
        return two_class_logits(output.logits)

    return logits


def logits_size(apply: Callable, variables: PyTree, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the logits of images of `size`; raises what the model raises for a size it refuses."""
    return jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)).shape[1:3]


def batch_predictor(
    model: nn.Module, variables: PyTree, size: tuple[int, int], batch: int
) -> Callable[[Sequence[UInt8[np.ndarray, "_ _ 3"]]], list[Int[np.ndarray, "_ _"]]]:
    """A function from up to `batch` RGB images of any sizes to their int32 labels `[h, w]`; compiles once.

    As in training an image is scaled to fit the canvas `size` (h, w), its aspect kept; the logits are scaled
    back. A model of valid convolutions, whose logits are smaller than its input, goes over each image in
    tiles of `size` with mirrored borders. Raises ValueError for images that are not RGB of 8 bits.
    """
    if batch < 1:
        raise ValueError(f"a batch is of at least 1 image, got {batch}")
    apply = compiled_logits(model)
    output_size = logits_size(apply, variables, size)
    return canvas_predictor(functools.partial(apply, jax.device_put(variables)), size, output_size, batch)


def predictor(
    model: nn.Module, variables: PyTree, size: tuple[int, int]
) -> Callable[[UInt8[np.ndarray, "h w 3"]], Int[np.ndarray, "h w"]]:
    """`batch_predictor` for one image at a time."""
    predict = batch_predictor(model, variables, size, 1)
    return lambda image: predict([image])[0]
