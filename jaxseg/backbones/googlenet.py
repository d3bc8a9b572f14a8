"""GoogLeNet at output stride 32, 16 or 8."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import BatchNorm, ConvNormAct
from jaxseg.ops.pooling import dense_max_pool, max_pool

__all__ = ["GoogLeNet", "Inception", "googlenet"]

inception_norm = functools.partial(BatchNorm, epsilon=1e-3)  # torchvision's


class Branches(NamedTuple):
    """Channels of an inception module: a row of the paper's table."""

    one: int  # 1x1
    reduce3: int
    three: int  # 3x3
    reduce5: int
    five: int  # 5x5
    pool: int


TABLE = {  # Szegedy et al. 2015, Table 1
    "3a": Branches(64, 96, 128, 16, 32, 32),
    "3b": Branches(128, 128, 192, 32, 96, 64),
    "4a": Branches(192, 96, 208, 16, 48, 64),
    "4b": Branches(160, 112, 224, 24, 64, 64),
    "4c": Branches(128, 128, 256, 24, 64, 64),
    "4d": Branches(112, 144, 288, 32, 64, 64),
    "4e": Branches(256, 160, 320, 32, 128, 128),
    "5a": Branches(256, 160, 320, 32, 128, 128),
    "5b": Branches(384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches side by side (Szegedy et al. 2015, Figure 2b), with batch norm as in torchvision.

    The branch of the paper's 5x5 convolution has a 3x3 one, as the published weights do.
    """

    channels: Branches
    dilation: int = 1
    norm: Callable[..., nn.Module] = inception_norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w c2"]:
        def conv(x: Array, features: int, window: int, name: str) -> Array:
            dilation = self.dilation if window > 1 else 1
            block = ConvNormAct(features, window, 1, dilation, norm=self.norm, dtype=self.dtype, name=name)
            return block(x, train=train)

        of, d = self.channels, self.dilation
        three = conv(conv(x, of.reduce3, 1, "branch2_0"), of.three, 3, "branch2_1")
        five = conv(conv(x, of.reduce5, 1, "branch3_0"), of.five, 3, "branch3_1")
        pooled = max_pool(x, 3, 1, d, dilation=d)
        branches = [conv(x, of.one, 1, "branch1"), three, five, conv(pooled, of.pool, 1, "branch4_1")]
        return jnp.concatenate(branches, -1)


class GoogLeNet(nn.Module):
    """GoogLeNet (Szegedy et al. 2015, Table 1), torchvision's in every number, with batch norm.

    Returns every layer by torchvision's names, `conv1`, `conv2`, `conv3`, `inception3a` ... `inception5b`, and
    the last at each stride that it has at `output_stride` 32: `stride2` ... `stride32`. At 16 or 8 the last
    poolings keep the resolution and what follows dilates, so that, the border apart, each second or fourth pixel
    is what it would have been (the hole algorithm of Chen et al. 2015). `transform_input` maps
    ImageNet-normalised images to [-1, 1], which torchvision's weights ask for. `width` multiplies all channels.
    Poolings round up: any height and width of at least 15 will do. The auxiliary classifiers, which only training
    for ImageNet uses, are left out.
    """

    width: float = 1.0
    output_stride: int = 32
    transform_input: bool = True
    norm: Callable[..., nn.Module] = inception_norm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> dict[str, Array]:
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"GoogLeNet's output_stride is 8, 16 or 32, got {self.output_stride}")

        def scaled(channels: int) -> int:
            return max(1, int(channels * self.width))

        def run(layer: Callable[..., nn.Module], x: Array) -> Array:
            def apply(parent: nn.Module, x: Array) -> Array:
                return layer(norm=self.norm, dtype=self.dtype, parent=parent)(x, train=train)

            return (nn.remat(apply) if self.remat else apply)(self, x)

        x = images.astype(self.dtype)
        if self.transform_input:
            mean, std = jnp.array((0.485, 0.456, 0.406), x.dtype), jnp.array((0.229, 0.224, 0.225), x.dtype)
            x = x * (std / 0.5) + (mean - 0.5) / 0.5
        out: dict[str, Array] = {}
        for name, features, window, stride in (("conv1", 64, 7, 2), ("conv2", 64, 1, 1), ("conv3", 192, 3, 1)):
            x = run(functools.partial(ConvNormAct, scaled(features), window, stride, name=name), x)
            out[name] = out[f"stride{2 if name == 'conv1' else 4}"] = x
            if name != "conv2":
                x = _pool(x, 3)
        nominal, dilation = 8, 1
        for name, branches in TABLE.items():
            if name in ("4a", "5a"):
                nominal, window = 2 * nominal, 3 if name == "4a" else 2
                if nominal > self.output_stride:
                    x = dense_max_pool(x, window, dilation=dilation)
                    dilation *= 2
                else:
                    x = _pool(x, window)
            channels = Branches(*map(scaled, branches))
            x = run(functools.partial(Inception, channels, dilation, name=f"inception{name}"), x)
            out[f"inception{name}"] = out[f"stride{nominal}"] = x
        return out


def _pool(x: Array, window: int) -> Array:
    return max_pool(x, window, 2, ceil_mode=True)


googlenet = GoogLeNet
