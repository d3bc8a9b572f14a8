"""MobileNetV3, large and small, at output stride 32, 16 or 8."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import BatchNorm, Conv, ConvNormAct, divisible_by_8, he_fan_out

__all__ = ["Bneck", "MobileNetV3", "mobilenet_v3_large", "mobilenet_v3_small"]

mobile_norm = functools.partial(BatchNorm, momentum=0.99, epsilon=1e-3)  # torchvision's


class Bneck(NamedTuple):
    """A row of the paper's tables 1 and 2."""

    window: int
    expanded: int
    features: int
    squeeze: bool
    activation: Callable[[Array], Array]
    stride: int


RE, HS = nn.relu, nn.hard_swish
LARGE = (  # Howard et al. 2019, Table 1
    Bneck(3, 16, 16, False, RE, 1),
    Bneck(3, 64, 24, False, RE, 2),
    Bneck(3, 72, 24, False, RE, 1),
    Bneck(5, 72, 40, True, RE, 2),
    Bneck(5, 120, 40, True, RE, 1),
    Bneck(5, 120, 40, True, RE, 1),
    Bneck(3, 240, 80, False, HS, 2),
    Bneck(3, 200, 80, False, HS, 1),
    Bneck(3, 184, 80, False, HS, 1),
    Bneck(3, 184, 80, False, HS, 1),
    Bneck(3, 480, 112, True, HS, 1),
    Bneck(3, 672, 112, True, HS, 1),
    Bneck(5, 672, 160, True, HS, 2),
    Bneck(5, 960, 160, True, HS, 1),
    Bneck(5, 960, 160, True, HS, 1),
)
SMALL = (  # Howard et al. 2019, Table 2
    Bneck(3, 16, 16, True, RE, 2),
    Bneck(3, 72, 24, False, RE, 2),
    Bneck(3, 88, 24, False, RE, 1),
    Bneck(5, 96, 40, True, HS, 2),
    Bneck(5, 240, 40, True, HS, 1),
    Bneck(5, 240, 40, True, HS, 1),
    Bneck(5, 120, 48, True, HS, 1),
    Bneck(5, 144, 48, True, HS, 1),
    Bneck(5, 288, 96, True, HS, 2),
    Bneck(5, 576, 96, True, HS, 1),
    Bneck(5, 576, 96, True, HS, 1),
)


class SqueezeExcitation(nn.Module):
    """Channels weighed by what their means say (Hu et al. 2018), with a hard sigmoid."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        conv = functools.partial(Conv, kernel_size=(1, 1), kernel_init=he_fan_out, dtype=self.dtype)
        y = nn.relu(conv(self.features, name="fc1")(x.mean((1, 2), keepdims=True)))
        return x * nn.hard_sigmoid(conv(x.shape[-1], name="fc2")(y))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze, 1x1 projection (Howard et al. 2019, Figure 4).

    The parts are named `block_0` ... in their order, as torchvision's; where an expansion would change nothing
    there is none.
    """

    row: Bneck
    dilation: int = 1
    norm: Callable[..., nn.Module] = mobile_norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 c2"]:
        row = self.row
        names = iter([f"block_{i}" for i in range(4)])
        conv = functools.partial(ConvNormAct, norm=self.norm, dtype=self.dtype)
        y = x
        if row.expanded != x.shape[-1]:
            y = conv(row.expanded, 1, activation=row.activation, name=next(names))(y, train=train)
        y = conv(
            row.expanded,
            row.window,
            1 if self.dilation > 1 else row.stride,
            self.dilation,
            depthwise=True,
            activation=row.activation,
            name=next(names),
        )(y, train=train)
        if row.squeeze:
            y = SqueezeExcitation(divisible_by_8(row.expanded // 4), self.dtype, name=next(names))(y)
        y = conv(row.features, 1, activation=None, name=next(names))(y, train=train)
        return x + y if row.stride == 1 and x.shape == y.shape else y  # none where a stride was given up


class MobileNetV3(nn.Module):
    """MobileNetV3 (Howard et al. 2019, Tables 1 and 2), torchvision's in every number.

    Returns every layer, `features_0` ... by torchvision's numbers, and the last at each stride that it has at
    `output_stride` 32: `stride2` ... `stride32`. At 16 or 8 the blocks beyond keep the resolution and dilate.
    `width` multiplies all channels. Any height and width will do.
    """

    rows: tuple[Bneck, ...]
    width: float = 1.0
    output_stride: int = 32
    norm: Callable[..., nn.Module] = mobile_norm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> dict[str, Array]:
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"MobileNetV3's output_stride is 8, 16 or 32, got {self.output_stride}")
        conv = functools.partial(ConvNormAct, activation=HS, norm=self.norm, dtype=self.dtype)
        x = conv(divisible_by_8(16 * self.width), 3, 2, name="features_0")(images.astype(self.dtype), train=train)
        out, nominal, dilation = {"features_0": x, "stride2": x}, 2, 1
        for i, row in enumerate(self.rows, 1):
            nominal *= row.stride
            if row.stride == 2 and nominal > self.output_stride:
                dilation *= 2
            row = row._replace(
                expanded=divisible_by_8(row.expanded * self.width),
                features=divisible_by_8(row.features * self.width),
            )
            block = functools.partial(InvertedResidual, row, dilation, self.norm, self.dtype, name=f"features_{i}")

            def run(parent: nn.Module, x: Array, block: Any = block) -> Array:
                return block(parent=parent)(x, train=train)

            x = (nn.remat(run) if self.remat else run)(self, x)
            out[f"features_{i}"] = out[f"stride{nominal}"] = x
        last = f"features_{len(self.rows) + 1}"
        x = conv(6 * x.shape[-1], 1, name=last)(x, train=train)
        return {**out, last: x, f"stride{nominal}": x}


mobilenet_v3_large = functools.partial(MobileNetV3, LARGE)
mobilenet_v3_small = functools.partial(MobileNetV3, SMALL)
