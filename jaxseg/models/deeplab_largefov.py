"""DeepLab-LargeFOV: VGG-16 with the hole algorithm."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones.vgg import VGG, vgg16
from jaxseg.layers import Conv, Dropout, at_least_float32, he_fan_in
from jaxseg.models.output import SegmentationOutput
from jaxseg.ops.pooling import max_pool
from jaxseg.ops.resize import resize_bilinear

__all__ = ["DeepLabLargeFOV"]

score_init = nn.initializers.normal(0.01)  # the release's


class DeepLabLargeFOV(nn.Module):
    """DeepLab-LargeFOV on VGG-16 (Chen et al. 2015, section 5, Table 2), without its CRF.

    As released: poolings see 3x3 pixels, the last two keep the resolution, conv5 has holes of 2 and fc6, 3x3
    of 1024 channels, holes of `rate`, after a 3x3 mean. Scores at stride 8 are resized with corners aligned,
    exact for heights and widths of 8 k + 1, such as the paper's 321; any other will do.
    """

    num_classes: int
    encoder: Callable[..., VGG] = vgg16
    fc_features: int = 1024
    rate: int = 12
    dropout: float = 0.5
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        encoder = self.encoder(
            output_stride=8, pool_window=3, ceil_mode=True, dtype=self.dtype, remat=self.remat, name="encoder"
        )
        x = max_pool(encoder(images, train=train)["stride16"], 3, 1, 1)  # pool5 without the holes of conv5
        x = nn.avg_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), window_shape=(3, 3))  # as jax2onnx knows it
        for name, window, rate in (("fc6", 3, self.rate), ("fc7", 1, 1)):
            x = Conv(
                self.fc_features,
                (window, window),
                padding=[((window - 1) // 2 * rate,) * 2] * 2,
                kernel_dilation=rate,
                kernel_init=he_fan_in,
                dtype=self.dtype,
                name=name,
            )(x)
            x = Dropout(self.dropout)(nn.relu(x), train=train)
        scores = Conv(self.num_classes, (1, 1), kernel_init=score_init, dtype=self.dtype, name="fc8")(x)
        size = images.shape[1], images.shape[2]
        return SegmentationOutput(resize_bilinear(at_least_float32(scores), size, align_corners=True))
