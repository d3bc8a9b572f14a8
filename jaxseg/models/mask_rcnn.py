"""Mask R-CNN: Faster R-CNN and, beside its boxes, a small mask for every class."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxseg.backbones.fpn import FPN
from jaxseg.backbones.resnet import resnet18, resnet101
from jaxseg.layers import BatchNorm, ConvNormAct, ConvTranspose, FrozenBatchNorm, he_fan_out
from jaxseg.models.fast_rcnn import BoxConvHead, BoxHead
from jaxseg.models.faster_rcnn import FasterRCNN
from jaxseg.models.output import Detections
from jaxseg.ops.boxes import Proposals
from jaxseg.ops.parts import sum_over_parts
from jaxseg.ops.winograd import tiles_pay

__all__ = [
    "MaskHead",
    "MaskPredictor",
    "MaskRCNN",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet101_fpn",
    "maskrcnn_small",
]

PART = 16


class MaskHead(nn.Module):
    """Four 3x3 convolutions on the features of a box (He et al. 2017, Figure 4, right)."""

    features: tuple[int, ...] = (256, 256, 256, 256)
    norm: Callable[..., nn.Module] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "k s s c"], *, train: bool) -> Float[Array, "k s s f"]:
        for i, features in enumerate(self.features):
            x = ConvNormAct(features, norm=self.norm, dtype=self.dtype, name=f"conv_{i}")(x, train=train)
        return x


class ClassMask(nn.Module):
    """A 1x1 convolution to the masks of all classes, of which one is wanted: only that one is computed."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "k s s c"], classes: Int[Array, "k"]) -> Float[Array, "k s s"]:
        kernel = self.param("kernel", he_fan_out, (1, 1, x.shape[-1], self.num_classes), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
        chosen = kernel[0, 0].T[classes].astype(self.dtype)
        highest = jax.lax.Precision.HIGHEST if self.dtype == jnp.float32 else None
        logits = jnp.einsum("kyxc,kc->kyx", x, chosen, precision=highest)
        return logits.astype(jnp.float32) + bias[classes][:, None, None]


class MaskPredictor(nn.Module):
    """Twice the resolution, and the mask of a class (He et al. 2017, Figure 4)."""

    num_classes: int
    features: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "k s s c"], classes: Int[Array, "k"]) -> Float[Array, "k t t"]:
        up = ConvTranspose(
            self.features,
            (2, 2),
            (2, 2),
            [(1, 1), (1, 1)],
            kernel_init=he_fan_out,
            dtype=self.dtype,
            name="conv5_mask",
        )
        return ClassMask(self.num_classes, self.dtype, name="mask_fcn_logits")(nn.relu(up(x)), classes)


class MaskRCNN(FasterRCNN):
    """Mask R-CNN (He et al. 2017, Figure 1) on FPN, torchvision's in every number.

    As `FasterRCNN`; `Detections.masks` are probabilities `[n, k, 28, 28]` in the frames of the boxes, of each
    one's class, which `jaxseg.ops.masks.paste_masks` puts on the image. `mask_logits` is one more step, and
    `mask_sum` its loss.
    """

    mask: Callable[..., nn.Module] = MaskHead

    @property
    def mask_size(self) -> int:
        """Pixels of a side of a mask."""
        return 28

    def setup(self) -> None:
        super().setup()
        self.mask_head = self.mask(norm=self.head_norm, dtype=self.dtype)
        self.mask_predictor = MaskPredictor(self.num_classes, self.mask_head.features[-1], self.dtype)

    def mask_logits(
        self, features: Mapping[str, Array], boxes: Float[Array, "n k 4"], classes: Int[Array, "n k"], *, train: bool
    ) -> Float[Array, "n k 28 28"]:
        """The mask of class `classes` in each box."""
        x = self.mask_head(self.pool(features, boxes, 14), train=train)
        masks = self.mask_predictor(x, classes.reshape(-1))
        return masks.reshape(*boxes.shape[:2], *masks.shape[1:])

    def mask_sum(
        self,
        f: Callable[[Array, Array, Array], Array],
        features: Mapping[str, Array],
        boxes: Float[Array, "n k 4"],
        classes: Int[Array, "n k"],
        targets: Float[Array, "n k 28 28"],
        valid: Bool[Array, "n k"],
    ) -> Float[Array, ""]:
        """`f(logits, targets, valid)`, a sum over the masks that are valid, which come first, in training.

        Few are where few objects are. A CPU passes the rest over, `PART` boxes of an image at a time, where the head
        has no statistics of its batch and its convolutions are products: others are slow within a branch.
        """
        head, of_head = self.mask_head.unbind()  # type: ignore[misc]
        predictor, of_predictor = self.mask_predictor.unbind()  # type: ignore[misc]
        kernels = [kernel for kernel in jax.tree.leaves(of_head) if kernel.ndim == 4]
        part = jax.ShapeDtypeStruct((PART, 14, 14, next(iter(features.values())).shape[-1]), self.dtype)
        if self.head_norm not in (None, FrozenBatchNorm) or not all(tiles_pay(part, k) for k in kernels):
            return f(self.mask_logits(features, boxes, classes, train=True), targets, valid)

        def errors(shared: Any, boxes: Array, of_boxes: Any, valid: Array) -> Array:
            (of_head, of_predictor, levels), (classes, targets) = shared, of_boxes
            pooled = self.pool(dict(zip(names, levels, strict=True)), boxes, 14)
            y: Any = head.apply(of_head, pooled, train=True)
            logits: Any = predictor.apply(of_predictor, y, classes.reshape(-1))
            return f(logits.reshape(targets.shape), targets, valid)

        names, levels = tuple(features), tuple(features.values())  # a dict's order is lost on the way
        arguments = (of_head, of_predictor, levels), boxes, (classes, targets), valid
        in_parts = functools.partial(sum_over_parts, errors, size=PART)
        return jax.lax.platform_dependent(*arguments, cpu=in_parts, default=errors)

    def detect_boxes(
        self, features: Mapping[str, Array], proposals: Proposals, sizes: Int[Array, "n 2"], *, train: bool
    ) -> Detections:
        found: Any = super().detect_boxes(features, proposals, sizes, train=train)
        logits = self.mask_logits(features, found.boxes, found.classes, train=train)
        masks = jnp.where(found.valid[..., None, None], jax.nn.sigmoid(logits), 0)
        return found.replace(masks=masks)


maskrcnn_resnet101_fpn = functools.partial(
    MaskRCNN, pyramid=functools.partial(FPN, body=resnet101), norm=FrozenBatchNorm
)
maskrcnn_small = functools.partial(  # ours, for a CPU
    MaskRCNN,
    pyramid=functools.partial(
        FPN, body=functools.partial(resnet18, features=(24, 32, 48, 64), stem_features=24), features=48
    ),
    norm=BatchNorm,
    box=functools.partial(BoxHead, 128),
    mask=functools.partial(MaskHead, (32, 32)),
)
maskrcnn_resnet50_fpn = MaskRCNN  # torchvision's; v2 after Li et al. 2021
maskrcnn_resnet50_fpn_v2 = functools.partial(
    MaskRCNN, norm=BatchNorm, head_norm=BatchNorm, box=BoxConvHead, rpn_convs=2
)
