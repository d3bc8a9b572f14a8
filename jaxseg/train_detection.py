"""Detectors through the one seam of training: sampling by keys, losses, and scores that add up."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxseg.data.augment import normalize
from jaxseg.losses.detection import BETA, box_losses, mask_errors, mean_mask_error, proposal_losses
from jaxseg.metrics.detection import average_precision, pasted_mask_iou, score_histogram
from jaxseg.ops.batch import batch_mean, batch_sum, example_index
from jaxseg.ops.boxes import BOX_WEIGHTS, Proposals, clip_boxes, encode_boxes, given_proposals
from jaxseg.ops.masks import Instances, crop_instances, crop_masks, instances_of
from jaxseg.ops.matching import Sampled, match, sample
from jaxseg.train import Modules, TrainFns, TrainState, augmented, frozen_in, without

__all__ = ["Sampling", "detection", "detection_losses"]


class Sampling(NamedTuple):
    """How many anchors and boxes of an image are learnt from (Ren et al. 2015; He et al. 2017): torchvision's."""

    anchors: int = 256
    anchors_positive: float = 0.5
    anchor_iou: tuple[float, float] = (0.7, 0.3)
    boxes: int = 512
    boxes_positive: float = 0.25
    box_iou: float = 0.5
    box_beta: float = BETA  # where the box loss turns linear; 1 in Fast R-CNN


SAMPLING = Sampling()
_TRUTH = {  # what a batch may say of its objects
    **{"label": jnp.int32, "instances": jnp.int32, "size": jnp.int32, "beyond": jnp.int32},
    **{"boxes": jnp.float32, "classes": jnp.int32, "valid": bool, "masks": bool},
}


class _Prepared(NamedTuple):
    """A batch as the model and its losses want it."""

    images: Any  # normalised
    masks: Any  # an id map [n, h, w], or bool [n, g, h, w], or None
    truth: Instances
    sizes: Any  # int32 [n, 2], or None: the whole canvas
    proposals: Proposals | None
    bad: Any  # int32 [n]: objects that are none, see `_sound`
    beyond: Any  # int32 [n]: objects that had no place


def _sound(boxes: Any, classes: Any, valid: Any, sizes: Any, num_classes: int) -> tuple[Array, Array, Array, Array]:
    """The objects `[n, g]` cut to their pictures, those without area there or a class in range no longer valid.

    Boxes, classes, validity, and of each image how many were lost. Such an object would make the loss infinite, or
    silently another.
    """
    boxes = clip_boxes(boxes, sizes)
    good = valid & (boxes[..., 2:] > boxes[..., :2]).all(-1) & (classes >= 1) & (classes < num_classes)
    lost = jnp.sum(valid & ~good, 1, dtype=jnp.int32)
    return jnp.where(good[..., None], boxes, 0), jnp.where(good, classes, 0), good, lost


def _sizes(example: PyTree) -> Array:
    n, h, w = example["image"].shape[:3]
    return example.get("size", jnp.broadcast_to(jnp.array([h, w], jnp.int32), (n, 2)))


def _objects_beyond(instances: Array, label: Array, g: int) -> Array:
    """How many ids above `g` an id map `[h, w]` shows with a class."""
    ids = jnp.sort(jnp.where((label > 0) & (label != 255), jnp.maximum(instances, g), g), axis=None)
    return jnp.sum(ids[1:] != ids[:-1], dtype=jnp.int32) + (ids[0] > g)


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
    instances: Array | None,
    truth: Instances,
    key: PRNGKeyArray,
    how: Sampling = SAMPLING,
    sizes: Int[Array, "n 2"] | None = None,
    proposals: Proposals | None = None,
) -> dict[str, Float[Array, ""]]:
    """The losses of a bound detector, by torchvision's names; run it with `flax.linen.apply`.

    `truth` holds the objects of each image, `instances` int `[n, h, w]` the ids that their masks are cut from, or bool
    `[n, g, h, w]` the masks themselves. `sizes` (h, w) are those of the images without padding. A detector that has
    no proposals of its own is given `proposals`. Each image draws from `key` folded with its place in the global batch.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index(images.shape[0]))
    anchor_keys, box_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    sizes = detector.true_sizes(images, sizes)
    features = detector.features(images, sizes, train=True)
    losses: dict[str, Array] = {}
    if hasattr(detector, "anchor_scores"):
        scores = detector.anchor_scores(features, train=True)
        anchors = detector.anchors(images, features)
        proposals = detector.propose(scores, anchors, sizes, train=True)
        flat = jnp.concatenate(list(map(jnp.asarray, anchors)))
        losses["loss_objectness"], losses["loss_rpn_box_reg"] = _anchor_terms(scores, flat, truth, anchor_keys, how)
    if proposals is None:
        raise ValueError(
            f"{type(detector).__name__} learns from proposals that are given: batch['proposals'] [n, p, 4]"
        )

    boxes, owner, classes, chosen = _sampled_boxes(proposals, truth, box_keys, how)
    boxes = jax.lax.stop_gradient(boxes)
    logits, deltas = detector.box_scores(features, boxes, train=True)
    true_boxes = jnp.take_along_axis(truth.boxes, owner[..., None], 1)
    targets = encode_boxes(true_boxes, boxes, BOX_WEIGHTS)
    classifier, box = box_losses(logits, deltas, classes, targets, chosen.valid, beta=how.box_beta)
    losses |= {"loss_classifier": classifier, "loss_box_reg": box}
    if hasattr(detector, "mask_sum"):
        most = max(int(how.boxes * how.boxes_positive), 1)  # positives come first
        boxes, owner, classes = boxes[:, :most], owner[:, :most], classes[:, :most]
        positive = chosen.positive[:, :most]
        if instances is None:
            raise ValueError(f"{type(detector).__name__} learns masks and the objects have none; use a Faster R-CNN")
        cut, at = (crop_instances, owner + 1) if instances.ndim == 3 else (crop_masks, owner)
        wanted = jax.vmap(functools.partial(cut, size=detector.mask_size))(instances, at, boxes)
        errors = detector.mask_sum(mask_errors, features, boxes, classes, wanted, positive)
        losses["loss_mask"] = mean_mask_error(errors, positive)
    return losses


def detection(
    model: nn.Module,
    *,
    optimizer: optax.GradientTransformation,
    max_instances: int,
    augment: Sequence[Callable] = (),
    batch_augment: Sequence[Callable] = (),
    sampling: Sampling = SAMPLING,
    ema_decay: float | None = None,
    pretrained: Callable[[PyTree], PyTree] | None = None,
    frozen: Modules = (),
) -> TrainFns:
    """Detection and instance segmentation as `TrainFns`.

    A batch holds `image` uint8 `[N, H, W, 3]` and the objects in one of two forms. As `jaxseg.data.padded_objects`
    gives them: `boxes`, `classes`, `valid` and, to learn masks, `masks`; those that had no place are background, and
    the metric `instances_beyond` counts them. Or as maps: `instances` int `[N, H, W]`, the ids 1.. of the objects,
    and `label` int `[N, H, W]`, the class of each pixel; boxes are then those around what is seen of an object, ids
    above `max_instances` are background, `instances_beyond` counts them and `pixels_beyond` their pixels. A batch may
    hold `proposals` `[N, P, 4]` for a detector without its own; those without area are padding.

    Boxes are cut to their pictures. Objects without area there, and those whose class is not in 1..num_classes - 1, are
    background, and the metric `instances_bad` counts them. `watch` warns, once, where it or, of maps,
    `instances_beyond` is not 0.

    `augment` are functions of (key, example) as in `supervised`, and then `batch_augment` of (key, examples), such as
    `jaxseg.data.copy_paste`. `frozen` is as in `supervised`, with `jaxseg.train.first_stages`.

    `evaluate` matches detections to objects, as COCO does but without crowds, at an IoU of 0.5, of boxes and of masks,
    and sums histograms of their scores; `summarize` has the average precision from them. Places that fill up a last
    batch (`index` -1) do not count. Objects that are `instances_beyond` or `instances_bad` are not asked for:
    `summarize` has their numbers too, and warns where there are any.
    """
    if callable(frozen) or frozen:
        optimizer = without(optimizer, frozen)
    num_classes: int = model.num_classes  # type: ignore[attr-defined]
    reasons = {
        "instances_beyond": "had no place: raise max_instances",
        "instances_bad": f"have no area in their picture, or a class outside 1..{num_classes - 1}",
    }

    def prepared(batch: PyTree, key: PRNGKeyArray | None) -> _Prepared:
        example = {k: jnp.asarray(batch[k], t) for k, t in _TRUTH.items() if k in batch}
        example["image"] = jnp.asarray(batch["image"], jnp.float32) / 255
        fields, bad = ("boxes", "classes", "valid"), cast(Any, None)
        if "boxes" in example:  # before augmentations, which drop what leaves the picture
            boxes, classes, valid = (example[k] for k in fields)
            *sound, bad = _sound(boxes, classes, valid, _sizes(example), num_classes)
            example |= zip(fields, sound, strict=True)
        if key is not None:
            example = augmented(augment, key, example)
            for position, mix in enumerate(batch_augment, len(augment)):
                example = mix(jax.random.fold_in(key, position), example)
        if "boxes" in example:
            beyond = example.get("beyond", jnp.zeros(example["image"].shape[0], jnp.int32))
            truth = Instances(example["boxes"], example["classes"], example["valid"], beyond)
            masks = example.get("masks")
        else:
            masks, label = example["instances"], example["label"]
            truth = jax.vmap(functools.partial(instances_of, g=max_instances))(masks, label)
            beyond = jax.vmap(functools.partial(_objects_beyond, g=max_instances))(masks, label)
        boxes, classes, valid, lost = _sound(truth.boxes, truth.classes, truth.valid, _sizes(example), num_classes)
        truth = Instances(boxes, classes, valid, truth.beyond)
        proposals = None
        if "proposals" in batch:
            proposals = given_proposals(jnp.asarray(batch["proposals"], jnp.float32))
            if key is not None and (augment or batch_augment):
                raise ValueError("proposals that come with a batch do not move with it: train without augment")
        images = normalize(example["image"])
        return _Prepared(images, masks, truth, example.get("size"), proposals, lost if bad is None else bad, beyond)

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
        seen = prepared(batch, augment_key)

        def loss_of(params: PyTree) -> tuple[Array, tuple[dict[str, Array], PyTree]]:
            run = nn.apply(detection_losses, model, mutable=list(state.model_state) or ["batch_stats"])
            with frozen_in(params, frozen) as params:
                losses, model_state = run(
                    {"params": params, **state.model_state},
                    *(seen.images, seen.masks, seen.truth, sample_key, sampling, seen.sizes, seen.proposals),
                    rngs={"dropout": jax.random.fold_in(sample_key, 0)},
                )
            return sum(losses.values(), jnp.float32(0)), (losses, model_state)

        (value, (losses, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        grads = batch_mean(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_decay is not None:
            ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay)
        counts = {"instances_beyond": seen.beyond, "instances_bad": seen.bad}
        if "boxes" not in batch:
            counts["pixels_beyond"] = seen.truth.beyond
        counts = {name: batch_sum(jnp.sum(count)) for name, count in counts.items()}
        metrics = {"loss": value, **losses, "grad_norm": optax.global_norm(grads), **counts}
        return TrainState(state.step + 1, params, model_state, opt_state, ema_params), metrics

    def evaluate(state: TrainState, batch: PyTree) -> PyTree:
        params = state.params if state.ema_params is None else state.ema_params
        seen = prepared(batch, None)
        given = () if seen.proposals is None else (seen.proposals,)
        variables = {"params": params, **state.model_state}
        found: Any = model.apply(variables, seen.images, seen.sizes, *given, train=False)
        there = jnp.ones(seen.images.shape[0], bool)
        if "index" in batch:
            there = jnp.asarray(batch["index"]) >= 0
            found = found.replace(valid=found.valid & there[:, None])

        def one(found: Any, masks: Array | None, truth: Instances) -> PyTree:
            overlap = None
            if found.masks is not None and masks is not None:
                overlap = pasted_mask_iou(found.masks, found.boxes, masks, truth.valid.shape[0])
            return score_histogram(found, truth, overlap, num_classes)

        sums = jax.vmap(one)(found, seen.masks, seen.truth)
        for name, count in (("instances_beyond", seen.beyond), ("instances_bad", seen.bad)):
            sums[name] = jnp.where(there, count, 0)
        return batch_sum(jax.tree.map(lambda x: x.sum(0), sums))

    def summarize(sums: PyTree) -> dict[str, float]:
        counts = {name: float(sums[name]) for name in reasons}
        for name, why in reasons.items():
            if counts[name]:
                warnings.warn(
                    f"{counts[name]:.0f} object(s) were not asked for in evaluation: they {why}", stacklevel=2
                )
        return average_precision(sums) | counts

    def watch(metrics: Mapping[str, float]) -> None:
        for name, why in reasons.items():
            said = name == "instances_beyond" and "pixels_beyond" not in metrics  # by `padded_objects`, of each picture
            if metrics[name] and not said:  # without the number: Python shows a warning of one text once
                warnings.warn(f"objects were not learnt from, the metric {name} counts them: they {why}", stacklevel=2)

    return TrainFns(init, update, evaluate, summarize, watch)
