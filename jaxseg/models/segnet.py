"""SegNet, whose decoder upsamples by the encoder's pooling indices, and SegNet-Basic."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones.vgg import VGG, vgg16_bn
from jaxseg.layers import BatchNorm, Conv, at_least_float32, he_fan_in
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.pooling import max_pool_with_indices, max_unpool

__all__ = ["SegNet", "SegNetBasic"]


def _decode_stage(model: "SegNet", x: Array, *, stage: int, widths: list[int], train: bool) -> Array:
    """Convolutions of one resolution, of `widths`, from the last of the encoder's names to the first."""
    for i, width in zip(range(len(widths), 0, -1), widths, strict=True):
        name = f"{stage}_{i}_D"
        x = Conv(
            width,
            (3, 3),
            padding=[(1, 1)] * 2,
            kernel_init=he_fan_in,
            dtype=model.dtype,
            name=f"conv{name}",
            parent=model,
        )(x)
        if (stage, i) != (1, 1):  # the last convolution gives logits
            x = nn.relu(model.norm(dtype=model.dtype, name=f"bn{name}", parent=model)(x, train=train))
    return x


class SegNet(nn.Module):
    """SegNet on VGG-16 with batch norm (Badrinarayanan et al. 2017, Figure 2).

    The decoder mirrors the encoder's convolutions, each stage after an unpooling by its max-pooling indices.
    Any height and width will do. `ceil_mode` pools odd sizes as the released Caffe net does; False pools as
    most PyTorch versions do, which then needs h, w of at least 32.
    """

    num_classes: int
    encoder: Callable[..., VGG] = vgg16_bn
    norm: Callable[..., nn.Module] = BatchNorm
    ceil_mode: bool = True
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        encoder = self.encoder(
            with_indices=True, ceil_mode=self.ceil_mode, dtype=self.dtype, remat=self.remat, name="encoder"
        )
        features = encoder(images, train=train)
        x = features["stride32"]
        for stage in range(len(encoder.depths), 0, -1):
            depth, width = encoder.depths[stage - 1], encoder.features[stage - 1]
            next_width = encoder.features[stage - 2] if stage > 1 else self.num_classes
            size = features[f"stride{2 ** (stage - 1)}"].shape[1:3]
            widths = [width] * (depth - 1) + [next_width]

            def run(model, x, indices, *, size=size, stage=stage, widths=widths):
                x = max_unpool(x, indices, size)
                return _decode_stage(model, x, stage=stage, widths=widths, train=train)

            x = (nn.remat(run) if self.remat else run)(self, x, features[f"indices{stage}"])
        return SegmentationOutput(at_least_float32(x))


def _local_response_norm(x: Float[Array, "n h w c"], size: int = 5) -> Float[Array, "n h w c"]:
    """Caffe's LRN over `size` neighbouring channels, alpha 1e-4, beta 0.75."""
    squares = jax.lax.reduce_window(
        jnp.square(x), jnp.zeros((), x.dtype), jax.lax.add, (1, 1, 1, size), (1, 1, 1, 1), "SAME"
    )
    return x * (1 + 1e-4 / size * squares) ** -0.75


class SegNetBasic(nn.Module):
    """SegNet-Basic, four encoders and four decoders (Badrinarayanan et al. 2017, section 3.2).

    Every layer has `features` channels and a 7x7 convolution without bias, then batch norm; no ReLU in the
    decoder. Any height and width will do. `local_response_norm` normalises the input first, as the released
    net does to 0-255 images; on standardised images it changes next to nothing, and is off.
    """

    num_classes: int
    features: int = 64
    norm: Callable[..., nn.Module] = BatchNorm
    local_response_norm: bool = False
    ceil_mode: bool = True
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        x = images.astype(self.dtype)
        if self.local_response_norm:
            x = _local_response_norm(x)

        def block(model, x, name):
            conv = Conv(
                self.features,
                (7, 7),
                padding=[(3, 3)] * 2,
                use_bias=False,
                kernel_init=he_fan_in,
                dtype=self.dtype,
                name=f"conv{name}",
                parent=model,
            )
            return self.norm(dtype=self.dtype, name=f"bn{name}", parent=model)(conv(x), train=train)

        def encode(model, x, level):
            x = nn.relu(block(model, x, str(level)))
            return max_pool_with_indices(x, ceil_mode=self.ceil_mode)

        def decode(model, x, indices, level, size):
            return block(model, max_unpool(x, indices, size), f"_decode{level}")

        if self.remat:
            encode = nn.remat(encode, static_argnums=(2,))
            decode = nn.remat(decode, static_argnums=(3, 4))
        sizes, places = [], []
        for level in range(1, 5):
            sizes.append(x.shape[1:3])
            x, indices = encode(self, x, level)
            places.append(indices)
        for level in range(4, 0, -1):
            x = decode(self, x, places[level - 1], level, sizes[level - 1])
        logits = Conv(self.num_classes, (1, 1), kernel_init=he_fan_in, dtype=self.dtype, name="conv_classifier")(x)
        return SegmentationOutput(at_least_float32(logits))
