"""The region proposal network: where objects may be, from every place of every feature map."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxseg.layers import Conv, ConvNormAct
from jaxseg.ops.boxes import Proposals, clip_boxes, decode_boxes
from jaxseg.ops.nms import nms

__all__ = ["AnchorScores", "RPNHead", "select_proposals", "sides_at_least"]

small_init = nn.initializers.normal(0.01)


class AnchorScores(NamedTuple):
    """What the network says of every anchor of one level."""

    logits: Any  # float32 [n, a]: whether there is an object
    deltas: Any  # float32 [n, a, 4]: where, by `decode_boxes`


class RPNHead(nn.Module):
    """The network that slides over a feature map (Ren et al. 2015, Figure 3, left); every level has the same."""

    anchors: int
    features: int
    convs: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> AnchorScores:
        for i in range(self.convs):
            conv = ConvNormAct(self.features, norm=None, kernel_init=small_init, dtype=self.dtype, name=f"conv_{i}")
            x = conv(x, train=train)
        logits = Conv(self.anchors, (1, 1), kernel_init=small_init, dtype=self.dtype, name="cls_logits")(x)
        deltas = Conv(4 * self.anchors, (1, 1), kernel_init=small_init, dtype=self.dtype, name="bbox_pred")(x)
        n = x.shape[0]
        return AnchorScores(logits.astype(jnp.float32).reshape(n, -1), deltas.astype(jnp.float32).reshape(n, -1, 4))


def sides_at_least(boxes: Float[Array, "*n 4"], least: float) -> Any:
    """Which boxes have both sides at least that long."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= least).all(-1)


def select_proposals(
    scores: list[AnchorScores],
    anchors: list[Any],
    sizes: Int[Array, "n 2"],
    *,
    before_nms: int,
    after_nms: int,
    nms_threshold: float,
    score_threshold: float,
    least_side: float = 1e-3,
) -> Proposals:
    """The best boxes of each image, `sizes` (h, w), from all levels (Lin et al. 2017, section 4.1).

    Of each level the `before_nms` best anchors are decoded, cut to the image, and suppressed among themselves;
    the `after_nms` best of all levels stay. What is below `score_threshold` or has a side below `least_side`
    does not. No gradient goes through.
    """
    scores, anchors = jax.lax.stop_gradient((scores, anchors))
    boxes, logits, levels = [], [], []
    for level, (found, references) in enumerate(zip(scores, anchors, strict=True)):
        best, at = jax.lax.top_k(found.logits, min(before_nms, found.logits.shape[1]))
        deltas = jnp.take_along_axis(found.deltas, at[..., None], 1)
        boxes.append(decode_boxes(deltas, jnp.asarray(references)[at]))
        logits.append(best)
        levels.append(jnp.full(best.shape[1], level, jnp.int32))
    candidates = clip_boxes(jnp.concatenate(boxes, 1), sizes)
    probability = jax.nn.sigmoid(jnp.concatenate(logits, 1))
    good = sides_at_least(candidates, least_side) & (probability >= score_threshold)
    classes = jnp.concatenate(levels)
    k = min(after_nms, candidates.shape[1])

    def suppress(boxes: Array, scores: Array, good: Array) -> Proposals:
        kept = nms(boxes, scores, nms_threshold, k, classes=classes, valid=good)
        return Proposals(
            jnp.where(kept.valid[:, None], boxes[kept.indices], 0),
            jnp.where(kept.valid, scores[kept.indices], 0),
            kept.valid,
        )

    return jax.vmap(suppress)(candidates, probability, good)
