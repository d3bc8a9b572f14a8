"""Faster R-CNN: proposals from the network's own features, scored and refined; one program of fixed shapes."""

import functools
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Int

from jaxseg.backbones.fpn import FPN
from jaxseg.backbones.mobilenet_v3 import mobilenet_v3_large
from jaxseg.backbones.resnet import resnet101
from jaxseg.layers import BatchNorm, FrozenBatchNorm
from jaxseg.models.fast_rcnn import BoxConvHead, BoxHead, FastRCNN, single_roi_pool, vgg16_level
from jaxseg.models.output import Detections
from jaxseg.models.rpn import AnchorScores, RPNHead, select_proposals
from jaxseg.ops.anchors import pyramid_anchors
from jaxseg.ops.boxes import Proposals

__all__ = [
    "BoxConvHead",
    "BoxHead",
    "FasterRCNN",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet101_fpn",
    "fasterrcnn_vgg16",
]


class FasterRCNN(FastRCNN):
    """Faster R-CNN (Ren et al. 2015, Figure 2) on FPN (Lin et al. 2017), torchvision's in every number.

    As `FastRCNN`, with proposals of its own; `model(images, sizes, train=False)` gives `Detections`. Its further steps
    are `anchor_scores` and `propose`. The fields have torchvision's names and meanings; `rpn_min_size` is the least
    side of a proposal.
    """

    anchor_sizes: tuple[tuple[int, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_convs: int = 1
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_score_thresh: float = 0.0
    rpn_min_size: float = 1e-3

    def setup(self) -> None:
        super().setup()
        anchors = len(self.anchor_sizes[0]) * len(self.anchor_ratios)
        self.rpn = RPNHead(anchors, self.backbone.features, self.rpn_convs, self.dtype)

    def __call__(
        self,
        images: Float[Array, "n h w 3"],
        sizes: Int[Array, "n 2"] | None = None,
        proposals: Proposals | None = None,
        *,
        train: bool,
    ) -> Detections:
        sizes = self.true_sizes(images, sizes)
        features = self.features(images, train=train)
        if proposals is None:
            scores = self.anchor_scores(features, train=train)
            proposals = self.propose(scores, self.anchors(images, features), sizes, train=train)
        return self.detect_boxes(features, proposals, sizes, train=train)

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
            least_side=self.rpn_min_size,
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
fasterrcnn_resnet101_fpn = functools.partial(
    FasterRCNN, pyramid=functools.partial(FPN, body=resnet101), norm=FrozenBatchNorm
)
fasterrcnn_resnet50_fpn_v2 = functools.partial(
    FasterRCNN, norm=BatchNorm, head_norm=BatchNorm, box=BoxConvHead, rpn_convs=2
)
fasterrcnn_mobilenet_v3_large_fpn = _MOBILE
fasterrcnn_mobilenet_v3_large_320_fpn = functools.partial(
    _MOBILE, min_size=320, max_size=640, rpn_pre_nms_top_n_test=150, rpn_post_nms_top_n_test=150
)

# Ren et al. 2015: relu5_3 of VGG-16, three scales by three ratios at stride 16, RoIPool 7x7, fc6 and fc7 of 4096.
# Objectness is a sigmoid of one score where the paper has a softmax over two: the same function of their difference.
fasterrcnn_vgg16 = functools.partial(
    FasterRCNN,
    pyramid=vgg16_level,
    norm=None,
    box=functools.partial(BoxHead, 4096, 0.5),
    anchor_sizes=((128, 256, 512),),
    roi=single_roi_pool,
    roi_strides=(16,),
    rpn_pre_nms_top_n_train=12000,
    rpn_post_nms_top_n_train=2000,
    rpn_pre_nms_top_n_test=6000,
    rpn_post_nms_top_n_test=300,
    rpn_min_size=16.0,
    box_nms_thresh=0.3,
    min_size=600,
    max_size=1000,
)
