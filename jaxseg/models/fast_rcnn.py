"""Fast R-CNN: the convolutions once an image, and a small network on what each proposed box sees of them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxseg.backbones.fpn import FPN, SingleLevel
from jaxseg.backbones.vgg import vgg16
from jaxseg.layers import BatchNorm, ConvNormAct, Dropout, FrozenBatchNorm
from jaxseg.models.output import Detections
from jaxseg.models.rpn import sides_at_least
from jaxseg.ops.boxes import BOX_WEIGHTS, Proposals, clip_boxes, decode_boxes
from jaxseg.ops.nms import nms
from jaxseg.ops.roi import pyramid_roi_align, roi_pool

__all__ = ["BoxConvHead", "BoxHead", "FastRCNN", "fastrcnn_vgg16", "single_roi_pool", "vgg16_level"]


class DenseOfBins(nn.Module):
    """A layer that sees all bins of a box, whose kernel has them channels first, as the published weights do.

    The kernel's rows are put in the order of the bins, not the bins in that of the rows: RoIAlign, fused with a
    transposition, reads its pixels channel by channel, which took as long as the layer (on a CPU, jax 0.11.2). Of a
    kernel that is far larger than the bins, such as VGG's, the bins are moved.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "k s s c"]) -> Float[Array, "k f"]:
        k, s, _, c = x.shape
        kernel = self.param("kernel", nn.linear.default_kernel_init, (s * s * c, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if self.features > 4 * k:
            x = x.transpose(0, 3, 1, 2)
        else:
            kernel = kernel.reshape(c, s, s, -1).transpose(1, 2, 0, 3).reshape(kernel.shape)
        return x.reshape(k, s * s * c).astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class BoxHead(nn.Module):
    """Two fully connected layers on the features of a box (Lin et al. 2017, section 4.2).

    With `dropout` behind each they are VGG's own (Girshick 2015, section 2.3).
    """

    features: int = 1024
    dropout: float = 0.0
    norm: Callable[..., nn.Module] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "k s s c"], *, train: bool) -> Float[Array, "k f"]:
        x = nn.relu(DenseOfBins(self.features, self.dtype, name="fc6")(x))
        x = Dropout(self.dropout)(x, train=train)
        x = nn.relu(nn.Dense(self.features, dtype=self.dtype, name="fc7")(x))
        return Dropout(self.dropout)(x, train=train)


class BoxConvHead(nn.Module):
    """Four 3x3 convolutions and a fully connected layer (Wu and He 2018, section 5.2; Li et al. 2021)."""

    features: int = 1024
    conv_features: tuple[int, ...] = (256, 256, 256, 256)
    norm: Callable[..., nn.Module] | None = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "k s s c"], *, train: bool) -> Float[Array, "k f"]:
        for i, features in enumerate(self.conv_features):
            x = ConvNormAct(features, norm=self.norm, dtype=self.dtype, name=f"conv_{i}")(x, train=train)
        return nn.relu(DenseOfBins(self.features, self.dtype, name="fc")(x))


class BoxPredictor(nn.Module):
    """Class scores of a box, background first, and its refinement for every class."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "k f"]) -> tuple[Float[Array, "k c"], Float[Array, "k c 4"]]:
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="cls_score")(x)
        deltas = nn.Dense(4 * self.num_classes, dtype=self.dtype, name="bbox_pred")(x)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32).reshape(x.shape[0], self.num_classes, 4)


def single_roi_pool(
    features: Sequence[Float[Array, "n h w c"]],
    boxes: Float[Array, "n k 4"],
    size: int,
    *,
    strides: Sequence[int],
    border: bool = False,
) -> Float[Array, "n k size size c"]:
    """RoIPool from one level, called as `pyramid_roi_align` is; `border` is of no concern to it."""
    (level,), (stride,) = features, strides
    return roi_pool(level, boxes, size, scale=1 / stride)


class FastRCNN(nn.Module):
    """Fast R-CNN (Girshick 2015, Figure 1): class scores and refinements of boxes that are given.

    `model(images, sizes, proposals, train=False)` gives `Detections` on the canvas of the images, which are padded
    below and to the right from their true `sizes` (h, w), by default none. `proposals` are
    `jaxseg.ops.boxes.Proposals`; without them the whole image is the one box looked at. `jaxseg.predict.detect` brings
    selective search's. The steps are methods, for training and for use by themselves: `features`, `box_scores`,
    `detect_boxes`.

    `num_classes` counts the background, class 0. `norm` is the body's; `head_norm` is that of the pyramid and
    the heads' convolutions: `jaxseg.layers` has `FrozenBatchNorm`, `BatchNorm`, whose statistics are those of the
    global batch over all devices, and `GroupNorm`. The other fields have torchvision's names and meanings; `roi`
    reads a box, `box_size` bins a side, from levels of `roi_strides`. Canvas sizes are multiples of 32; ValueError
    names the next.

    `roi_border` is RoIAlign's `border`, and a choice between torchvision's two forms, which differ for slivers at
    the canvas' lower and right edge: True, the default, is its function in Python
    (`torchvision.ops.roi_align._roi_align`), False its compiled kernel, which an installation with compiled operators
    runs: samples more than a pixel outside are zero.
    """

    num_classes: int
    pyramid: Callable[..., nn.Module] = FPN
    box: Callable[..., nn.Module] = BoxHead
    norm: Callable[..., nn.Module] | None = functools.partial(FrozenBatchNorm, epsilon=0.0)
    head_norm: Callable[..., nn.Module] | None = None
    roi: Callable[..., Array] = pyramid_roi_align
    roi_strides: tuple[int, ...] = (4, 8, 16, 32)
    roi_border: bool = True
    box_size: int = 7
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    max_proposals: int = 2000
    min_size: int = 800
    max_size: int = 1333
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        self.backbone = self.pyramid(norm=self.norm, pyramid_norm=self.head_norm, dtype=self.dtype, remat=self.remat)
        self.box_head = self.box(norm=self.head_norm, dtype=self.dtype)
        self.box_predictor = BoxPredictor(self.num_classes, self.dtype)

    def __call__(
        self,
        images: Float[Array, "n h w 3"],
        sizes: Int[Array, "n 2"] | None = None,
        proposals: Proposals | None = None,
        *,
        train: bool,
    ) -> Detections:
        sizes = self.true_sizes(images, sizes)
        if proposals is None:
            zeros = jnp.zeros_like(sizes)
            boxes = jnp.concatenate([zeros, sizes[:, ::-1]], 1).astype(jnp.float32)[:, None]
            proposals = Proposals(boxes, jnp.ones(boxes.shape[:2]), jnp.ones(boxes.shape[:2], bool))
        return self.detect_boxes(self.features(images, sizes, train=train), proposals, sizes, train=train)

    def true_sizes(self, images: Float[Array, "n h w 3"], sizes: Int[Array, "n 2"] | None) -> Int[Array, "n 2"]:
        """`sizes`, or those of the canvas; raises ValueError for a canvas that does not divide."""
        n, h, w, _ = images.shape
        good = (max(-(-h // 32), 1) * 32, max(-(-w // 32), 1) * 32)
        if (h, w) != good:
            raise ValueError(
                f"{type(self).__name__} needs a canvas with h, w divisible by 32, got {(h, w)}; pad to {good} "
                "and give the true sizes"
            )
        return jnp.broadcast_to(jnp.array([h, w], jnp.int32), (n, 2)) if sizes is None else sizes

    def features(
        self, images: Float[Array, "n h w 3"], sizes: Int[Array, "n 2"] | None = None, *, train: bool
    ) -> dict[str, Array]:
        """The levels, from fine to coarse. As in torchvision padding is seen like the rest, whatever the `sizes`."""
        return self.backbone(images.astype(self.dtype), train=train)

    def pool(self, features: Mapping[str, Array], boxes: Float[Array, "n k 4"], size: int) -> Any:
        """Features `[n k, size, size, c]` of the boxes, each from its own level."""
        levels = list(features.values())[: len(self.roi_strides)]
        pooled = self.roi(levels, boxes, size, strides=self.roi_strides, border=self.roi_border)
        return pooled.reshape(-1, *pooled.shape[2:])

    def box_scores(
        self, features: Mapping[str, Array], boxes: Float[Array, "n k 4"], *, train: bool
    ) -> tuple[Float[Array, "n k c"], Float[Array, "n k c 4"]]:
        """Class logits, and refinements by `decode_boxes` with BOX_WEIGHTS, of the boxes."""
        logits, deltas = self.box_predictor(self.box_head(self.pool(features, boxes, self.box_size), train=train))
        return logits.reshape(*boxes.shape[:2], -1), deltas.reshape(*boxes.shape[:2], -1, 4)

    def class_scores(self, logits: Float[Array, "n k c"]) -> Float[Array, "n k c"]:
        """What is shown, held against `box_score_thresh`, and ordered by."""
        return jax.nn.softmax(logits)

    def detect_boxes(
        self, features: Mapping[str, Array], proposals: Proposals, sizes: Int[Array, "n 2"], *, train: bool
    ) -> Detections:
        """Scores, refines and suppresses, class by class."""
        logits, deltas = self.box_scores(features, proposals.boxes, train=train)
        boxes = decode_boxes(deltas, proposals.boxes[:, :, None], BOX_WEIGHTS)
        boxes = clip_boxes(boxes.reshape(boxes.shape[0], -1, 4), sizes).reshape(boxes.shape)
        scores = self.class_scores(logits)
        select = functools.partial(
            _best_detections,
            k=self.box_detections_per_img,
            score_threshold=self.box_score_thresh,
            nms_threshold=self.box_nms_thresh,
        )
        return jax.vmap(select)(boxes[:, :, 1:], scores[:, :, 1:], proposals.valid)


def _best_detections(
    boxes: Float[Array, "r c 4"],
    scores: Float[Array, "r c"],
    valid: Bool[Array, "r"],
    *,
    k: int,
    score_threshold: float,
    nms_threshold: float,
) -> Detections:
    """The `k` best boxes of an image by class-wise suppression; class c of the arrays is c + 1 of the result."""
    classes = jnp.broadcast_to(jnp.arange(1, scores.shape[1] + 1, dtype=jnp.int32), scores.shape).ravel()
    good = valid[:, None] & (scores > score_threshold) & sides_at_least(boxes, 1e-2)
    boxes, scores = boxes.reshape(-1, 4), scores.ravel()
    kept = nms(boxes, scores, nms_threshold, k, classes=classes, valid=good.ravel())
    return Detections(
        jnp.where(kept.valid[:, None], boxes[kept.indices], 0),
        jnp.where(kept.valid, scores[kept.indices], 0),
        jnp.where(kept.valid, classes[kept.indices], 0),
        None,
        kept.valid,
    )


# Girshick 2015: relu5_3 of VGG-16, 7x7 bins, VGG's fc6 and fc7; images of 600 to 1000 pixels, suppression at 0.3
vgg16_level = functools.partial(SingleLevel, body=functools.partial(vgg16, deepest=16), level="stride16", features=512)
fastrcnn_vgg16 = functools.partial(
    FastRCNN,
    pyramid=vgg16_level,
    norm=None,
    box=functools.partial(BoxHead, 4096, 0.5),
    roi=single_roi_pool,
    roi_strides=(16,),
    box_nms_thresh=0.3,
    min_size=600,
    max_size=1000,
)
