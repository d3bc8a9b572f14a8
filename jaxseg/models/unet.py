"""U-Net, as published in 2015 with valid convolutions, and padded with batch norm as most use it since."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import BatchNorm, Conv, ConvTranspose, Dropout, at_least_float32, he_fan_in
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.pooling import max_pool

__all__ = ["UNet", "UNetValid", "unet_small", "valid_input_size", "valid_output_size"]

# "an initial standard deviation of sqrt(2/N)", N the incoming nodes of one neuron


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each followed by `norm`, if any, and ReLU."""

    features: int
    norm: Callable[..., nn.Module] | None
    padding: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 c2"]:
        pad = [(self.padding, self.padding)] * 2
        for i in (1, 2):
            x = Conv(
                self.features,
                (3, 3),
                padding=pad,
                use_bias=self.norm is None,
                kernel_init=he_fan_in,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            if self.norm is not None:
                x = self.norm(dtype=self.dtype, name=f"bn{i}")(x, train=train)
            x = nn.relu(x)
        return x


def _double_conv(
    model: Any, x: Array, features: int, name: str, *, norm: Any = None, padding: int = 0, train: bool
) -> Array:
    """One resolution of `model`, rematerialised where the model asks for it."""

    def run(parent, x):
        return DoubleConv(features, norm, padding, parent.dtype, name=name, parent=parent)(x, train=train)

    return (nn.remat(run) if model.remat else run)(model, x)


def _upconv(model: Any, x: Array, features: int, name: str) -> Array:
    """The paper's 2x2 up-convolution."""
    return ConvTranspose(
        features,
        (2, 2),
        (2, 2),
        padding=[(1, 1)] * 2,
        kernel_init=he_fan_in,
        dtype=model.dtype,
        name=name,
        parent=model,
    )(x)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, Figure 1), padded and with batch norm, so that logits cover the image.

    `features` are the widths from the finest resolution to the coarsest, one pooling between neighbours;
    height and width must be divisible by `2 ** (len(features) - 1)`, else ValueError. `norm=None` gives
    convolutions with biases instead. `dropout` is the rate after the coarsest level. `remat` trades time for
    memory.
    """

    num_classes: int
    features: tuple[int, ...] = (64, 128, 256, 512, 1024)
    norm: Callable[..., nn.Module] | None = BatchNorm
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        stride = 2 ** (len(self.features) - 1)
        size = images.shape[1:3]
        if size[0] % stride or size[1] % stride or not all(size):
            good = tuple(max(1, -(-s // stride)) * stride for s in size)
            raise ValueError(f"UNet needs h, w divisible by {stride}, got {size}; pad to {good}")
        conv = functools.partial(_double_conv, self, norm=self.norm, padding=1, train=train)
        x = images.astype(self.dtype)
        skips = []
        for level, features in enumerate(self.features, 1):
            if level > 1:
                skips.append(x)
                x = max_pool(x)
            x = conv(x, features, f"down{level}")
        x = Dropout(self.dropout)(x, train=train)
        for level in range(len(skips), 0, -1):
            features = self.features[level - 1]
            x = _upconv(self, x, features, f"upconv{level}")
            x = conv(jnp.concatenate([skips[level - 1], x], -1), features, f"up{level}")
        logits = Conv(self.num_classes, (1, 1), kernel_init=he_fan_in, dtype=self.dtype, name="logits")(x)
        return SegmentationOutput(at_least_float32(logits))


# 1.9 million parameters: a sixteenth of the published width's
unet_small = functools.partial(UNet, features=(16, 32, 64, 128, 256))


def valid_output_size(size: int, depth: int = 4) -> int:
    """Height or width of `UNetValid`'s logits for an input of `size`, with `depth` poolings: 572 gives 388.

    Raises ValueError, naming the next good size, where a pooling would drop a row or nothing would be left.
    """
    good = _valid_at_least(size, depth)
    if size != good:
        raise ValueError(f"UNetValid needs h, w such as {good}, got {size}; mirror the border up to {good}")
    return size - 12 * 2**depth + 8


def valid_input_size(size: int, depth: int = 4) -> int:
    """Smallest input whose logits, from `UNetValid` with `depth` poolings, cover `size` pixels."""
    return _valid_at_least(size + 12 * 2**depth - 8, depth)


def _valid_at_least(size: int, depth: int) -> int:
    """Smallest size of at least `size` whose every pooling divides and whose output is not empty."""
    # The coarsest level gets b rows from 2^depth b + 4 (2^depth - 1), and returns 2^depth (b - 8) + 4.
    scale = 2**depth
    base = 4 * (scale - 1)
    smallest = 8 if depth > 1 else 7 if depth else 5
    return base + scale * max(smallest, -(-(size - base) // scale))


def _crop(x: Array, size: tuple[int, ...]) -> Array:
    top, left = (x.shape[1] - size[0]) // 2, (x.shape[2] - size[1]) // 2
    return x[:, top : top + size[0], left : left + size[1]]


class UNetValid(nn.Module):
    """U-Net with valid convolutions (Ronneberger et al. 2015, Figure 1): logits are 184 pixels smaller.

    Logits are `[n, valid_output_size(h), valid_output_size(w), k]` and belong to the centre of the image,
    which is why the paper mirrors the border (its Figure 2). A size that a pooling would not divide is a
    ValueError that names the next good one. As released, dropout of rate `dropout` follows the two coarsest
    levels.
    """

    num_classes: int
    features: tuple[int, ...] = (64, 128, 256, 512, 1024)
    dropout: float = 0.5
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        depth = len(self.features) - 1
        size = images.shape[1:3]
        good = tuple(_valid_at_least(s, depth) for s in size)
        if size != good:
            raise ValueError(f"UNetValid cannot pool h, w of {size} evenly; mirror the border up to {good}")
        x = images.astype(self.dtype)
        skips = []
        for level, features in enumerate(self.features, 1):
            if level > 1:
                skips.append(x)
                x = max_pool(x)
            x = _double_conv(self, x, features, f"down{level}", train=train)
            if level >= depth:
                x = Dropout(self.dropout)(x, train=train)
        for level in range(depth, 0, -1):
            features = self.features[level - 1]
            # The released net widens the last of these to 128; Figure 1 halves it like the others, as here.
            x = _upconv(self, x, features, f"upconv{level}")
            x = nn.relu(x)  # not in the figure, but in the released net
            skip = _crop(skips[level - 1], x.shape[1:3])
            x = _double_conv(self, jnp.concatenate([skip, x], -1), features, f"up{level}", train=train)
        logits = Conv(self.num_classes, (1, 1), kernel_init=he_fan_in, dtype=self.dtype, name="logits")(x)
        return SegmentationOutput(at_least_float32(logits))
