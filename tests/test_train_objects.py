"""Objects as arrays in training: the numbers of id maps, on one device and on eight; frozen stages, schedules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.test_detectors import init_shapes, small
from test_train_detection import SAMPLING, batch, start, trainer

from jaxseg import parallel
from jaxseg.data import flip
from jaxseg.data.scenes import draw
from jaxseg.train import first_stages, sgd_steps
from jaxseg.train_detection import Sampling, detection

G = 6


def objects_batch(first=0, n=2, size=(64, 64), g=G):
    """What `padded_objects` would give of the shapes."""
    scenes = [draw(5, first + i, size) for i in range(n)]
    out = {"image": np.stack([s.image for s in scenes]), "index": np.arange(n, dtype=np.int32)}
    out |= {"boxes": np.zeros((n, g, 4), np.float32), "classes": np.zeros((n, g), np.int32)}
    out |= {"valid": np.zeros((n, g), bool), "masks": np.zeros((n, g, *size), bool), "beyond": np.zeros(n, np.int32)}
    out["size"] = np.tile(np.array(size, np.int32), (n, 1))
    for i, s in enumerate(scenes):
        k = len(s.classes)
        out["boxes"][i, :k], out["classes"][i, :k], out["valid"][i, :k] = s.boxes, s.classes, True
        out["masks"][i, :k] = s.instances == np.arange(1, k + 1)[:, None, None]
    return out


@functools.cache
def objects_trainer():
    model = small("maskrcnn_resnet50_fpn", rpn_pre_nms_top_n_train=40, rpn_post_nms_top_n_train=24)
    model = model.clone(num_classes=7, box_score_thresh=0.05)
    fns = detection(
        model,
        optimizer=optax.adam(1e-3),
        max_instances=G,
        augment=(flip,),
        sampling=SAMPLING,
        frozen=first_stages(2),
    )
    return fns, jax.jit(fns.update), jax.jit(fns.evaluate)


@pytest.mark.slow
def test_arrays_train_and_score_as_maps_do_and_frozen_stages_stay():
    fns, update, evaluate = objects_trainer()
    _, _, by_maps, maps_evaluate = trainer()
    before = start().replace(opt_state=fns.init(jax.random.key(0), objects_batch()).opt_state)
    after, metrics = update(before, objects_batch(), jax.random.key(7))
    _, expected = by_maps(start(), batch(), jax.random.key(7))
    for name, value in expected.items():
        if name.startswith("loss"):
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert metrics["instances_beyond"] == 0
    body, moved = ("backbone", "body"), []
    for path, old in jax.tree_util.tree_leaves_with_path(before.params):
        keys = [k.key for k in path]
        new = functools.reduce(lambda tree, k: tree[k], keys, after.params)
        frozen = tuple(keys[:2]) == body and keys[2].startswith(("conv1", "layer1"))
        if frozen:
            assert np.array_equal(old, new), path
        else:
            moved.append(not np.array_equal(old, new))
    assert len(moved) > 30
    assert np.mean(moved) > 0.9  # a level that no box reads in this step stays
    sums, expected = evaluate(before, objects_batch()), maps_evaluate(start(), batch())
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, err_msg=name)
    fill = objects_batch()
    fill["index"][1] = -1  # what fills up a last batch does not count
    fill["valid"][1] = False
    half = evaluate(before, fill)
    twice = jax.tree.map(lambda a, b: a + b, half, evaluate(before, _second_only(fill)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), twice, sums)
    more = objects_batch() | {"beyond": np.array([3, 1], np.int32)}
    assert update(before, more, jax.random.key(7))[1]["instances_beyond"] == 4
    assert evaluate(before, more)["instances_beyond"] == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("boxes", box) for box in ((5, 5, 5, 20), (20, 20, 5, 5), (200, 200, 220, 220), (np.nan,) * 4)),
        *(("classes", c) for c in (0, -1, 7, 99)),
    ],
)
def test_what_is_no_object_is_background_and_counted(field, value):
    fns, update, evaluate = objects_trainer()
    state = start().replace(opt_state=fns.init(jax.random.key(0), objects_batch()).opt_state)
    bad, without = objects_batch(), objects_batch()
    bad[field][0, 0], without["valid"][0, 0] = value, False
    (_, metrics), (_, expected) = (update(state, b, jax.random.key(3)) for b in (bad, without))
    assert (metrics["instances_bad"], expected["instances_bad"]) == (1, 0)
    for name in expected.keys() - {"instances_bad"}:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    sums, wanted = evaluate(state, bad), evaluate(state, without)
    assert sums["instances_bad"] == 1
    np.testing.assert_array_equal(sums["objects"], wanted["objects"])


def test_boxes_are_cut_to_their_picture():
    fns, update, _ = objects_trainer()
    state = start().replace(opt_state=fns.init(jax.random.key(0), objects_batch()).opt_state)
    wide, cut = ({k: v for k, v in objects_batch().items()} for _ in range(2))
    wide["boxes"][0, 0], cut["boxes"][0, 0] = (-9, -4, 30, 90), (0, 0, 30, 64)
    for b in (wide, cut):
        b["masks"] = np.zeros_like(b["masks"])
        b["masks"][0, 0, :, :30] = True
    (_, ours), (_, expected) = (update(state, b, jax.random.key(3)) for b in (wide, cut))
    assert ours["instances_bad"] == 0
    np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-5)


def _second_only(like):
    whole = objects_batch()
    whole["index"][0] = -1
    whole["valid"][0] = False
    return whole


def test_stages_by_their_names():
    resnet = init_shapes(small("maskrcnn_resnet50_fpn"))["params"]
    assert first_stages(2)(resnet) == ["backbone/body/conv1", "backbone/body/layer1_0"]
    assert first_stages(0)(resnet) == []
    vgg = init_shapes(small("fasterrcnn_vgg16"))["params"]
    assert first_stages(2)(vgg) == [f"backbone/body/conv{i}_{j}" for i in (1, 2) for j in (1, 2)]
    with pytest.raises(ValueError, match="knows ResNet and VGG"):
        first_stages(1)(init_shapes(small("fasterrcnn_mobilenet_v3_large_fpn"))["params"])
    fns = detection(small("fasterrcnn_vgg16"), optimizer=optax.sgd(0.1), max_instances=2, frozen=("backbone/neck",))
    with pytest.raises(ValueError, match='no submodule "backbone/neck"; it has body'):
        jax.eval_shape(fns.init, jax.random.key(0), batch())


def test_masks_are_asked_for_where_they_are_learnt():
    fns, _, _ = objects_trainer()
    boxes_only = {k: v for k, v in objects_batch().items() if k != "masks"}
    state = jax.eval_shape(fns.init, jax.random.key(0), boxes_only)
    with pytest.raises(ValueError, match="MaskRCNN learns masks and the objects have none"):
        jax.eval_shape(fns.update, state, boxes_only, jax.random.key(0))


def test_warm_up_and_steps_are_their_formula():
    optimizer = sgd_steps(0.02, (6, 9), warmup=4, warmup_factor=0.1, momentum=0.0, weight_decay=0.0)
    params, grads = {"w": jnp.zeros((2, 2))}, {"w": jnp.ones((2, 2))}
    state = optimizer.init(params)
    rates = [0.02 * f for f in (0.1, 0.325, 0.55, 0.775, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01)]
    for rate in rates:
        updates, state = optimizer.update(grads, state, params)
        np.testing.assert_allclose(updates["w"], -rate, rtol=1e-5)
    with pytest.raises(ValueError, match=r"milestones in order, each once, got \(9, 6\)"):
        sgd_steps(0.02, (9, 6))


@functools.cache
def over(devices):
    """Two steps and an evaluation of a ragged last batch, on so many devices."""
    model = small("fasterrcnn_resnet50_c4", rpn_pre_nms_top_n_train=24, rpn_post_nms_top_n_train=12)
    fns = detection(
        model.clone(num_classes=7, box_score_thresh=0.0),
        optimizer=optax.sgd(0.01),
        max_instances=G,
        augment=(flip,),
        sampling=Sampling(anchors=16, boxes=8),
    )
    placement = parallel.over_mesh(parallel.make_mesh(devices=jax.devices()[:devices]))
    whole = objects_batch(0, 8, (32, 32))
    whole.pop("masks")
    state = placement.put_state(fns.init(jax.random.key(0), whole))
    update, history = placement.compile_update(fns.update), []
    for step in range(2):
        state, metrics = update(state, placement.put_batch(whole), jax.random.key(1), np.int32(step))
        history.append({k: float(v) for k, v in metrics.items()})
    ragged = whole | {"index": np.array([8, 9, 10, -1, -1, -1, -1, -1], np.int32)}
    ragged["valid"] = whole["valid"] & (ragged["index"] >= 0)[:, None]
    sums = placement.compile_evaluate(fns.evaluate)(state, placement.put_batch(ragged))
    return history, jax.device_get(sums), whole["valid"][:3].sum()


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one_and_count_each_picture_once():
    history, sums, objects = over(8)
    expected, expected_sums, _ = over(1)
    for ours, theirs in zip(history, expected, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert sums["objects"].sum() == objects
    assert sums["box_right"].sum() + sums["box_wrong"].sum() > 0
    for name in sums:
        assert np.abs(sums[name] - expected_sums[name]).sum() <= 2, name  # a score at the edge of its bin
    found = sums["box_right"].sum() + sums["box_wrong"].sum()
    assert found == expected_sums["box_right"].sum() + expected_sums["box_wrong"].sum() <= 3 * 10
