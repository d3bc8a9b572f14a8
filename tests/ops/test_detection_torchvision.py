"""Detection's operations beside torchvision's, forward and gradient."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ops.test_detection_ops import random_boxes

from jaxseg.ops.anchors import pyramid_anchors
from jaxseg.ops.boxes import BOX_WEIGHTS, box_iou, clip_boxes, decode_boxes, encode_boxes, generalized_box_iou
from jaxseg.ops.masks import crop_masks, paste_masks
from jaxseg.ops.matching import match
from jaxseg.ops.nms import nms
from jaxseg.ops.roi import pyramid_levels, roi_align

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def tv():
    """torchvision's modules, by short names."""
    from torchvision_shim import torch, torchvision

    detection = torchvision.models.detection
    return types.SimpleNamespace(
        torch=torch,
        detection=detection._utils,
        anchors=detection.anchor_utils,
        image_list=detection.image_list,
        heads=detection.roi_heads,
        boxes=torchvision.ops.boxes,
        poolers=torchvision.ops.poolers,
        ops=torchvision.ops,
    )


def test_boxes_and_levels(tv):
    a, b = random_boxes(0, 40), random_boxes(1, 40)
    ta, tb = tv.torch.from_numpy(a), tv.torch.from_numpy(b)
    a, b = jnp.asarray(a), jnp.asarray(b)
    np.testing.assert_allclose(box_iou(a, b), tv.boxes.box_iou(ta, tb), atol=1e-6)
    np.testing.assert_allclose(generalized_box_iou(a, b), tv.boxes.generalized_box_iou(ta, tb), atol=1e-6)
    coder = tv.detection.BoxCoder(BOX_WEIGHTS)
    codes = coder.encode_single(ta, tb)
    np.testing.assert_allclose(encode_boxes(a, b, BOX_WEIGHTS), codes, atol=1e-5)
    large = (3 * codes).requires_grad_()
    expected = coder.decode_single(large, tb)
    ours, pull = jax.vjp(lambda c: decode_boxes(c, b, BOX_WEIGHTS), jnp.asarray(large.detach().numpy()))
    np.testing.assert_allclose(ours, expected.detach(), rtol=1e-5, atol=1e-3)
    expected.sum().backward()
    np.testing.assert_allclose(pull(jnp.ones_like(ours))[0], large.grad, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(
        clip_boxes(a[None], jnp.array([[20, 30]]))[0], tv.boxes.clip_boxes_to_image(ta, (20, 30))
    )
    scaled = 20 * random_boxes(2, 60, 40, 0.5, 40)
    mapper = tv.poolers.initLevelMapper(2, 5)
    np.testing.assert_array_equal(pyramid_levels(jnp.asarray(scaled), 2, 5) - 2, mapper([tv.torch.from_numpy(scaled)]))


def test_anchors(tv):
    sizes = ((32, 64), (21, 128), (5, 7))
    generator = tv.anchors.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    grids, image = [(13, 9), (7, 5), (4, 3)], (100, 70)
    maps = [tv.torch.zeros(1, 1, *grid) for grid in grids]
    images = tv.image_list.ImageList(tv.torch.zeros(1, 3, *image), [image])
    ours = np.concatenate(pyramid_anchors(grids, image, sizes, (0.5, 1.0, 2.0)))
    np.testing.assert_array_equal(ours, generator(images, maps)[0])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_by_class(tv, threshold):
    rng = np.random.default_rng(0)
    boxes, scores, classes = random_boxes(3, 300), rng.uniform(size=300).astype(np.float32), rng.integers(0, 4, 300)
    expected = tv.boxes._batched_nms_vanilla(*map(tv.torch.from_numpy, (boxes, scores, classes)), threshold)
    boxes, scores, classes = map(jnp.asarray, (boxes, scores, classes))
    found = jax.jit(lambda b, s, c: nms(b, s, threshold, 300, classes=c))(boxes, scores, classes)
    assert found.indices[found.valid].tolist() == expected.tolist()


@pytest.mark.parametrize(("ratio", "aligned"), [(2, False), (-1, False), (3, True), (-1, True)])
@pytest.mark.parametrize("scale", [0.5, 0.37])
def test_roi_align(tv, ratio, aligned, scale):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 14, 17, 3)).astype(np.float32)
    boxes = np.stack([random_boxes(s, 5, 12, 1, 14) for s in (0, 1)])
    weights = rng.standard_normal((2, 5, 4, 4, 3)).astype(np.float32)
    tx = tv.torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    rois = [tv.torch.from_numpy(b) for b in boxes]
    expected = tv.ops.roi_align(tx, rois, 4, scale, ratio, aligned)
    (expected * tv.torch.from_numpy(weights.reshape(10, 4, 4, 3).transpose(0, 3, 1, 2).copy())).sum().backward()

    @jax.jit
    def run(x):
        out = roi_align(x, jnp.asarray(boxes), 4, scale=scale, sampling_ratio=ratio, aligned=aligned)
        return jnp.sum(out * weights), out

    (_, ours), gradient = jax.value_and_grad(run, has_aux=True)(jnp.asarray(x))
    expected = expected.detach().numpy().transpose(0, 2, 3, 1).reshape(ours.shape)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    np.testing.assert_allclose(gradient, tx.grad.numpy().transpose(0, 2, 3, 1), atol=2e-5)


def test_masks(tv):
    rng = np.random.default_rng(0)
    masks = rng.uniform(size=(9, 14, 14)).astype(np.float32)
    boxes = random_boxes(0, 9, 40, 1, 30) - 4
    expected = tv.heads.paste_masks_in_image(*map(tv.torch.from_numpy, (masks[:, None], boxes)), (50, 43))[:, 0]
    np.testing.assert_allclose(paste_masks(jnp.asarray(masks), jnp.asarray(boxes), (50, 43)), expected, atol=1e-5)
    instances = rng.uniform(size=(3, 10, 12)).repeat(4, 1).repeat(4, 2) > 0.5
    boxes, indices = random_boxes(1, 6, 20, 2, 18), rng.integers(0, 3, 6)
    expected = tv.heads.project_masks_on_boxes(
        *map(tv.torch.from_numpy, (instances.astype(np.uint8), boxes, indices)), 7
    )
    ours = crop_masks(*map(jnp.asarray, (instances, indices, boxes)), 7)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(("high", "low", "rescue"), [(0.7, 0.3, True), (0.5, 0.5, False)])
def test_matches(tv, high, low, rescue):
    true, references = random_boxes(0, 6), random_boxes(1, 200)
    references[:20] = np.tile(true[:4], (5, 1)) + 1  # ties
    overlap = tv.boxes.box_iou(*map(tv.torch.from_numpy, (true, references)))
    expected = tv.detection.Matcher(high, low, allow_low_quality_matches=rescue)(overlap).numpy()
    found = match(jnp.asarray(true), jnp.ones(6, bool), jnp.asarray(references), high=high, low=low, rescue=rescue)
    np.testing.assert_array_equal(found.labels, np.where(expected >= 0, 1, np.where(expected == -1, 0, -1)))
    np.testing.assert_array_equal(np.asarray(found.indices)[expected >= 0], expected[expected >= 0])
