"""Faster R-CNN: proposals from the network's own features, scored and refined; one program of fixed shapes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxseg.backbones.fpn import FPN
from jaxseg.backbones.mobilenet_v3 import mobilenet_v3_large
from jaxseg.layers import BatchNorm, ConvNormAct, FrozenBatchNorm
from jaxseg.models.output import Detections
from jaxseg.models.rpn import AnchorScores, Proposals, RPNHead, select_proposals, sides_at_least
from jaxseg.ops.anchors import pyramid_anchors
from jaxseg.ops.boxes import BOX_WEIGHTS, clip_boxes, decode_boxes
from jaxseg.ops.nms import nms
from jaxseg.ops.roi import pyramid_roi_align

__all__ = [
    "BoxConvHead",
    "BoxHead",
    "FasterRCNN",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
]


def _flatten(x: Array) -> Array:
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # channels first, as the published weights have it


class BoxHead(nn.Module):
    """Two fully connected layers on the features of a box (Lin et al. 2017, section 4.2)."""

    features: int = 1024
    norm: Callable[..., nn.Module] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "k s s c"], *, train: bool) -> Float[Array, "k f"]:
        x = nn.relu(nn.Dense(self.features, dtype=self.dtype, name="fc6")(_flatten(x)))
        return nn.relu(nn.Dense(self.features, dtype=self.dtype, name="fc7")(x))


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
        return nn.relu(nn.Dense(self.features, dtype=self.dtype, name="fc")(_flatten(x)))


class BoxPredictor(nn.Module):
    """Class scores of a box, background first, and its refinement for every class."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "k f"]) -> tuple[Float[Array, "k c"], Float[Array, "k c 4"]]:
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="cls_score")(x)
        deltas = nn.Dense(4 * self.num_classes, dtype=self.dtype, name="bbox_pred")(x)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32).reshape(x.shape[0], self.num_classes, 4)


class FasterRCNN(nn.Module):
    """Faster R-CNN (Ren et al. 2015, Figure 2) on FPN (Lin et al. 2017), torchvision's in every number.

    `model(images, sizes, train=False)` gives `Detections` on the canvas of the images, which are padded below
    and to the right from their true `sizes` (h, w), by default none. Its steps are methods, for training and
    for use by themselves: `features`, `anchor_scores`, `propose`, `box_scores`, `detect_boxes`.

    `num_classes` counts the background, class 0. `norm` is the body's; `head_norm` is that of the pyramid and
    the heads' convolutions. The other fields have torchvision's names and meanings; `roi_strides` are those of
    the levels that boxes are read from, and `roi_border` is RoIAlign's `border`: torchvision's form in Python has
    it and its compiled kernel not, and they differ for slivers at the canvas' lower and right edge. Canvas sizes
    are multiples of 32; ValueError names the next.
    """

    num_classes: int
    pyramid: Callable[..., nn.Module] = FPN
    box: Callable[..., nn.Module] = BoxHead
    norm: Callable[..., nn.Module] = functools.partial(FrozenBatchNorm, epsilon=0.0)
    head_norm: Callable[..., nn.Module] | None = None
    anchor_sizes: tuple[tuple[int, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_convs: int = 1
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_score_thresh: float = 0.0
    roi_strides: tuple[int, ...] = (4, 8, 16, 32)
    roi_border: bool = True
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    min_size: int = 800
    max_size: int = 1333
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        self.backbone = self.pyramid(norm=self.norm, pyramid_norm=self.head_norm, dtype=self.dtype, remat=self.remat)
        anchors = len(self.anchor_sizes[0]) * len(self.anchor_ratios)
        self.rpn = RPNHead(anchors, self.backbone.features, self.rpn_convs, self.dtype)
        self.box_head = self.box(norm=self.head_norm, dtype=self.dtype)
        self.box_predictor = BoxPredictor(self.num_classes, self.dtype)

    def __call__(
        self, images: Float[Array, "n h w 3"], sizes: Int[Array, "n 2"] | None = None, *, train: bool
    ) -> Detections:
        sizes = self.true_sizes(images, sizes)
        features = self.features(images, train=train)
        scores = self.anchor_scores(features, train=train)
        proposals = self.propose(scores, self.anchors(images, features), sizes, train=train)
        return self.detect_boxes(features, proposals, sizes, train=train)

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

    def features(self, images: Float[Array, "n h w 3"], *, train: bool) -> dict[str, Array]:
        """The pyramid's levels, from fine to coarse."""
        return self.backbone(images.astype(self.dtype), train=train)

    def anchors(self, images: Any, features: Mapping[str, Array]) -> list[Any]:
        """Anchors `[a, 4]` of each level: constants."""
        grids = [(x.shape[1], x.shape[2]) for x in features.values()]
        return pyramid_anchors(grids, (images.shape[1], images.shape[2]), self.anchor_sizes, self.anchor_ratios)

    def anchor_scores(self, features: Mapping[str, Array], *, train: bool) -> list[AnchorScores]:
        """Whether each anchor of each level holds an object, and where."""
        return [self.rpn(x, train=train) for x in features.values()]

    def propose(
        self, scores: list[AnchorScores], anchors: list[Any], sizes: Int[Array, "n 2"], *, train: bool
    ) -> Proposals:
        """The boxes that the second stage looks at; of no size counts as padding."""
        return select_proposals(
            scores,
            anchors,
            sizes,
            before_nms=self.rpn_pre_nms_top_n_train if train else self.rpn_pre_nms_top_n_test,
            after_nms=self.rpn_post_nms_top_n_train if train else self.rpn_post_nms_top_n_test,
            nms_threshold=self.rpn_nms_thresh,
            score_threshold=self.rpn_score_thresh,
        )

    def pool(self, features: Mapping[str, Array], boxes: Float[Array, "n k 4"], size: int) -> Any:
        """Features `[n k, size, size, c]` of the boxes, each from its own level."""
        levels = list(features.values())[: len(self.roi_strides)]
        pooled = pyramid_roi_align(levels, boxes, size, strides=self.roi_strides, border=self.roi_border)
        return pooled.reshape(-1, *pooled.shape[2:])

    def box_scores(
        self, features: Mapping[str, Array], boxes: Float[Array, "n k 4"], *, train: bool
    ) -> tuple[Float[Array, "n k c"], Float[Array, "n k c 4"]]:
        """Class logits, and refinements by `decode_boxes` with BOX_WEIGHTS, of the boxes."""
        logits, deltas = self.box_predictor(self.box_head(self.pool(features, boxes, 7), train=train))
        return logits.reshape(*boxes.shape[:2], -1), deltas.reshape(*boxes.shape[:2], -1, 4)

    def detect_boxes(
        self, features: Mapping[str, Array], proposals: Proposals, sizes: Int[Array, "n 2"], *, train: bool
    ) -> Detections:
        """Scores, refines and suppresses, class by class."""
        logits, deltas = self.box_scores(features, proposals.boxes, train=train)
        boxes = decode_boxes(deltas, proposals.boxes[:, :, None], BOX_WEIGHTS)
        boxes = clip_boxes(boxes.reshape(boxes.shape[0], -1, 4), sizes).reshape(boxes.shape)
        scores = jax.nn.softmax(logits)
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


_MOBILE = functools.partial(
    FasterRCNN,
    pyramid=functools.partial(FPN, body=mobilenet_v3_large, levels=("features_13", "features_16")),
    norm=FrozenBatchNorm,
    anchor_sizes=((32, 64, 128, 256, 512),) * 3,
    roi_strides=(32, 32),
    rpn_score_thresh=0.05,
)

# torchvision's variants; v2 after Li et al. 2021
fasterrcnn_resnet50_fpn = FasterRCNN
fasterrcnn_resnet50_fpn_v2 = functools.partial(
    FasterRCNN, norm=BatchNorm, head_norm=BatchNorm, box=BoxConvHead, rpn_convs=2
)
fasterrcnn_mobilenet_v3_large_fpn = _MOBILE
fasterrcnn_mobilenet_v3_large_320_fpn = functools.partial(
    _MOBILE, min_size=320, max_size=640, rpn_pre_nms_top_n_test=150, rpn_post_nms_top_n_test=150
)
