"""R-CNN, Fast R-CNN, VGG-16 and C4: what is read of a box, given proposals, and that each learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden.named import fill
from models.test_detectors import init_shapes, pictures, small

from jaxseg.data.scenes import draw
from jaxseg.ops.boxes import BOX_WEIGHTS, Proposals, encode_boxes
from jaxseg.ops.crops import warp_crops
from jaxseg.ops.roi import roi_align, roi_pool
from jaxseg.predict import detect
from jaxseg.train_detection import Sampling, detection
from jaxseg.train_rcnn import fit_box_regression, fit_svms, with_box_regression, with_svms


def naive_crop(image, box, size, padding):
    """Pixel by pixel: the surroundings, zero outside, bilinear inside."""
    h, w, c = image.shape
    x0, y0, x1, y1 = box
    grow = size / (size - 2 * padding)
    out = np.zeros((size, size, c))
    for i in range(size):
        for j in range(size):
            y = (y0 + y1) / 2 + ((i + 0.5) / size - 0.5) * (y1 - y0) * grow - 0.5
            x = (x0 + x1) / 2 + ((j + 0.5) / size - 0.5) * (x1 - x0) * grow - 0.5
            if not (-0.5 <= y <= h - 0.5 and -0.5 <= x <= w - 0.5):
                continue
            y, x = np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)
            top, left = int(y), int(x)
            down, right = min(top + 1, h - 1), min(left + 1, w - 1)
            a, b = y - top, x - left
            out[i, j] = (1 - a) * ((1 - b) * image[top, left] + b * image[top, right]) + a * (
                (1 - b) * image[down, left] + b * image[down, right]
            )
    return out


def test_crops_with_their_surroundings():
    image = jnp.asarray(np.random.default_rng(0).standard_normal((20, 26, 2)), jnp.float32)
    boxes = jnp.array([[3, 4, 15, 12], [0, 0, 26, 20], [20, 2, 26, 18.5], [5, 5, 5, 5]], jnp.float32)
    crops = jax.jit(functools.partial(warp_crops, size=14, padding=3))(image[None], boxes[None])
    for crop, box in zip(crops[0], np.asarray(boxes), strict=True):
        np.testing.assert_allclose(crop, naive_crop(np.asarray(image), box, 14, 3), atol=1e-5)
    # the box itself fills all but the padding: a box of the crop's own inner size is copied
    inner = warp_crops(image[None], jnp.array([[[6.0, 5, 14, 13]]]), 14, padding=3)[0, 0]
    np.testing.assert_allclose(inner[3:11, 3:11], image[5:13, 6:14], atol=1e-5)
    assert not crops[0, 1][0].any()  # beyond the image
    cut = warp_crops(image[None], boxes[None, 1:2], 14, padding=3, sizes=jnp.array([[10, 26]]))[0, 0]
    assert not cut[8:].any()
    with pytest.raises(ValueError, match="padding=7, size=14"):
        warp_crops(image[None], boxes[None], 14, padding=7)


def given(*boxes):
    boxes = jnp.array([boxes], jnp.float32)
    return Proposals(boxes, jnp.ones(boxes.shape[:2]), jnp.ones(boxes.shape[:2], bool))


BOXES = ((8, 8, 40, 40), (20, 4, 60, 30), (0, 0, 64, 64), (30, 30, 50, 60), (4, 40, 20, 60))


@pytest.mark.parametrize(
    ("name", "roi"),
    [
        ("fastrcnn_vgg16", lambda x, b: roi_pool(x, b, 7, scale=1 / 16)),
        ("fasterrcnn_vgg16", lambda x, b: roi_pool(x, b, 7, scale=1 / 16)),
        ("fasterrcnn_resnet50_c4", lambda x, b: roi_align(x, b, 14, scale=1 / 16, border=True)),
    ],
)
def test_boxes_are_read_as_in_the_paper(name, roi):
    model = small(name)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 4, 8)), jnp.float32)
    boxes = given(*BOXES).boxes
    found = model.apply({}, {"stride16": x}, boxes, model.box_size, method="pool")
    np.testing.assert_allclose(found, roi(x, boxes)[0], atol=1e-6)


def test_a_pass_over_crops_in_parts_is_the_pass_over_all():
    model = small("rcnn_vgg16")
    variables = fill(init_shapes(model))
    images, boxes = pictures(2, 64, 64), jnp.tile(given(*BOXES).boxes, (2, 1, 1))

    def scores(model, train=False, **rngs):
        return model.apply(variables, {"image": images}, boxes, train=train, method="box_scores", **rngs)

    whole, parts = scores(model), scores(model.clone(crops_at_once=2))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert whole[0].shape == (2, 5, 3)
    dropped = scores(model.clone(crops_at_once=2), train=True, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(dropped[0], whole[0])


def test_what_lies_beyond_a_picture_on_its_canvas_is_the_mean_to_a_crop():
    model = small("rcnn_vgg16", box_score_thresh=0.0)
    variables = fill(init_shapes(model))
    sizes = jnp.array([[44, 50], [64, 64]])
    there = (jnp.arange(64)[:, None] < sizes[:, :1, None]) & (jnp.arange(64) < sizes[:, 1:, None])
    images, boxes = pictures(2, 64, 64), given((20, 20, 50, 44), (2, 30, 30, 44))
    boxes = jax.tree.map(lambda x: jnp.tile(x, (2,) + (1,) * (x.ndim - 1)), boxes)
    canvases = (jnp.where(there[..., None], images, padding) for padding in (0.0, 3.0))
    mean, other = (model.apply(variables, canvas, sizes, boxes, train=False) for canvas in canvases)
    assert mean.valid.any(1).all()
    np.testing.assert_array_equal(mean.scores, other.scores)
    np.testing.assert_array_equal(mean.boxes, other.boxes)


@pytest.mark.parametrize("name", ["rcnn_vgg16", "fastrcnn_vgg16"])
def test_detections_come_from_the_proposals(name):
    model = small(name, box_score_thresh=0.0, max_proposals=6)
    variables = fill(init_shapes(model))
    predictor = variables["params"] if name.startswith("rcnn") else variables["params"]["box_predictor"]
    predictor["bbox_pred"] = jax.tree.map(jnp.zeros_like, predictor["bbox_pred"])  # boxes stay
    image = np.asarray(pictures(1, 64, 96)[0] > 0).astype(np.uint8) * 200
    boxes = np.array(BOXES, np.float32)
    (found,) = detect(model, variables, [image], min_size=64, max_size=96, proposals=[boxes])
    kept = np.asarray(found.boxes)[np.asarray(found.valid)]
    assert len(kept) > 2
    for box in kept:
        assert np.abs(boxes - box).max(1).min() < 1e-3
    (other,) = detect(model, variables, [image], min_size=64, max_size=96, proposals=[boxes[:1]])
    assert 0 < other.valid.sum() <= 2
    whole, beyond = (
        detect(model, variables, [image], min_size=64, max_size=96, proposals=[np.array([box])])[0]
        for box in ((0, 0, 96, 64), (-9, -20, 200, 300))
    )
    np.testing.assert_array_equal(beyond.scores, whole.scores)  # what lies beyond the picture is not looked at
    for wrong, said in (
        (np.tile([0, 0, 40, 40, 0.9], (4, 1)), r"of image 0 have shape \(4, 5\)"),
        (np.array([[0, 0, 40, np.nan]]), r"image 0 have shape \(1, 4\), and some are not finite"),
    ):
        with pytest.raises(ValueError, match=said):
            detect(model, variables, [image], proposals=[wrong])
    with pytest.raises(ValueError, match="the proposals of each image, got 2 for 1"):
        detect(model, variables, [image], proposals=[boxes, boxes])
    with pytest.raises(ValueError, match="7 proposals and max_proposals=6"):
        detect(model, variables, [image], proposals=[np.tile(boxes[:1], (7, 1))])
    with pytest.raises(ValueError, match="FasterRCNN makes its own proposals"):
        detect(small("fasterrcnn_vgg16"), {}, [image], proposals=[boxes])


def test_selective_search_names_what_is_missing(monkeypatch):
    import sys

    from jaxseg.data import selective_search

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"jaxseg\[rcnn\]"):
        selective_search(np.zeros((32, 32, 3), np.uint8))


def test_selective_search_finds_an_object():
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "ximgproc"):
        pytest.skip("this OpenCV has no contrib modules")
    from jaxseg.data import selective_search
    from jaxseg.ops.boxes import box_iou

    image = np.full((100, 120, 3), 60, np.uint8)
    image[20:60, 30:90] = (200, 80, 40)
    boxes = selective_search(image)
    assert boxes.shape[1] == 4
    assert (boxes[:, 2:] - boxes[:, :2] >= 20).all()
    assert box_iou(jnp.asarray(boxes), jnp.array([[30.0, 20, 90, 60]])).max() > 0.9
    assert len(selective_search(image, limit=2)) <= 2


@functools.cache
def scenes(n=2):
    drawn = [draw(5, i, (64, 64)) for i in range(n)]
    return {k: np.stack([getattr(s, k) for s in drawn]) for k in ("image", "label", "instances")}


@pytest.mark.parametrize(
    "name",
    [
        "rcnn_vgg16",
        pytest.param("maskrcnn_resnet50_c4", marks=pytest.mark.slow),
        pytest.param("fastrcnn_vgg16", marks=pytest.mark.slow),
    ],
)
def test_each_learns_two_pictures_a_bit(name):
    """The loss falls, and a gradient reaches every parameter."""
    extra = {"rpn_pre_nms_top_n_train": 40, "rpn_post_nms_top_n_train": 16} if name[:4] in ("fast", "mask") else {}
    extra = {} if name.startswith("fastrcnn") else extra
    model = small(name, **extra).clone(num_classes=7)
    if name.startswith("rcnn"):
        model = model.clone(network=functools.partial(model.network, dropout=0.0))
    batch = scenes()
    if not hasattr(model, "propose"):
        rng = np.random.default_rng(0)
        corners = rng.uniform(0, 40, (2, 24, 2))
        batch = batch | {"proposals": np.concatenate([corners, corners + rng.uniform(8, 24, (2, 24, 2))], 2)}
    fns = detection(
        model, optimizer=optax.adam(4e-3), max_instances=6, sampling=Sampling(anchors=32, boxes=16, boxes_positive=0.5)
    )
    state = start = fns.init(jax.random.key(0), batch)
    update = jax.jit(fns.update)
    losses = []
    for step in range(12):
        state, metrics = update(state, batch, jax.random.fold_in(jax.random.key(1), step))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:2]), losses
    for path, (old, new) in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda x, y: (x, y), start.params, state.params), is_leaf=lambda x: isinstance(x, tuple)
    ):
        assert (old != new).any(), path
    if not hasattr(model, "propose"):
        without = {k: v for k, v in batch.items() if k != "proposals"}
        with pytest.raises(ValueError, match="learns from proposals that are given"):
            jax.eval_shape(fns.update, start, without, jax.random.key(0))


def test_box_regression_is_ridge_regression():
    """By its definition where there are more boxes than features, and by the dual where there are fewer."""
    rng = np.random.default_rng(0)
    for n, p in ((40, 5), (6, 30)):
        x, y = rng.standard_normal((2 * n, p)), rng.standard_normal((2 * n, 4))
        classes = np.repeat([1, 3], n)
        kernel, bias = fit_box_regression(x, y, classes, 4, ridge=2.0)
        kernel, bias = kernel.reshape(p, 4, 4), bias.reshape(4, 4)
        for cls in (1, 3):
            a, b = x[classes == cls], y[classes == cls]
            ones = np.concatenate([a, np.ones((n, 1))], 1)
            penalty = 2.0 * np.diag([1.0] * p + [0.0])
            expected = np.linalg.solve(ones.T @ ones + penalty, ones.T @ b)
            np.testing.assert_allclose(kernel[:, cls], expected[:-1], atol=1e-5)
            np.testing.assert_allclose(bias[cls], expected[-1], atol=1e-5)
        assert not kernel[:, [0, 2]].any()


@pytest.mark.parity
def test_svms_separate_and_score_in_the_model():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    model = small("rcnn_vgg16", svm=True)
    variables = fill(init_shapes(model))
    centres = 3 * rng.standard_normal((3, 24))
    classes = rng.integers(0, 3, 120)
    features = (centres[classes] + 0.3 * rng.standard_normal((120, 24))).astype(np.float32)
    kernel, bias = fit_svms(features, np.where(np.arange(120) < 5, -1, classes), 3, c=1.0)
    margins = features @ kernel + bias
    for cls in (1, 2):
        np.testing.assert_array_equal(margins[:, cls] > 0, classes == cls)
    assert (margins[:, 0] < -100).all()
    fitted = with_svms(variables, (kernel, bias))
    boxes = given(*BOXES).boxes
    images = pictures(1, 64, 64)
    pool5, fc7 = model.apply(variables, images, boxes, train=False, method="region_features")
    logits, _ = model.apply(fitted, {"image": images}, boxes, train=False, method="box_scores")
    np.testing.assert_allclose(logits, fc7 @ kernel + bias, rtol=1e-4, atol=1e-3)
    targets = np.asarray(encode_boxes(boxes[0] + 2.0, boxes[0], BOX_WEIGHTS))
    refined = with_box_regression(
        fitted, fit_box_regression(np.asarray(pool5[0]), targets, np.full(5, 1), 3, ridge=1e-3)
    )
    _, deltas = model.apply(refined, {"image": images}, boxes, train=False, method="box_scores")
    np.testing.assert_allclose(deltas[0, :, 1], targets, atol=0.05)
    with pytest.raises(ValueError, match="what was fitted"):
        with_svms(variables, (kernel[:-1], bias))
    with pytest.raises(ValueError, match=r"classes are -1\.\.2, got 0\.\.3"):
        fit_svms(features, np.minimum(np.arange(120), 3), 3)
