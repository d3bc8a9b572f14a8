"""Boxes, anchors, NMS, RoIAlign, RoIPool and masks against NumPy from their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ops import naive_detection as naive

from jaxseg.ops import boxes as box_ops
from jaxseg.ops import masks as mask_ops
from jaxseg.ops import roi as roi_ops
from jaxseg.ops.anchors import anchor_grid, cell_anchors, pyramid_anchors
from jaxseg.ops.boxes import BOX_WEIGHTS, DELTA_CLIP
from jaxseg.ops.nms import nms


def of_numpy(function):
    """The function with NumPy arrays among its arguments made JAX's."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        args, kwargs = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, (args, kwargs))
        return function(*args, **kwargs)

    return wrapped


box_iou, generalized_box_iou = of_numpy(box_ops.box_iou), of_numpy(box_ops.generalized_box_iou)
encode_boxes, decode_boxes = of_numpy(box_ops.encode_boxes), of_numpy(box_ops.decode_boxes)
clip_boxes, box_area = box_ops.clip_boxes, box_ops.box_area
crop_masks, crop_instances = of_numpy(mask_ops.crop_masks), of_numpy(mask_ops.crop_instances)
crop_polygons, paste_masks = of_numpy(mask_ops.crop_polygons), of_numpy(mask_ops.paste_masks)
roi_align, roi_pool = of_numpy(roi_ops.roi_align), of_numpy(roi_ops.roi_pool)
pyramid_levels, pyramid_roi_align = of_numpy(roi_ops.pyramid_levels), of_numpy(roi_ops.pyramid_roi_align)


def random_boxes(seed, n, side=40.0, low=1.0, high=20.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, side, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(low, high, (n, 2))], 1).astype(np.float32)


def test_overlaps():
    a, b = random_boxes(0, 7), random_boxes(1, 5)
    a[0] = b[0]
    pairs = [[(x, y) for y in b] for x in a]
    np.testing.assert_allclose(box_iou(a, b), [[naive.iou(*p) for p in row] for row in pairs], atol=1e-6)
    np.testing.assert_allclose(generalized_box_iou(a, b), [[naive.giou(*p) for p in row] for row in pairs], atol=1e-6)
    point = jnp.full((1, 4), 3.0)
    assert box_iou(point, point) == 0
    assert generalized_box_iou(point, point) == 0
    assert box_iou(a[:0], b).shape == (0, 5)
    gradient = jax.grad(lambda x: generalized_box_iou(x, b).sum() + box_iou(x, point).sum())(jnp.asarray(a))
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_box_coding(offset):
    boxes, references = random_boxes(0, 9), random_boxes(1, 9)
    codes = encode_boxes(boxes, references, BOX_WEIGHTS, offset=offset)
    for box, reference, code in zip(boxes, references, codes, strict=True):
        w, h = box[2:] - box[:2] + offset
        pw, ph = reference[2:] - reference[:2] + offset
        dx = (box[0] + w / 2 - reference[0] - pw / 2) / pw
        dy = (box[1] + h / 2 - reference[1] - ph / 2) / ph
        np.testing.assert_allclose(code, [10 * dx, 10 * dy, 5 * np.log(w / pw), 5 * np.log(h / ph)], atol=1e-4)
    np.testing.assert_allclose(decode_boxes(codes, references, BOX_WEIGHTS, offset=offset), boxes, atol=1e-4)


def test_decoding_is_cut_before_the_exponential():
    reference = jnp.array([[0.0, 0.0, 16.0, 8.0]])
    box = decode_boxes(jnp.array([[0.0, 0.0, 1e4, 5 * DELTA_CLIP]]), reference, BOX_WEIGHTS)
    np.testing.assert_allclose(box[:, 2:] - box[:, :2], [[1000.0, 500.0]], rtol=1e-6)
    gradient = jax.grad(lambda c: decode_boxes(c, reference)[0, 2])(jnp.array([[0.0, 0.0, 50.0, 0.0]]))
    assert gradient[0, 2] == 0
    assert gradient[0, 0] == 16


def test_clipping():
    boxes = jnp.array([[[-5.0, -5.0, 50.0, 50.0]], [[3.0, 4.0, 30.0, 40.0]]])
    np.testing.assert_array_equal(
        clip_boxes(boxes, jnp.array([[20, 30], [35, 25]])), [[[0, 0, 30, 20]], [[3, 4, 25, 35]]]
    )
    assert box_area(boxes).shape == (2, 1)


def test_anchors():
    # torchvision's of size 32: shapes 0.5, 1, 2, in whole pixels
    np.testing.assert_array_equal(
        cell_anchors((32,), (0.5, 1.0, 2.0)), [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    )
    # a half is rounded to the even number
    np.testing.assert_array_equal(cell_anchors((5, 7), (1.0,)), [[-2, -2, 2, 2], [-4, -4, 4, 4]])
    cells = cell_anchors((16, 32), (1.0,))
    grid = anchor_grid(cells, (2, 3), (8, 16))
    expected = [np.array([x, y, x, y]) + cell for y in (0, 8) for x in (0, 16, 32) for cell in cells]
    np.testing.assert_array_equal(grid, expected)
    levels = pyramid_anchors([(4, 6), (2, 3)], (33, 48), ((16,), (32,)), (1.0,))
    assert [len(level) for level in levels] == [24, 6]
    np.testing.assert_array_equal(levels[1][1] - levels[1][0], [16, 0, 16, 0])
    np.testing.assert_array_equal(levels[1][3] - levels[1][0], [0, 16, 0, 16])
    with pytest.raises(ValueError, match="1 feature maps need as many tuples of anchor sizes, got 2"):
        pyramid_anchors([(4, 6)], (33, 48), ((16,), (32,)), (1.0,))


@functools.partial(jax.jit, static_argnums=(2, 3, 6))
def suppress(boxes, scores, threshold, k, classes=None, valid=None, block=256):
    return nms(boxes, scores, threshold, k, classes=classes, valid=valid, block=block)


def kept(*args):
    found = suppress(*args)
    assert (found.indices[~found.valid] == 0).all()
    return found.indices[found.valid].tolist()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("block", [16, 256])
def test_nms_is_greedy(threshold, block):
    rng = np.random.default_rng(3)
    for seed in range(3):
        boxes = random_boxes(seed, 150)
        scores = rng.uniform(size=150).astype(np.float32).round(1)  # many ties
        classes = rng.integers(0, 3, 150)
        expected = naive.greedy_nms(boxes, scores, threshold)
        assert 5 < len(expected) < 150
        assert kept(boxes, scores, threshold, 150, None, None, block) == expected
        assert kept(boxes, scores, threshold, 9, None, None, block) == expected[:9]
        by_class = naive.greedy_nms(boxes, scores, threshold, classes)
        assert len(by_class) >= len(expected)
        assert kept(boxes, scores, threshold, 150, classes, None, block) == by_class


def test_nms_settles_long_chains():
    """Each box beats the next alone, so that every second one stays: the most rounds that there can be."""
    boxes = np.array([[i, 0, i + 3, 1] for i in range(300)], np.float32)
    scores = np.linspace(1, 0, 300, dtype=np.float32)
    assert kept(boxes, scores, 0.4, 300, None, None, 64) == list(range(0, 300, 2))


def test_nms_at_the_threshold():
    boxes = np.array([[0, 0, 2, 1], [1, 0, 3, 1], [0, 0, 3, 1]], np.float32)  # IoU 1/3, 2/3, 2/3
    assert kept(boxes, np.array([3.0, 2.0, 1.0]), 1 / 3, 3) == [0, 1]
    assert kept(boxes, np.array([3.0, 2.0, 1.0]), 0.33, 3) == [0]
    assert kept(boxes, np.array([3.0, 2.0, 1.0]), 2 / 3, 3) == [0, 1, 2]


def test_nms_of_nothing_of_equals_and_of_nan():
    same = np.tile(np.array([[2, 2, 9, 9]], np.float32), (40, 1))
    ones = np.ones(40, np.float32)
    assert kept(same, ones, 0.5, 40) == [0]
    assert kept(same, ones, 1.0, 40) == list(range(40))
    assert kept(same, ones, 0.5, 40, None, np.arange(40) > 5) == [6]
    assert kept(same, ones, 0.5, 40, None, np.zeros(40, bool)) == []
    assert kept(same[:0], ones[:0], 0.5, 3) == []
    assert kept(same, ones, 0.5, 0) == []
    boxes, scores = random_boxes(0, 6), np.arange(6, dtype=np.float32)
    boxes[5, 2] = np.nan
    scores[4] = np.nan
    assert kept(boxes, scores, 1.0, 6) == [3, 2, 1, 0]
    scores[:2] = -np.inf, np.inf
    assert kept(boxes, scores, 1.0, 6) == [1, 3, 2, 0]
    with pytest.raises(ValueError, match="k >= 0 boxes, got -1"):
        suppress(boxes, scores, 0.5, -1)


def test_nms_takes_numpy_outside_jit():
    boxes, scores = random_boxes(1, 30), np.arange(30, dtype=np.float32)
    classes = np.arange(30) % 2 - 1
    assert kept(boxes, scores, 0.3, 30, classes) == naive.greedy_nms(boxes, scores, 0.3, classes)
    for given in (classes, None):
        found = nms(boxes, scores, 0.3, 30, classes=given, valid=np.ones(30, bool))
        assert found.indices[found.valid].tolist() == naive.greedy_nms(boxes, scores, 0.3, given)


def test_nms_in_a_batch_is_that_of_each():
    boxes = np.stack([random_boxes(s, 60) for s in range(3)])
    scores = np.random.default_rng(0).uniform(size=(3, 60)).astype(np.float32)
    valid = np.arange(60) < np.array([60, 7, 0])[:, None]
    batched = jax.jit(jax.vmap(lambda b, s, v: nms(b, s, 0.5, 20, valid=v, block=16)))
    found = batched(boxes, scores, valid)
    for i in range(3):
        expected = naive.greedy_nms(boxes[i][valid[i]], scores[i][valid[i]], 0.5)[:20]
        assert found.indices[i][found.valid[i]].tolist() == expected


def features(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rois(seed, n, k):
    """Boxes in and beyond a map of 12 x 15 at scale 0.5, and two without extent."""
    rng = np.random.default_rng(seed)
    boxes = np.stack([random_boxes(rng.integers(99), k, 20, 0.2, 14) for _ in range(n)])
    boxes[:, 0] += [-9, -6, 4, 3]
    boxes[:, 1] = [3, 3, 3, 3]
    boxes[:, 2] = [40, 40, 50, 50]
    return boxes


@pytest.mark.parametrize("form", ["gather", "einsum", None])
@pytest.mark.parametrize(("ratio", "aligned"), [(2, False), (3, True), (-1, False), (-1, True)])
def test_roi_align(form, ratio, aligned):
    x, boxes = features(0, 2, 12, 15, 3), rois(1, 2, 7)
    weights = features(2, 2, 7, 4, 4, 3)

    @jax.jit
    def run(x):
        out = roi_align(x, boxes, 4, scale=0.5, sampling_ratio=ratio, aligned=aligned, form=form)
        return jnp.sum(out * weights), out

    (_, ours), gradient = jax.value_and_grad(run, has_aux=True)(x)
    expected = np.stack(
        [[naive.roi_align(x[i], b, 4, 0.5, ratio, aligned, bound=4) for b in boxes[i]] for i in range(2)]
    )
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    # linear: the gradient is the response to each pixel
    for place in [(0, 0, 0), (5, 7, 1), (11, 14, 2), (4, 2, 0)]:
        pixel = np.zeros_like(x[0])
        pixel[place] = 1
        response = [naive.roi_align(pixel, b, 4, 0.5, ratio, aligned, bound=4) for b in boxes[0]]
        np.testing.assert_allclose(gradient[(0, *place)], np.sum(response * weights[0]), atol=2e-5)


def test_roi_align_bounds_and_dtypes():
    x, boxes = features(0, 1, 12, 12, 2), np.array([[[0, 0, 11.5, 12], [-30, -30, 40, 40]]], np.float32)
    ours = roi_align(x, boxes, 2, sampling_ratio=-1, max_sampling=3)
    expected = [naive.roi_align(x[0], b, 2, ratio=-1, bound=3) for b in boxes[0]]
    np.testing.assert_allclose(ours[0], expected, atol=1e-5)
    ours = roi_align(x, boxes, 2, border=True)
    np.testing.assert_allclose(ours[0], [naive.roi_align(x[0], b, 2, border=True) for b in boxes[0]], atol=1e-5)
    assert np.abs(ours - roi_align(x, boxes, 2)).max() > 0.01
    half = roi_align(x.astype(jnp.bfloat16), boxes, 2)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), roi_align(x, boxes, 2), atol=0.03)
    for form in (None, "gather", "einsum"):
        none, pull = jax.vjp(functools.partial(roi_align, boxes=boxes[:, :0], size=2, form=form), jnp.asarray(x))
        assert none.shape == (1, 0, 2, 2, 2)
        assert not pull(none)[0].any()
    for ratio in (0, -2):
        with pytest.raises(ValueError, match=f"sampling_ratio >= 1, or -1, got 3 and {ratio}"):
            roi_align(x, boxes, 3, sampling_ratio=ratio)
    with pytest.raises(ValueError, match="max_sampling >= 1, or None, got 0"):
        roi_align(x, boxes, 3, sampling_ratio=-1, max_sampling=0)


@pytest.mark.parametrize("form", ["gather", "einsum", None])
def test_pyramid(form):
    maps = [features(i, 2, 64 // s, 48 // s, 3) for i, s in enumerate((4, 8, 16))]
    boxes = np.stack([random_boxes(s, 8, 20, 3, 40) for s in range(2)])
    boxes[0, :3, 2:] = boxes[0, :3, :2] + [[112, 112], [111.9, 111.9], [300, 200]]
    levels = pyramid_levels(boxes, 2, 4)
    area = np.prod(boxes[..., 2:].astype(np.float64) - boxes[..., :2], -1)
    np.testing.assert_array_equal(levels, np.clip(np.floor(4 + np.log2(np.sqrt(area) / 224) + 1e-6), 2, 4))
    assert levels[0, :3].tolist() == [3, 2, 4]
    assert pyramid_levels(jnp.zeros((3, 4)), 2, 5).tolist() == [2, 2, 2]

    @jax.jit
    def run(maps):
        out = pyramid_roi_align(maps, boxes, 3, strides=(4, 8, 16), form=form)
        return jnp.sum(out**2), out

    (_, ours), gradients = jax.value_and_grad(run, has_aux=True)(tuple(maps))
    for i in range(2):
        for k in range(8):
            level = int(levels[i, k]) - 2
            np.testing.assert_allclose(
                ours[i, k], naive.roi_align(maps[level][i], boxes[i, k], 3, 0.25 / 2**level), atol=1e-5
            )

    def by_level(maps):
        outs = [roi_align(m, boxes, 3, scale=0.25 / 2**i, form="einsum") for i, m in enumerate(maps)]
        return sum(jnp.sum(o**2 * (levels == i + 2)[..., None, None, None]) for i, o in enumerate(outs))

    for a, b in zip(gradients, jax.grad(by_level)(tuple(maps)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    with pytest.raises(ValueError, match=r"3 levels needs as many strides, got \(4, 8\)"):
        pyramid_roi_align(maps, boxes, 3, strides=(4, 8))


def test_roi_pool():
    x = features(0, 2, 9, 11, 3).round(1)  # ties
    boxes = rois(1, 2, 7)
    weights = np.arange(1, 4 * 4 * 3 + 1).reshape(4, 4, 3)
    ours, pull = jax.vjp(jax.jit(lambda x: roi_pool(x, boxes, 4, scale=0.5)), jnp.asarray(x))
    (gradient,) = pull(jnp.broadcast_to(jnp.float32(weights), ours.shape))
    for i in range(2):
        found = [naive.roi_pool(x[i], b, 4, 0.5) for b in boxes[i]]
        np.testing.assert_array_equal(ours[i], np.float32([out for out, _ in found]))
        np.testing.assert_allclose(gradient[i], sum(g for _, g in found), rtol=1e-6)
    assert (ours[:, 2] == 0).all()  # beyond the map
    halves = np.array([[-3.0, -1.0, 5.0, 9.0], [-1.0, -5.0, 7.0, 11.0]], np.float32)  # at half the size -1.5, -0.5, ...
    ours = roi_pool(jnp.asarray(x[:1]), halves[None], 2, scale=0.5)
    np.testing.assert_array_equal(ours[0], np.float32([naive.roi_pool(x[0], b, 2, 0.5)[0] for b in halves]))
    lone = jnp.zeros((1, 6, 6, 1)).at[0, 1, 1, 0].set(5.0)  # -0.5 is -1: bins of -1..1, 1..3
    assert roi_pool(lone, jnp.array([[[-8.0, -8, 40, 40]]]), 2, scale=1 / 16)[0, 0, :, :, 0].tolist() == [
        [5, 5],
        [5, 5],
    ]


def test_bins_of_roi_pool_end_as_in_float32():
    """Boxes of 1 to 60 pixels in seven bins, of 57 of which torchvision's last bin ends in a 58th pixel."""
    x = np.broadcast_to(np.arange(61, dtype=np.float32)[None, :, None, None], (1, 61, 61, 1))
    extents = np.arange(1, 61, dtype=np.float32)
    boxes = np.stack([0 * extents, 0 * extents, extents - 1, extents - 1], 1)
    found = jax.jit(lambda x: roi_pool(x, boxes[None], 7))(jnp.asarray(x))
    np.testing.assert_array_equal(found[0], np.float32([naive.roi_pool(x[0], box, 7)[0] for box in boxes]))
    assert found[0, 56, -1, -1, 0] == 57
    wide = roi_pool(jnp.asarray(x), jnp.array([[[0.0, 0, 7e3 - 1, 7e3 - 1], [-1e9, -1e9, 1e9, 1e9]]]), 7)
    assert wide[0, 0, :, 0, 0].tolist() == [60, 0, 0, 0, 0, 0, 0]
    assert wide[0, 1, :, 3, 0].tolist() == [0, 0, 0, 60, 0, 0, 0]


def test_masks_move_with_their_boxes_under_roi_align_and_not_under_roi_pool():
    """He et al. 2017, section 3: pixel-to-pixel alignment is equivariant to translation; quantisation breaks it.

    A disc moves by fractions of a feature pixel and its box with it. What RoIAlign sees of it stays within the
    error of bilinear interpolation; RoIPool's bins jump. Box frames of the disc are compared as masks.
    """
    stride, radius = 4, 14.0
    y, x = np.arange(24)[:, None] * stride + 2, np.arange(24)[None] * stride + 2  # centres of feature pixels

    @jax.jit
    @jax.vmap
    def seen(shift):
        cx, cy = 40 + shift[0], 36 + shift[1]
        disc = jax.nn.sigmoid((radius - jnp.hypot(x - cx, y - cy)) / 1.5)[None, :, :, None]
        box = jnp.array([[[cx - radius, cy - radius, cx + radius, cy + radius]]])
        align = roi_align(disc, box, 7, scale=1 / stride, aligned=True)
        return align[0, 0, ..., 0], roi_pool(disc, box, 7, scale=1 / stride)[0, 0, ..., 0]

    shifts = np.array([(dx, dy) for dx in (0.0, 1.0, 2.0, 3.0) for dy in (0.0, 1.5, 2.5)])
    align, pool = seen(shifts)
    assert jnp.abs(align - align[0]).max() < 0.05
    assert jnp.abs(pool - pool[0]).max() > 0.5
    masks = align > 0.5
    assert 9 < masks[0].sum() < 40
    assert (masks == masks[0]).all()  # the mask is the same mask
    assert ((pool > 0.5) != (pool[0] > 0.5)).sum((1, 2)).max() >= 10  # of 49 bins


def test_paste():
    masks = np.random.default_rng(0).uniform(size=(6, 5, 5)).astype(np.float32)
    boxes = np.array(
        [
            [2.3, 3.1, 17.8, 12.2],
            [-6.2, -3.3, 9.1, 30.4],
            [20.2, 2.2, 40.7, 9.3],
            [5.1, 5.2, 5.3, 5.4],
            [60, 60, 70, 70],
            [0, 0, 31, 23],
        ],
        np.float32,
    )
    ours = jax.jit(paste_masks, static_argnums=2)(masks, boxes, (24, 31))
    expected = np.stack([naive.paste(m, b, (24, 31)) for m, b in zip(masks, boxes, strict=True)])
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert (ours[4] == 0).all()
    assert paste_masks(masks[:0], boxes[:0], (4, 5)).shape == (0, 4, 5)


def test_crops_of_masks_and_instances():
    rng = np.random.default_rng(0)
    instances = rng.integers(0, 4, (6, 8)).repeat(4, 0).repeat(4, 1).astype(np.int32)
    masks = instances[None] == np.arange(1, 4)[:, None, None]
    boxes, indices = random_boxes(2, 5, 20, 2, 14), np.array([0, 1, 2, 2, 0])
    expected = [
        naive.roi_align(masks[i][..., None].astype(float), b, 7, ratio=-1)[..., 0]
        for i, b in zip(indices, boxes, strict=True)
    ]
    np.testing.assert_allclose(crop_masks(masks, indices, boxes, 7), expected, atol=1e-5)
    np.testing.assert_allclose(crop_instances(instances, indices + 1, boxes, 7), expected, atol=1e-5)


def test_crops_of_polygons():
    triangle = [[2, 2], [14, 2], [2, 14], [9, 9]]
    crossed = [[2, 2], [14, 14], [14, 2], [2, 14]]  # a bow tie: even-odd
    vertices = np.array([triangle, crossed, crossed], np.float32)
    counts, boxes = np.array([3, 4, 2]), np.array([[2, 2, 14, 14], [0.2, 0.4, 16.2, 16.4], [0, 0, 16, 16]], np.float32)
    ours = np.asarray(crop_polygons(vertices, counts, boxes, 12))
    at = np.arange(12) + 0.5
    np.testing.assert_array_equal(ours[0], (at[:, None] + at[None] < 12).astype(np.float32))
    y, x = np.meshgrid(at / 12 * 16 + 0.4, at / 12 * 16 + 0.2, indexing="ij")
    inside = (x > 2) & (x < 14) & (np.abs(y - 8) < np.abs(x - 8))
    np.testing.assert_array_equal(ours[1], inside.astype(np.float32))
    assert (ours[2] == 0).all()
