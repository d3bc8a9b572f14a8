"""ResNet-18 to 152, ResNeXt and wide ResNet, at output stride 32, 16 or 8."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import BatchNorm, Conv, he_fan_out
from jaxseg.ops.pooling import max_pool

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "wide_resnet50_2",
]


def _conv(
    block: Any, features: int, window: int, name: str, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv:
    pad = (window - 1) // 2 * dilation
    return Conv(
        features,
        (window, window),
        stride,
        padding=[(pad, pad)] * 2,
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=he_fan_out,
        dtype=block.dtype,
        name=name,
        parent=block,
    )


def _shortcut(block: Any, x: Array, features: int, *, train: bool) -> Array:
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = _conv(block, features, 1, "downsample_0", stride=block.stride)(x)
    return block.norm(dtype=block.dtype, name="downsample_1", parent=block)(x, train=train)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, Figure 5, left); both take the dilation."""

    features: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    base_width: int = 64
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 c2"]:
        if (self.groups, self.base_width) != (1, 64):
            raise ValueError(f"BasicBlock has 1 group of base width 64, got {self.groups} of {self.base_width}")
        norm = functools.partial(self.norm, dtype=self.dtype)
        y = _conv(self, self.features, 3, "conv1", stride=self.stride, dilation=self.dilation)(x)
        y = nn.relu(norm(name="bn1")(y, train=train))
        y = _conv(self, self.features, 3, "conv2", dilation=self.dilation)(y)
        y = norm(name="bn2")(y, train=train)
        return nn.relu(y + _shortcut(self, x, self.features, train=train))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (He et al. 2016, Figure 5, right).

    The stride is the 3x3 convolution's, as in torchvision ("v1.5"); the paper has it in the first. `groups`
    and `base_width` as Xie et al. 2017 and torchvision count them.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    base_width: int = 64
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 c2"]:
        norm = functools.partial(self.norm, dtype=self.dtype)
        width = self.features * self.base_width // 64 * self.groups
        y = nn.relu(norm(name="bn1")(_conv(self, width, 1, "conv1")(x), train=train))
        y = _conv(self, width, 3, "conv2", stride=self.stride, dilation=self.dilation, groups=self.groups)(y)
        y = nn.relu(norm(name="bn2")(y, train=train))
        y = norm(name="bn3")(_conv(self, 4 * self.features, 1, "conv3")(y), train=train)
        return nn.relu(y + _shortcut(self, x, 4 * self.features, train=train))


class ResNet(nn.Module):
    """ResNet (He et al. 2016, Table 1), torchvision's in every number.

    Returns `stride2`, the rectified stem before its pooling, and `stride4` ... `stride32`, the four stages, by the
    strides that they have at `output_stride` 32. At 16 or 8 the last stage or two keep the resolution and dilate
    instead (Chen et al. 2017); their first block keeps the dilation before it, as torchvision's do, or with
    `dilate_first` has its stage's, as in semseg and SMP. `multi_grid` multiplies the dilations of the fourth stage's
    blocks; of fewer `depths` there are fewer stages. `deep_stem` is three 3x3 convolutions, of `stem_features`, as
    many, and twice as many channels (semseg), in place of one 7x7. What lies deeper than the stage of stride `deepest`
    has its parameters and is not computed. Any height and width will do.
    """

    depths: tuple[int, ...]
    features: tuple[int, ...] = (64, 128, 256, 512)
    block: Callable[..., nn.Module] = Bottleneck
    stem_features: int = 64
    deep_stem: bool = False
    output_stride: int = 32
    dilate_first: bool = False
    multi_grid: tuple[int, ...] = (1,)
    deepest: int = 32
    groups: int = 1
    base_width: int = 64
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> dict[str, Array]:
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"ResNet's output_stride is 8, 16 or 32, got {self.output_stride}")
        if not self.multi_grid or min(self.multi_grid) < 1:
            raise ValueError(f"multi_grid is of numbers of at least 1, such as (1, 2, 4), got {self.multi_grid}")
        x = _stem(self, images.astype(self.dtype), train=train)
        out = {"stride2": x}
        x = max_pool(x, 3, 2, 1)
        dilation = 1
        for stage in range(1, len(self.depths) + 1):
            if 2 ** (stage + 1) > self.deepest and not self.is_initializing():
                break
            before, stride = dilation, 1 if stage == 1 else 2
            if stage > 1 and 2 ** (stage + 1) > self.output_stride:
                stride, dilation = 1, 2 * dilation
            for i in range(self.depths[stage - 1]):
                rate = before if i == 0 and not self.dilate_first else dilation
                if stage == 4:
                    rate *= self.multi_grid[i % len(self.multi_grid)]
                block = functools.partial(
                    self.block,
                    self.features[stage - 1],
                    stride if i == 0 else 1,
                    rate,
                    self.groups,
                    self.base_width,
                    self.norm,
                    self.dtype,
                    name=f"layer{stage}_{i}",
                )

                def run(parent: nn.Module, x: Array, block: Any = block) -> Array:
                    return block(parent=parent)(x, train=train)

                x = (nn.remat(run) if self.remat else run)(self, x)
            out[f"stride{2 ** (stage + 1)}"] = x
        return out


def _stem(resnet: ResNet, x: Array, *, train: bool) -> Array:
    c = resnet.stem_features
    convs = [(c, 3), (c, 3), (2 * c, 3)] if resnet.deep_stem else [(c, 7)]
    for i, (features, window) in enumerate(convs, 1):
        x = _conv(resnet, features, window, f"conv{i}", stride=2 if i == 1 else 1)(x)
        x = nn.relu(resnet.norm(dtype=resnet.dtype, name=f"bn{i}", parent=resnet)(x, train=train))
    return x


# He et al. 2016, Table 1
resnet18 = functools.partial(ResNet, depths=(2, 2, 2, 2), block=BasicBlock)
resnet34 = functools.partial(ResNet, depths=(3, 4, 6, 3), block=BasicBlock)
resnet50 = functools.partial(ResNet, depths=(3, 4, 6, 3))
resnet101 = functools.partial(ResNet, depths=(3, 4, 23, 3))
resnet152 = functools.partial(ResNet, depths=(3, 8, 36, 3))
resnext50_32x4d = functools.partial(resnet50, groups=32, base_width=4)  # Xie et al. 2017, Table 1
wide_resnet50_2 = functools.partial(resnet50, base_width=128)  # Zagoruyko and Komodakis 2016, Table 8
