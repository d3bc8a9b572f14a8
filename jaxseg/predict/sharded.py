"""An image larger than a device: whole, its height and width in shares over the devices of a mesh."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, UInt8

from jaxseg.data.augment import normalize
from jaxseg.data.canvas import MEAN_COLOUR, photograph
from jaxseg.ops.logits import two_class_logits
from jaxseg.parallel import Placement
from jaxseg.predict.whole import compiled_logits, logits_size

__all__ = ["sharded_predictor", "shared_canvas"]


def shared_canvas(
    model: nn.Module, variables: PyTree, size: tuple[int, int], shares: tuple[int, int]
) -> tuple[int, int]:
    """The least canvas for an image of `size` that the model takes and whose height and width divide into `shares`.

    Raises ValueError for a model whose logits are smaller than its input.
    """
    refused: ValueError | None = None
    for multiple in (1, 32):
        down, along = (math.lcm(multiple, n) for n in shares)
        canvas = (-(-size[0] // down) * down, -(-size[1] // along) * along)
        try:
            found = logits_size(compiled_logits(model), variables, canvas)
        except ValueError as error:  # it wants multiples of its stride
            refused = error
            continue
        if found != canvas:
            raise ValueError(
                f"{type(model).__name__} gives logits smaller than its input, and goes over an image in "
                "seamless tiles: leave --shard out"
            )
        return canvas
    raise ValueError(
        f"{type(model).__name__} takes no image of {size[0]}x{size[1]} in {shares[0]}x{shares[1]} shares "
        f"({str(refused).splitlines()[0]}); leave --shard out"
    ) from refused


def sharded_predictor(
    model: nn.Module, variables: PyTree, placement: Placement, *, batch: int = 1
) -> Callable[[Sequence[UInt8[np.ndarray, "_ _ 3"]]], list[Int[np.ndarray, "_ _"]]]:
    """A function from up to `batch` RGB images of any sizes to their int32 labels `[h, w]`, by all of a mesh.

    Each image is seen whole and at its own size, below and to the right filled up with the mean colour to a
    size that the model takes. Devices hold shares of it and of every feature map; labels alone are
    gathered. Compiles once for each canvas. Raises ValueError for a batch that does not divide over the devices.
    """
    if batch % placement.batch_devices:
        raise ValueError(
            f"a batch of {batch} does not divide over {placement.batch_devices} devices ({placement.name}); "
            f"use {placement.batch_devices}, or all devices on spatial and width"
        )
    placed = placement.put_state(variables)
    canvas_of = functools.lru_cache(  # each takes a trace of the model or two
        functools.partial(shared_canvas, model, variables, shares=placement.image_devices)
    )

    @jax.jit
    def labels(variables: PyTree, images: UInt8[Array, "n h w 3"]) -> Int[Array, "n h w"] | UInt8[Array, "n h w"]:
        output: Any = model.apply(variables, normalize(images.astype(jnp.float32) / 255), train=False)
        found = jnp.argmax(two_class_logits(output.logits), -1)
        return found.astype(jnp.uint8 if output.logits.shape[-1] <= 256 else jnp.int32)

    def predict(images: Sequence[Any]) -> list[np.ndarray]:
        if not 0 < len(images) <= batch:
            raise ValueError(f"this predictor takes 1 to {batch} images at once, got {len(images)}")
        images = [photograph(image) for image in images]
        size = (max(x.shape[0] for x in images), max(x.shape[1] for x in images))
        canvas = np.empty((batch, *canvas_of(size), 3), np.uint8)
        canvas[:] = MEAN_COLOUR
        for i, image in enumerate(images):
            canvas[i, : image.shape[0], : image.shape[1]] = image
        found = np.asarray(labels(placed, placement.put_batch({"image": canvas})["image"]))
        return [y[: x.shape[0], : x.shape[1]].astype(np.int32) for x, y in zip(images, found, strict=False)]

    return predict
