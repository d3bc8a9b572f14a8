"""MobileNetV2 at output stride 32, 16 or 8."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import BatchNorm, ConvNormAct, divisible_by_8

__all__ = ["MobileNetV2", "Stage", "mobilenet_v2"]


class Stage(NamedTuple):
    """A row of the paper's table 2: `repeats` blocks, the first of `stride`."""

    expansion: int
    features: int
    repeats: int
    stride: int


STAGES = (  # Sandler et al. 2018, Table 2
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


class LinearBottleneck(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection (Sandler et al. 2018, Table 1).

    `residual` adds the input, which only blocks that had no stride to give up do.
    """

    features: int
    expansion: int
    stride: int
    dilation: int
    residual: bool
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 c2"]:
        conv = functools.partial(ConvNormAct, activation=nn.relu6, norm=self.norm, dtype=self.dtype)
        y, expanded, last = x, x.shape[-1] * self.expansion, 1
        if self.expansion != 1:
            y, last = conv(expanded, 1, name="conv_0")(y, train=train), 2
        y = conv(expanded, 3, self.stride, self.dilation, depthwise=True, name=f"conv_{last - 1}")(y, train=train)
        y = conv(self.features, 1, activation=None, name=f"project_{last}")(y, train=train)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, Table 2), torchvision's in every number.

    Returns every layer, `features_0` ... `features_18` by torchvision's numbers, and the last at each stride that
    it has at `output_stride` 32: `stride2` ... `stride32`. At 16 or 8 the blocks beyond keep the resolution and
    dilate. `width` multiplies all channels, the last layer's only above 1. What lies deeper than stride `deepest`
    has its parameters and is not computed. Any height and width will do.
    """

    stages: tuple[Stage, ...] = STAGES
    width: float = 1.0
    output_stride: int = 32
    deepest: int = 32
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> dict[str, Array]:
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"MobileNetV2's output_stride is 8, 16 or 32, got {self.output_stride}")
        conv = functools.partial(ConvNormAct, activation=nn.relu6, norm=self.norm, dtype=self.dtype)
        x = conv(divisible_by_8(32 * self.width), 3, 2, name="features_0")(images.astype(self.dtype), train=train)
        out, nominal, dilation = {"features_0": x, "stride2": x}, 2, 1
        rows = [(stage, i) for stage in self.stages for i in range(stage.repeats)]
        for number, (stage, i) in enumerate(rows, 1):
            stride, features = stage.stride if i == 0 else 1, divisible_by_8(stage.features * self.width)
            nominal *= stride
            if nominal > self.deepest and not self.is_initializing():
                return out
            residual = stride == 1 and x.shape[-1] == features
            if stride == 2 and nominal > self.output_stride:
                stride, dilation = 1, 2 * dilation
            block = functools.partial(
                LinearBottleneck,
                features,
                stage.expansion,
                stride,
                dilation,
                residual,
                self.norm,
                self.dtype,
                name=f"features_{number}",
            )

            def run(parent: nn.Module, x: Array, block: Any = block) -> Array:
                return block(parent=parent)(x, train=train)

            x = (nn.remat(run) if self.remat else run)(self, x)
            out[f"features_{number}"] = out[f"stride{nominal}"] = x
        last = f"features_{len(rows) + 1}"
        x = conv(divisible_by_8(1280 * max(1.0, self.width)), 1, name=last)(x, train=train)
        return {**out, last: x, f"stride{nominal}": x}


mobilenet_v2 = MobileNetV2
