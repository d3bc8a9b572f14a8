"""Detectors through the one seam of training: sampling by keys, losses, and scores that add up."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxseg.data.augment import normalize
from jaxseg.losses.detection import box_losses, mask_loss, proposal_losses
from jaxseg.metrics.detection import average_precision, score_histogram
from jaxseg.ops.batch import batch_mean, batch_sum, example_index
from jaxseg.ops.boxes import BOX_WEIGHTS, encode_boxes
from jaxseg.ops.masks import Instances, crop_instances, instances_of, paste_masks
from jaxseg.ops.matching import Sampled, match, sample
from jaxseg.train import TrainFns, TrainState, augmented

__all__ = ["Sampling", "detection", "detection_losses"]


class Sampling(NamedTuple):
    """How many anchors and boxes of an image are learnt from (Ren et al. 2015; He et al. 2017): torchvision's."""

    anchors: int = 256
    anchors_positive: float = 0.5
    anchor_iou: tuple[float, float] = (0.7, 0.3)
    boxes: int = 512
    boxes_positive: float = 0.25
    box_iou: float = 0.5


SAMPLING = Sampling()


def _anchor_terms(scores: Any, anchors: Array, truth: Instances, keys: Array, how: Sampling) -> tuple[Array, Array]:
    logits = jnp.concatenate([s.logits for s in scores], 1)
    deltas = jnp.concatenate([s.deltas for s in scores], 1)

    def one(key: Array, logits: Array, deltas: Array, boxes: Array, valid: Array) -> tuple[Array, ...]:
        found = match(boxes, valid, anchors, high=how.anchor_iou[0], low=how.anchor_iou[1], rescue=True)
        chosen = sample(key, found.labels, how.anchors, how.anchors_positive)
        targets = encode_boxes(boxes[found.indices[chosen.indices]], anchors[chosen.indices])
        return logits[chosen.indices], deltas[chosen.indices], targets, chosen.positive, chosen.valid

    return proposal_losses(*jax.vmap(one)(keys, logits, deltas, truth.boxes, truth.valid))


def _sampled_boxes(proposals: Any, truth: Instances, keys: Array, how: Sampling) -> tuple[Array, Array, Array, Sampled]:
    """Boxes `[n, r, 4]`, the places of their objects in `truth`, their classes, and the sample."""

    def one(key: Array, boxes: Array, valid: Array, truth: Instances) -> tuple[Array, Array, Array, Sampled]:
        boxes = jnp.concatenate([boxes, truth.boxes])  # the true ones too, so that there are positives
        found = match(truth.boxes, truth.valid, boxes, high=how.box_iou, low=how.box_iou)
        labels = jnp.where(jnp.concatenate([valid, truth.valid]), found.labels, -1)
        chosen = sample(key, labels, how.boxes, how.boxes_positive)
        owner = found.indices[chosen.indices]
        return boxes[chosen.indices], owner, jnp.where(chosen.positive, truth.classes[owner], 0), chosen

    return jax.vmap(one)(keys, proposals.boxes, proposals.valid, truth)


def detection_losses(
    detector: Any,
    images: Float[Array, "n h w 3"],
    instances: Array,
    truth: Instances,
    key: PRNGKeyArray,
    how: Sampling = SAMPLING,
) -> dict[str, Float[Array, ""]]:
    """The losses of a bound detector, by torchvision's names; run it with `flax.linen.apply`.

    `truth` holds the objects of each image, `instances` int `[n, h, w]` the ids that their masks are cut from.
    Each image draws from `key` folded with its place in the global batch.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index(images.shape[0]))
    anchor_keys, box_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    sizes = detector.true_sizes(images, None)
    features = detector.features(images, train=True)
    scores = detector.anchor_scores(features, train=True)
    anchors = detector.anchors(images, features)
    proposals = detector.propose(scores, anchors, sizes, train=True)
    objectness, rpn_box = _anchor_terms(
        scores, jnp.concatenate(list(map(jnp.asarray, anchors))), truth, anchor_keys, how
    )

    boxes, owner, classes, chosen = _sampled_boxes(proposals, truth, box_keys, how)
    boxes = jax.lax.stop_gradient(boxes)
    logits, deltas = detector.box_scores(features, boxes, train=True)
    true_boxes = jnp.take_along_axis(truth.boxes, owner[..., None], 1)
    targets = encode_boxes(true_boxes, boxes, BOX_WEIGHTS)
    classifier, box = box_losses(logits, deltas, classes, targets, chosen.valid)
    losses = {
        "loss_objectness": objectness,
        "loss_rpn_box_reg": rpn_box,
        "loss_classifier": classifier,
        "loss_box_reg": box,
    }
    if hasattr(detector, "mask_logits"):
        most = max(int(how.boxes * how.boxes_positive), 1)  # positives come first
        boxes, owner, classes = boxes[:, :most], owner[:, :most], classes[:, :most]
        masks = detector.mask_logits(features, boxes, classes, train=True)
        cut = functools.partial(crop_instances, size=masks.shape[-1])
        wanted = jax.vmap(cut)(instances, owner + 1, boxes)
        losses["loss_mask"] = mask_loss(masks, wanted, chosen.positive[:, :most])
    return losses


def detection(
    model: nn.Module,
    *,
    optimizer: optax.GradientTransformation,
    max_instances: int,
    augment: Sequence[Callable] = (),
    sampling: Sampling = SAMPLING,
    ema_decay: float | None = None,
    pretrained: Callable[[PyTree], PyTree] | None = None,
) -> TrainFns:
    """Detection and instance segmentation as `TrainFns`.

    A batch holds `image` uint8 `[N, H, W, 3]`, `instances` int `[N, H, W]`, the ids 1.. of the objects, and
    `label` int `[N, H, W]`, the class of each pixel. Boxes are those around what is seen of an object after
    `augment`, functions of (key, example) as in `supervised`. Objects with ids above `max_instances` have no
    place and are background; the metric `pixels_beyond` counts their pixels.

    `evaluate` matches detections to objects, as COCO does, at an IoU of 0.5, of boxes and of masks, and sums
    histograms of their scores; `summarize` has the average precision from them.
    """

    def prepared(batch: PyTree, key: PRNGKeyArray | None) -> tuple[Array, Array, Instances]:
        example = {k: jnp.asarray(batch[k], jnp.int32) for k in ("label", "instances")}
        example["image"] = jnp.asarray(batch["image"], jnp.float32) / 255
        if key is not None:
            example = augmented(augment, key, example)
        truth = jax.vmap(functools.partial(instances_of, g=max_instances))(example["instances"], example["label"])
        return normalize(example["image"]), example["instances"], truth

    def init(key: PRNGKeyArray, batch: PyTree) -> TrainState:
        shape = (1, *batch["image"].shape[1:])
        unoptimized = jax.default_backend() == "cpu" and not isinstance(key, jax.core.Tracer)
        options = {"xla_backend_optimization_level": 0} if unoptimized else None
        variables = jax.jit(lambda k: model.init(k, jnp.zeros(shape), train=False), compiler_options=options)(key)
        if pretrained is not None:
            variables = pretrained(variables)
        params, model_state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        ema_params = None if ema_decay is None else jax.tree.map(jnp.copy, params)
        return TrainState(jnp.int32(0), params, model_state, optimizer.init(params), ema_params)

    def update(state: TrainState, batch: PyTree, key: PRNGKeyArray) -> tuple[TrainState, PyTree]:
        augment_key, sample_key = jax.random.split(key)
        images, instances, truth = prepared(batch, augment_key)

        def loss_of(params: PyTree) -> tuple[Array, tuple[dict[str, Array], PyTree]]:
            run = nn.apply(detection_losses, model, mutable=list(state.model_state) or ["batch_stats"])
            variables = {"params": params, **state.model_state}
            losses, model_state = run(variables, images, instances, truth, sample_key, sampling)
            return sum(losses.values(), jnp.float32(0)), (losses, model_state)

        (value, (losses, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        grads = batch_mean(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_decay is not None:
            ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay)
        beyond = batch_sum(jnp.sum(truth.beyond))
        metrics = {"loss": value, **losses, "grad_norm": optax.global_norm(grads), "pixels_beyond": beyond}
        return TrainState(state.step + 1, params, model_state, opt_state, ema_params), metrics

    def evaluate(state: TrainState, batch: PyTree) -> PyTree:
        params = state.params if state.ema_params is None else state.ema_params
        images, instances, truth = prepared(batch, None)
        found: Any = model.apply({"params": params, **state.model_state}, images, train=False)
        size = (images.shape[1], images.shape[2])

        def one(found: Any, instances: Array, truth: Instances) -> PyTree:
            pasted = None if found.masks is None else paste_masks(found.masks, found.boxes, size) > 0.5
            return score_histogram(found, truth, pasted, instances, model.num_classes)  # type: ignore[attr-defined]

        sums = jax.vmap(one)(found, instances, truth)
        return batch_sum(jax.tree.map(lambda x: x.sum(0), sums))

    def summarize(sums: PyTree) -> dict[str, float]:
        return average_precision(sums)

    return TrainFns(init, update, evaluate, summarize)
