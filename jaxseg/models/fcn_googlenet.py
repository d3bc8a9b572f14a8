"""FCN-GoogLeNet: the paper's comparison of backbones at stride 32."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.backbones.googlenet import googlenet
from jaxseg.layers import Conv, at_least_float32
from jaxseg.models.fcn import Upsample, score_init
from jaxseg.models.output import SegmentationOutput

__all__ = ["FCNGoogLeNet"]


class FCNGoogLeNet(nn.Module):
    """FCN-GoogLeNet at stride 32 (Long et al. 2015, Table 1).

    "For GoogLeNet, we use only the final loss layer, and improve performance by discarding the final average
    pooling layer" (section 4.1); a 1x1 convolution scores, and a transposed convolution of stride 32 returns to
    the image. It stays bilinear, unless `fixed_upsampling` is False: with 21 classes that leaves the table's
    6 million parameters. Any height and width of at least 15 will do.
    """

    num_classes: int
    backbone: Callable[..., nn.Module] = googlenet
    fixed_upsampling: bool = True
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], *, train: bool) -> SegmentationOutput:
        features = self.backbone(dtype=self.dtype, remat=self.remat, name="backbone")(images, train=train)
        score = Conv(self.num_classes, (1, 1), kernel_init=score_init, dtype=self.dtype, name="score_fr")
        upsample = Upsample(32, self.fixed_upsampling, self.dtype, name="upscore32")
        # feature i is centred on pixel 32 i + 22 (four poolings without a border), the kernel on 32 i + 31.5
        scores = upsample(score(features["stride32"]), 10, images.shape[1:3])
        return SegmentationOutput(at_least_float32(scores))
