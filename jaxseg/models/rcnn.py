"""R-CNN: every proposed box is cut out, warped, and classified by a network of its own."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxseg.backbones.vgg import VGG, vgg16
from jaxseg.layers import Dropout
from jaxseg.models.fast_rcnn import FastRCNN
from jaxseg.ops.crops import warp_crops
from jaxseg.ops.pooling import adaptive_average_pool

__all__ = ["RCNN", "CropNetwork", "rcnn_vgg16"]


class CropNetwork(nn.Module):
    """VGG on warped crops: the features `pool5`, flat and channels first, and behind two dense layers `fc7`."""

    encoder: Callable[..., VGG] = vgg16
    fc_features: int = 4096
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, crops: Float[Array, "k s s 3"], *, train: bool) -> tuple[Array, Array]:
        x = self.encoder(dtype=self.dtype, name="body")(crops.astype(self.dtype), train=train)["stride32"]
        x = pool5 = adaptive_average_pool(x, (7, 7)).transpose(0, 3, 1, 2).reshape(crops.shape[0], -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(self.fc_features, dtype=self.dtype, name=name)(x))
            x = Dropout(self.dropout)(x, train=train)
        return pool5, x


class RCNN(FastRCNN):
    """R-CNN (Girshick et al. 2014, Figure 1): a convolutional network for each of the boxes that are given.

    As `FastRCNN`, but nothing is shared between boxes: each is warped to `crop_size` squared with `crop_padding`
    pixels of its surroundings (appendix A), `crops_at_once` an image in memory. Classes are scored from fc7: by
    softmax while it is fine-tuned, or with `svm` by one linear classifier a class, whose margins `jaxseg.train_rcnn`
    fits; scores are then their sigmoids. Boxes are refined from pool5 (appendix C).
    """

    network: Callable[..., nn.Module] = CropNetwork
    crop_size: int = 224
    crop_padding: int = 16
    crops_at_once: int = 32
    svm: bool = False
    box_nms_thresh: float = 0.3

    def setup(self) -> None:
        self.backbone = self.network(dtype=self.dtype)
        self.cls_score = nn.Dense(self.num_classes, dtype=self.dtype)
        self.bbox_pred = nn.Dense(4 * self.num_classes, dtype=self.dtype)

    def features(
        self, images: Float[Array, "n h w 3"], sizes: Int[Array, "n 2"] | None = None, *, train: bool
    ) -> dict[str, Array]:
        """The images themselves, and their true `sizes` (h, w) on the canvas: crops see nothing else."""
        return {"image": images.astype(self.dtype)} | ({} if sizes is None else {"size": sizes})

    def region_features(
        self,
        images: Float[Array, "n h w 3"],
        boxes: Float[Array, "n k 4"],
        sizes: Int[Array, "n 2"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "n k p"], Float[Array, "n k f"]]:
        """pool5 and fc7 of each box: what box regression and the classifiers are fitted on."""
        n, k = boxes.shape[:2]
        crops = warp_crops(images, boxes, self.crop_size, padding=self.crop_padding, sizes=sizes)
        pool5, fc7 = self.backbone(crops.reshape(n * k, *crops.shape[2:]), train=train)
        return pool5.reshape(n, k, -1), fc7.reshape(n, k, -1)

    def _scores(self, features: Mapping[str, Array], boxes: Array, train: bool) -> tuple[Array, Array]:
        pool5, fc7 = self.region_features(features["image"], boxes, features.get("size"), train=train)
        logits, deltas = self.cls_score(fc7), self.bbox_pred(pool5)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32).reshape(*boxes.shape[:2], -1, 4)

    def box_scores(
        self, features: Mapping[str, Array], boxes: Float[Array, "n k 4"], *, train: bool
    ) -> tuple[Float[Array, "n k c"], Float[Array, "n k c 4"]]:
        """Class logits, or margins, and refinements by `decode_boxes` with BOX_WEIGHTS, of the boxes."""
        n, k = boxes.shape[:2]
        if k <= self.crops_at_once or self.is_initializing():
            return self._scores(features, boxes, train)
        steps = -(-k // self.crops_at_once)
        padded = jnp.pad(boxes, ((0, 0), (0, steps * self.crops_at_once - k), (0, 0)))
        parts = padded.reshape(n, steps, self.crops_at_once, 4).swapaxes(0, 1)

        def one(model: RCNN, carry: None, part: Array) -> tuple[None, tuple[Array, Array]]:
            return carry, model._scores(features, part, train)

        scan = nn.scan(
            nn.remat(one), variable_broadcast=["params", "batch_stats"], split_rngs={"params": False, "dropout": True}
        )
        _, out = scan(self, None, parts)
        logits, deltas = (x.swapaxes(0, 1).reshape(n, -1, *x.shape[3:])[:, :k] for x in out)
        return logits, deltas

    def class_scores(self, logits: Float[Array, "n k c"]) -> Float[Array, "n k c"]:
        return jax.nn.sigmoid(logits) if self.svm else jax.nn.softmax(logits)


# Girshick et al. 2016, Table 1: VGG-16 ("O-Net"), mean AP 0.660 on VOC 2007 with box regression
rcnn_vgg16 = functools.partial(RCNN, min_size=600, max_size=1000)
