"""VGG-11, 13, 16 and 19, with and without batch norm."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import BatchNorm, Conv, Dropout, he_fan_out
from jaxseg.ops.pooling import adaptive_average_pool, dense_max_pool, max_pool, max_pool_with_indices

__all__ = [
    "RGB_MEAN",
    "RGB_STD",
    "VGG",
    "VGGClassifier",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]


# torchvision's standardisation, which images of ImageNet's models have
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _standardize(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return jnp.diag(1 / jnp.array(RGB_STD, dtype)).reshape(shape)


def _less_mean(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return -jnp.array(RGB_MEAN, dtype) / jnp.array(RGB_STD, dtype)


class VGG(nn.Module):
    """VGG's convolutions (Simonyan and Zisserman 2015, Table 1), torchvision's in every number.

    Returns features by the paper's names, `relu1_1` ... `relu5_3` and `pool1` ... `pool5`, and the deepest at
    each stride: `stride1` is relu1_2, before the pooling, ..., `stride16` is relu5_3, and `stride32` is pool5
    (the last convolutions' names go by `depths`, how many each of the five stages has). With `with_indices`,
    also `indices1` ... `indices5`, the places of the poolings' maxima.

    `ceil_mode` pools odd sizes as Caffe. `first_padding` is conv1_1's, 100 in the released FCN. `norm`, if
    any, stands between a convolution and its ReLU. At `output_stride` 16 or 8 the last poolings keep the
    resolution and what follows dilates, so that each second or fourth pixel is what it would have been (the
    hole algorithm, Chen et al. 2015). `pool_window` is 2, or 3 with a border of 1 as in DeepLab's VGG. What lies
    deeper than stride `deepest` has its parameters and is not computed. Any height and width that leaves every
    pooling a row will do: 32 and more, or 1 and more with `ceil_mode`.

    `reflect` pads by reflection, and `preprocess` puts a 1x1 convolution `conv0` before the first, which
    starts as ImageNet's standardisation of images in [0, 1]: both as style transfer's normalised VGG has them.
    """

    depths: tuple[int, ...]
    features: tuple[int, ...] = (64, 128, 256, 512, 512)
    norm: Callable[..., nn.Module] | None = None
    ceil_mode: bool = False
    first_padding: int = 1
    with_indices: bool = False
    output_stride: int = 32
    pool_window: int = 2
    deepest: int = 32
    reflect: bool = False
    preprocess: bool = False
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> dict[str, Array]:
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"VGG's output_stride is 8, 16 or 32, got {self.output_stride}")
        if self.with_indices and (self.output_stride, self.pool_window) != (32, 2):
            raise ValueError("VGG has pooling indices where windows of 2 pool at every stage: output_stride 32")
        x = images.astype(self.dtype)
        if self.preprocess:
            x = Conv(3, (1, 1), kernel_init=_standardize, bias_init=_less_mean, dtype=self.dtype, name="conv0")(x)
        out: dict[str, Array] = {}
        dilation = 1
        for stage in range(1, len(self.depths) + 1):
            run = functools.partial(_stage, stage=stage, dilation=dilation, train=train)
            relus = (nn.remat(run) if self.remat else run)(self, x)
            out |= {f"relu{stage}_{i}": relu for i, relu in enumerate(relus, 1)}
            out[f"stride{2 ** (stage - 1)}"] = relus[-1]
            if 2 ** (stage - 1) >= self.deepest and not self.is_initializing():
                return out
            if self.with_indices:
                x, out[f"indices{stage}"] = max_pool_with_indices(relus[-1], ceil_mode=self.ceil_mode)
            elif 2**stage > self.output_stride:
                x = dense_max_pool(relus[-1], self.pool_window, self.pool_window - 2, dilation=dilation)
                dilation *= 2
            else:
                x = max_pool(relus[-1], self.pool_window, 2, self.pool_window - 2, ceil_mode=self.ceil_mode)
            out[f"pool{stage}"] = x
        out[f"stride{2 ** len(self.depths)}"] = x
        return out


def _stage(vgg: VGG, x: Array, *, stage: int, dilation: int, train: bool) -> list[Array]:
    """The rectified outputs of one stage's convolutions."""
    relus = []
    for i in range(1, vgg.depths[stage - 1] + 1):
        pad = vgg.first_padding if (stage, i) == (1, 1) else dilation
        x = Conv(
            vgg.features[stage - 1],
            (3, 3),
            padding="REFLECT" if vgg.reflect else [(pad, pad)] * 2,
            kernel_dilation=dilation,
            kernel_init=he_fan_out,
            dtype=vgg.dtype,
            name=f"conv{stage}_{i}",
            parent=vgg,
        )(x)
        if vgg.norm is not None:
            x = vgg.norm(dtype=vgg.dtype, name=f"bn{stage}_{i}", parent=vgg)(x, train=train)
        x = nn.relu(x)
        relus.append(x)
    return relus


vgg11 = functools.partial(VGG, depths=(1, 1, 2, 2, 2))
vgg13 = functools.partial(VGG, depths=(2, 2, 2, 2, 2))
vgg16 = functools.partial(VGG, depths=(2, 2, 3, 3, 3))
vgg19 = functools.partial(VGG, depths=(2, 2, 4, 4, 4))
vgg11_bn = functools.partial(vgg11, norm=BatchNorm)
vgg13_bn = functools.partial(vgg13, norm=BatchNorm)
vgg16_bn = functools.partial(vgg16, norm=BatchNorm)
vgg19_bn = functools.partial(vgg19, norm=BatchNorm)


class VGGClassifier(nn.Module):
    """VGG for image classification (Simonyan and Zisserman 2015), as torchvision has it.

    `encoder` makes the convolutions. Returns float32 logits `[n, num_classes]`.
    """

    num_classes: int = 1000
    encoder: Callable[..., VGG] = vgg16
    fc_features: int = 4096
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n k"]:
        x = self.encoder(dtype=self.dtype, name="encoder")(images, train=train)["stride32"]
        x = adaptive_average_pool(x, (7, 7))
        x = x.reshape(x.shape[0], -1)
        for name in ("fc6", "fc7"):
            x = nn.Dense(self.fc_features, dtype=self.dtype, name=name)(x)
            x = Dropout(self.dropout)(nn.relu(x), train=train)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc8")(x).astype(jnp.float32)
