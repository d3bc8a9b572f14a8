"""Training of detectors: matching and sampling by definition, losses beside torchvision, runs to the last bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from models.test_detectors import fill, init_shapes, small

import jaxseg
from jaxseg.backbones.fpn import FPN
from jaxseg.backbones.resnet import resnet18
from jaxseg.data import flip
from jaxseg.data.scenes import draw, instance_boxes
from jaxseg.losses.detection import box_losses, mask_errors, mask_loss, proposal_losses
from jaxseg.metrics.detection import SCORE_BINS, average_precision, mask_iou, match_detections
from jaxseg.models.mask_rcnn import MaskHead
from jaxseg.ops.masks import instances_of
from jaxseg.ops.matching import IGNORED, match, sample
from jaxseg.train_detection import Sampling, detection, detection_losses


def boxes_of(*rows):
    return jnp.array(rows, jnp.float32)


def test_matching():
    true = boxes_of([0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 0, 0])
    valid = jnp.array([True, True, False])
    references = boxes_of([0, 0, 10, 9], [0, 0, 10, 5], [0, 0, 10, 2], [25, 0, 35, 10], [25, 0, 35, 10], [0, 0, 0, 0])
    plain = match(true, valid, references, high=0.7, low=0.3)
    assert plain.labels.tolist() == [1, IGNORED, 0, IGNORED, IGNORED, 0]  # 0.9, 0.5, 0.2, 1/3, 1/3, none
    assert plain.indices.tolist()[:5] == [0, 0, 0, 1, 1]
    rescued = match(true, valid, references, high=0.7, low=0.3, rescue=True)
    assert rescued.labels.tolist() == [1, IGNORED, 0, 1, 1, 0]  # the best of a box, ties too
    apart = match(boxes_of([90, 90, 99, 99]), jnp.ones(1, bool), references, high=0.7, low=0.3, rescue=True)
    assert apart.labels.tolist() == [0] * 6  # nothing is nearest to what nothing overlaps
    none = match(true, jnp.zeros(3, bool), references, high=0.7, low=0.3, rescue=True)
    assert none.labels.tolist() == [0] * 6
    assert match(true[:0], valid[:0], references, high=0.5, low=0.5).labels.tolist() == [0] * 6


@functools.partial(jax.jit, static_argnums=(2, 3))
def draw_sample(key, labels, count, fraction):
    return sample(key, labels, count, fraction)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(30, 60, (10, 10)), (3, 60, (3, 17)), (30, 4, (10, 4)), (0, 2, (0, 2)), (0, 0, (0, 0)), (0, 60, (0, 20))],
)
def test_sampling(positives, negatives, expected):
    labels = jnp.array([1] * positives + [-1] * 5 + [0] * negatives + [-1] * (95 - positives - negatives))
    seen = set()
    for seed in range(3):
        found = draw_sample(jax.random.key(seed), labels, 20, 0.5)
        chosen = np.asarray(found.indices)[np.asarray(found.valid)]
        assert len(set(chosen.tolist())) == len(chosen) == sum(expected)
        assert (labels[chosen] == 1).sum() == found.positive.sum() == expected[0]
        assert found.positive[: expected[0]].all()  # positives come first
        assert (labels[chosen] == 0).sum() == expected[1]
        assert found.indices.shape == (20,)
        seen.add(tuple(chosen.tolist()))
    if sum(expected) == 20:
        assert len(seen) == 3
    assert sample(jax.random.key(0), labels[:3], 20, 0.5).indices.shape == (20,)


def test_losses_by_their_definitions():
    rng = np.random.default_rng(0)
    logits, deltas, targets = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 5), (2, 5, 4), (2, 5, 4)))
    positive = jnp.array([[1, 0, 0, 1, 0], [1, 0, 0, 0, 0]], bool)
    valid = jnp.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
    targets = targets.at[1, 3].set(-jnp.inf)  # what a box without extent encodes to
    probability = jax.nn.sigmoid(logits)
    bits = -jnp.where(positive, jnp.log(probability), jnp.log(1 - probability))

    def smooth(x):
        return 4.5 * x * x if abs(x) < 1 / 9 else abs(x) - 1 / 18

    error = sum(smooth(float(e)) for e in (deltas - targets)[positive].ravel())
    ours = proposal_losses(logits, deltas, targets, positive, valid)
    np.testing.assert_allclose(ours, [bits[valid].mean(), error / 7], rtol=1e-5)
    gradient = jax.grad(lambda d: proposal_losses(logits, d, targets, positive, valid)[1])(deltas)
    assert jnp.isfinite(gradient).all()

    classes = jnp.where(positive, 2, 0)
    scores = jnp.asarray(rng.standard_normal((2, 5, 3)), jnp.float32)
    by_class = jnp.asarray(rng.standard_normal((2, 5, 3, 4)), jnp.float32)
    picked = jnp.take_along_axis(jax.nn.log_softmax(scores), classes[..., None], -1)[..., 0]
    error = sum(smooth(float(e)) for e in (by_class[:, :, 2] - targets)[positive].ravel())
    ours = box_losses(scores, by_class, classes, targets, valid)
    np.testing.assert_allclose(ours, [-picked[valid].mean(), error / 7], rtol=1e-5)

    masks, wanted = jnp.asarray(rng.standard_normal((2, 5, 3, 3)), jnp.float32), jnp.ones((2, 5, 3, 3))
    expected = -jnp.log(jax.nn.sigmoid(masks))[positive].mean()
    np.testing.assert_allclose(mask_loss(masks, wanted, positive), expected, rtol=1e-5)
    assert mask_loss(masks, wanted, jnp.zeros((2, 5), bool)) == 0


def test_masks_of_few_objects_cost_few_parts_and_have_the_loss_of_all(monkeypatch):
    pyramid = functools.partial(FPN, body=functools.partial(resnet18, features=(8, 8, 8, 8), stem_features=8))
    model = jaxseg.create_model("maskrcnn_small", 3, pyramid=pyramid, mask=functools.partial(MaskHead, (256,)))
    variables = fill(init_shapes(model))
    rng = np.random.default_rng(0)
    levels = [jnp.asarray(rng.standard_normal((2, 64 >> i, 64 >> i, 256)), jnp.float32) for i in range(4)]
    corner = rng.uniform(0, 150, (2, 24, 2))
    boxes = jnp.asarray(np.concatenate([corner, corner + rng.uniform(8, 100, (2, 24, 2))], -1), jnp.float32)
    classes = jnp.asarray(rng.integers(1, 3, (2, 24)))
    wanted = jnp.asarray(rng.random((2, 24, 28, 28)) > 0.5, jnp.float32)
    valid = jnp.arange(24) < jnp.array([[3], [14]])
    parts = []

    def errors(*args):
        jax.debug.callback(lambda: parts.append(1))
        return mask_errors(*args)

    def loss(params, levels):
        def of(model):
            features = {f"stride{4 << i}": level for i, level in enumerate(levels)}  # in no tree's order
            return model.mask_sum(errors, features, boxes, classes, wanted, valid)

        return nn.apply(of, model)({**variables, "params": params})

    taken = jax.jit(jax.value_and_grad(loss, (0, 1)))(variables["params"], levels)
    jax.effects_barrier()
    assert len(parts) == 1  # of two
    monkeypatch.setattr("jaxseg.models.mask_rcnn.tiles_pay", lambda x, kernel: False)
    whole = jax.jit(jax.value_and_grad(lambda *args: loss(*args), (0, 1)))(variables["params"], levels)
    np.testing.assert_allclose(taken[0], whole[0], rtol=1e-5)
    for ours, plain in zip(jax.tree.leaves(taken[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5 * max(float(jnp.abs(plain).max()), 1e-3))


def test_objects_of_an_id_map():
    scene = next(s for s in (draw(0, i, (64, 64)) for i in range(9)) if len(s.classes) > 2)
    k = len(scene.classes)
    label, instances = jnp.asarray(scene.label), jnp.asarray(scene.instances)
    found = instances_of(instances, label, k + 2)
    np.testing.assert_array_equal(found.boxes[:k], instance_boxes(scene.instances))
    np.testing.assert_array_equal(found.classes, [*scene.classes, 0, 0])
    assert found.valid.tolist() == [True] * k + [False] * 2
    assert not found.boxes[k:].any()
    assert found.beyond == 0
    fewer = instances_of(instances, jnp.where(instances == 1, 255, label), k - 1)
    assert not fewer.valid[0]
    assert fewer.beyond == (scene.instances == k).sum()


def test_average_precision():
    overlap = jnp.array([[0.9, 0.6], [0.8, 0.7], [0.7, 0.2], [0.4, 0.45]])
    valid, two = jnp.ones(4, bool), jnp.ones(2, bool)
    ones = jnp.ones(4, jnp.int32)
    right = match_detections(overlap, ones, ones[:2], valid, two)
    assert right.tolist() == [True, True, False, False]  # the second takes what is left, the third finds nothing
    assert match_detections(overlap, ones, jnp.array([2, 2]), valid, two).tolist() == [False] * 4
    assert match_detections(overlap[:, :0], ones, ones[:0], valid, two[:0]).tolist() == [False] * 4
    a = jnp.zeros((2, 4, 4), bool).at[0, :2].set(True)
    np.testing.assert_allclose(mask_iou(a, a[:1].at[0, 1:3].set(True)), [[2 / 3], [0]], atol=1e-6)

    # right at 0.9 and 0.7, wrong at 0.8, of three objects: precision 1 to a third, 2/3 to two thirds, then 0
    histogram = np.zeros((2, 2, SCORE_BINS))
    histogram[0, 1, [900, 700]] = 1
    histogram[1, 1, 800] = 1
    sums = {"objects": np.array([0, 3.0]), "box_right": histogram[0], "box_wrong": histogram[1]}
    expected = (34 * 1 + 33 * 2 / 3) / 101
    assert average_precision(sums) == {"box_ap50": pytest.approx(expected)}
    assert np.isnan(average_precision(jax.tree.map(np.zeros_like, sums))["box_ap50"])


SAMPLING = Sampling(anchors=32, boxes=24)


@functools.cache
def trainer():
    model = small("maskrcnn_resnet50_fpn", rpn_pre_nms_top_n_train=40, rpn_post_nms_top_n_train=24)
    model = model.clone(num_classes=7, box_score_thresh=0.05)
    fns = detection(model, optimizer=optax.adam(1e-3), max_instances=6, augment=(flip,), sampling=SAMPLING)
    variables = fill(init_shapes(model))
    return fns, variables, jax.jit(fns.update), jax.jit(fns.evaluate)


def batch(first=0, n=2):
    scenes = [draw(5, first + i, (64, 64)) for i in range(n)]
    return {k: np.stack([getattr(s, k) for s in scenes]) for k in ("image", "label", "instances")}


def start():
    fns, variables, _, _ = trainer()
    state = jax.eval_shape(fns.init, jax.random.key(0), batch())
    params = jax.tree.map(lambda x: 0.7 * x, variables["params"])
    state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state)
    return state.replace(params=params, model_state={"batch_stats": variables["batch_stats"]})


@pytest.mark.slow
def test_two_runs_from_one_seed_are_equal_to_the_last_bit():
    _, _, update, _ = trainer()

    def run():
        state, losses = start(), []
        for step in range(20):
            state, metrics = update(state, batch(step % 3 * 2), jax.random.fold_in(jax.random.key(7), step))
            losses.append({k: np.asarray(v) for k, v in metrics.items()})
        return state, losses

    (a, losses), (b, again) = run(), run()
    assert losses == again
    assert jax.tree.all(jax.tree.map(np.array_equal, a.params, b.params))
    assert losses[-1]["loss"] < losses[0]["loss"]
    names = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    assert names < set(losses[0])
    np.testing.assert_allclose(losses[0]["loss"], sum(losses[0][k] for k in names), rtol=1e-5)
    for path, (old, new) in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda x, y: (x, y), start().params, a.params), is_leaf=lambda x: isinstance(x, tuple)
    ):
        assert jnp.isfinite(new).all(), path
        assert (old != new).any(), path  # a gradient reached it
    assert jax.tree.all(jax.tree.map(np.array_equal, a.model_state, start().model_state))
    other, _ = update(start(), batch(), jax.random.key(8))
    same, _ = update(start(), batch(), jax.random.key(7))
    assert not jax.tree.all(jax.tree.map(np.array_equal, other.params, same.params))


@pytest.mark.slow
def test_images_without_objects_train_and_score():
    fns, _, update, evaluate = trainer()
    empty = batch() | {k: np.zeros((2, 64, 64), np.int32) for k in ("label", "instances")}
    state, metrics = update(start(), empty, jax.random.key(0))
    assert metrics["loss_mask"] == metrics["loss_box_reg"] == metrics["loss_rpn_box_reg"] == 0
    assert all(np.isfinite(v) for v in metrics.values())
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), state.params))
    sums = jax.tree.map(np.asarray, evaluate(start(), empty))
    assert sums["objects"].sum() == 0
    assert np.isnan(fns.summarize(sums)["mask_ap50"])


def test_evaluation_adds_up_over_batches():
    fns, _, _, evaluate = trainer()
    whole = batch(0, 2)
    parts = [{k: v[[i, i]] for k, v in whole.items()} for i in range(2)]  # each twice: one program
    together = evaluate(start(), whole)
    apart = jax.tree.map(lambda a, b: (a + b) / 2, *(evaluate(start(), part) for part in parts))
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert together["objects"].sum() == sum(len(draw(5, i, (64, 64)).classes) for i in range(2))
    assert together["mask_right"].sum() + together["mask_wrong"].sum() > 0
    scores = fns.summarize(jax.tree.map(np.asarray, together))
    assert set(scores) == {"box_ap50", "mask_ap50", "instances_beyond", "instances_bad"}
    assert scores["instances_beyond"] == scores["instances_bad"] == 0


def test_objects_of_a_map_without_a_place_or_a_class_are_counted():
    fns, _, update, evaluate = trainer()
    crowded = batch() | {"instances": np.zeros((2, 64, 64), np.int32), "label": np.zeros((2, 64, 64), np.int32)}
    for i in range(9):  # of which 6 have a place
        crowded["instances"][0, 7 * i : 7 * i + 5, 10:30], crowded["label"][0, 7 * i : 7 * i + 5, 10:30] = i + 1, 2
    crowded["label"][0, 56:61] = 255  # the last is not to be judged
    crowded["label"][0, :5, 10:30] = 7  # of classes up to 6
    crowded["instances"][1, 3:9, 3:9] = 12  # background
    _, metrics = update(start(), crowded, jax.random.key(0))
    assert metrics["instances_beyond"] == 2
    assert metrics["pixels_beyond"] > 0
    assert metrics["instances_bad"] == 1
    assert np.isfinite(metrics["loss"])
    values = {k: float(v) for k, v in metrics.items()}
    with pytest.warns(UserWarning, match="not learnt from") as said:
        fns.watch(values)
    assert [str(w.message).split()[7] for w in said] == ["instances_beyond", "instances_bad"]
    sums = jax.tree.map(np.asarray, evaluate(start(), crowded))
    assert sums["objects"].sum() == 5
    with pytest.warns(UserWarning, match="object") as said:
        scores = fns.summarize(sums)
    assert (scores["instances_beyond"], scores["instances_bad"]) == (2, 1)
    messages = [str(w.message) for w in said]
    assert any("2 object(s) were not asked for in evaluation: they had no place: raise max_inst" in m for m in messages)
    assert any("1 object(s) were not asked" in m and "a class outside 1..6" in m for m in messages)


@pytest.mark.parity
def test_losses_are_torchvisions():
    """Of the whole model in training, with samples so large that both take every anchor and box."""
    from models.test_detectors_torchvision import both, photograph
    from torchvision_shim import torch, torchvision

    model, variables, reference, _ = both("maskrcnn_resnet50_fpn")
    image = photograph(96, 128)
    instances = np.zeros((96, 128), np.int32)
    instances[10:60, 20:90], instances[40:80, 60:120], instances[70:90, 5:40] = 1, 2, 3
    classes = np.array([3, 17, 90])
    label = np.where(instances > 0, classes[np.maximum(instances, 1) - 1], 0).astype(np.int32)
    truth = instances_of(jnp.asarray(instances), jnp.asarray(label), 5)
    limits = {"rpn_pre_nms_top_n_train": 40, "rpn_post_nms_top_n_train": 30}
    model = model.clone(**limits)
    mean, std = (np.array(x, np.float32) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    @jax.jit
    def ours(images, instances, truth):
        how = Sampling(anchors=9000, boxes=4000)
        run = nn.apply(functools.partial(detection_losses, how=how), model, mutable=["batch_stats"])
        return run(variables, images, instances, truth, jax.random.key(0))[0]

    found = ours(
        jnp.asarray((image - mean) / std)[None], jnp.asarray(instances)[None], jax.tree.map(lambda x: x[None], truth)
    )

    align = torchvision.models.detection.roi_heads.roi_align
    one_by_one = lambda x, rois, *rest: torch.cat([align(x, roi[None], *rest) for roi in rois])  # noqa: E731, memory
    reference.train()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    reference.rpn._pre_nms_top_n = {"training": limits["rpn_pre_nms_top_n_train"]}
    reference.rpn._post_nms_top_n = {"training": limits["rpn_post_nms_top_n_train"]}
    reference.rpn.fg_bg_sampler.batch_size_per_image = 9000
    reference.roi_heads.fg_bg_sampler.batch_size_per_image = 4000
    target = {
        "boxes": torch.from_numpy(np.asarray(truth.boxes[:3]).copy()),
        "labels": torch.from_numpy(classes),
        "masks": torch.from_numpy((instances == np.arange(1, 4)[:, None, None]).astype(np.uint8)),
    }
    try:
        torchvision.models.detection.roi_heads.roi_align = one_by_one
        with torch.no_grad():
            expected = reference([torch.from_numpy(image.transpose(2, 0, 1).copy())], [target])
    finally:
        torchvision.models.detection.roi_heads.roi_align = align
        both.cache_clear()
    assert set(expected) == set(found)
    for name, value in expected.items():
        assert value > 0
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
