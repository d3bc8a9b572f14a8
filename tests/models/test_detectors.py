"""Detectors: sizes, shapes, padding, batches, gradients, names of published weights, and photographs of any size."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import fill
from tiers import some_slow

import jaxseg
from jaxseg.backbones.fpn import FPN, SingleLevel
from jaxseg.backbones.mobilenet_v3 import mobilenet_v3_large
from jaxseg.backbones.resnet import ResNet, resnet50
from jaxseg.backbones.vgg import vgg16
from jaxseg.detect import _all_pasted, paste_each
from jaxseg.layers import BatchNorm, FrozenBatchNorm, GroupNorm
from jaxseg.models import DETECTORS, MODELS, model_source
from jaxseg.models.c4 import Res5Head
from jaxseg.models.fast_rcnn import BoxConvHead, BoxHead
from jaxseg.models.mask_rcnn import MaskHead
from jaxseg.models.output import Detections
from jaxseg.models.rcnn import CropNetwork
from jaxseg.ops.masks import paste_masks
from jaxseg.predict import detect
from jaxseg.weights import from_published, load_published, save_weights, to_published

# With 91 classes. VGG-16's convolutions, fc6 and fc7; ResNet's convolutions, norms being frozen and so no parameters.
VGG16, FC6, FC7 = 14_714_688, 25_088 * 4096 + 4096, 4096 * 4096 + 4096
RESNET50, RESNET101 = 25_557_032 - 2_049_000 - 53_120, 44_549_160 - 2_049_000 - 105_344
RPN_C4 = 9 * 1024**2 + 1024 + 1025 * 15 * 5
BOX_C4, MASK_C4 = 2049 * 91 * 5, 4 * 2048 * 256 + 256 + 257 * 91
COUNTS = {
    "rcnn_vgg16": VGG16 + FC6 + FC7 + 4097 * 91 + 25_089 * 91 * 4,
    "fastrcnn_vgg16": VGG16 + FC6 + FC7 + 4097 * 91 * 5,
    "fasterrcnn_vgg16": VGG16 + FC6 + FC7 + 4097 * 91 * 5 + 9 * 512**2 + 512 + 513 * 9 * 5,
    "fasterrcnn_resnet50_c4": RESNET50 + RPN_C4 + BOX_C4,
    "fasterrcnn_resnet101_c4": RESNET101 + RPN_C4 + BOX_C4,
    "maskrcnn_resnet50_c4": RESNET50 + RPN_C4 + BOX_C4 + MASK_C4,
    "maskrcnn_resnet101_c4": RESNET101 + RPN_C4 + BOX_C4 + MASK_C4,
    "fasterrcnn_resnet101_fpn": 41_755_286 + RESNET101 - RESNET50,
    "maskrcnn_resnet101_fpn": 44_401_393 + RESNET101 - RESNET50,
    # torchvision's `num_params`
    "fasterrcnn_resnet50_fpn": 41_755_286,
    "fasterrcnn_resnet50_fpn_v2": 43_712_278,
    "fasterrcnn_mobilenet_v3_large_fpn": 19_386_354,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 19_386_354,
    "maskrcnn_resnet50_fpn": 44_401_393,
    "maskrcnn_resnet50_fpn_v2": 46_359_409,
    "maskrcnn_small": 49 * 3 * 24
    + 48
    + 36 * 24**2
    + 192  # stem and first stage, with its norms
    + sum(9 * i * o + 27 * o * o + i * o + 10 * o for i, o in ((24, 32), (32, 48), (48, 64)))
    + sum((c + 1) * 48 for c in (24, 32, 48, 64))
    + 4 * (9 * 48**2 + 48)
    + 9 * 48**2
    + 48
    + 49 * 15
    + 48 * 49 * 128
    + 128
    + 129 * 128
    + 129 * 91 * 5
    + 9 * 48 * 32
    + 32
    + 9 * 32**2
    + 32
    + 4 * 32**2
    + 32
    + 33 * 91,
}
RESNET = functools.partial(resnet50, depths=(1, 1, 1, 1), features=(4, 4, 6, 8), stem_features=4)
MOBILE = functools.partial(mobilenet_v3_large, width=0.25)
SMALL = {
    "anchor_sizes": ((8,), (16,), (32,), (64,), (96,)),
    "rpn_pre_nms_top_n_test": 40,
    "rpn_post_nms_top_n_test": 24,
    "box_detections_per_img": 10,
    "box_score_thresh": 0.3,
    "min_size": 64,
    "max_size": 96,
}


VGG = functools.partial(vgg16, features=(4, 4, 6, 8, 8))
C4 = functools.partial(ResNet, depths=(1, 1, 1), features=(4, 4, 6), stem_features=4)
SINGLE = {"anchor_sizes": ((8, 16, 32),), "rpn_min_size": 4.0}
PARTS = {  # by what the name ends with
    "mobile": {
        "pyramid": functools.partial(FPN, body=MOBILE, levels=("features_13", "features_16"), features=8),
        "anchor_sizes": ((8, 16, 32, 64),) * 3,
    },
    "fpn": {"pyramid": functools.partial(FPN, body=RESNET, features=8)},
    "vgg16": {
        "pyramid": functools.partial(
            SingleLevel, body=functools.partial(VGG, deepest=16), level="stride16", features=8
        ),
        **SINGLE,
    },
    "c4": {
        "pyramid": functools.partial(SingleLevel, body=C4, level="stride16", features=24),
        "box": functools.partial(Res5Head, 8, 1),
        **SINGLE,
    },
}


def small(name, **fields):
    """The detector with few channels, proposals and 3 classes."""
    kind = next((k for k in ("mobile", "vgg16", "c4") if k in name), "fpn")
    head = functools.partial(BoxConvHead, 24, (8, 8)) if name.endswith("v2") else functools.partial(BoxHead, 24)
    fields = {"box": head, **SMALL, **PARTS[kind], **fields}
    if name.startswith("mask") and kind == "fpn":
        fields["mask"] = functools.partial(MaskHead, (8, 8))
    if name.startswith("rcnn"):
        fields["network"] = functools.partial(CropNetwork, encoder=VGG, fc_features=24)
        fields |= {"crop_size": 32, "crop_padding": 2, "crops_at_once": 8}
        fields = {k: v for k, v in fields.items() if k not in ("pyramid", "box")}
    if name.startswith(("rcnn", "fastrcnn")):
        fields = {k: v for k, v in fields.items() if not k.startswith(("rpn", "anchor"))}
    return jaxseg.create_model(name, 3, **fields)


def init_shapes(model, size=(64, 64)):
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


@functools.cache
def filled(name):
    model = small(name)
    variables = fill(init_shapes(model))
    params = variables["params"]
    rpn, box = params["rpn"], params["box_predictor"]  # tamed: scores apart, no class everywhere, boxes near anchors
    rpn["cls_logits"]["kernel"] *= 0.34
    rpn["bbox_pred"] = {"kernel": 0.06 * rpn["bbox_pred"]["kernel"], "bias": 0 * rpn["bbox_pred"]["bias"]}
    box["cls_score"]["kernel"] *= 0.5
    box["cls_score"]["bias"] = 0.5 * (box["cls_score"]["bias"] + jnp.array([-0.8, 2.2, 5.3]))
    box["bbox_pred"] = {"kernel": 0.1 * box["bbox_pred"]["kernel"], "bias": 0 * box["bbox_pred"]["bias"]}
    return model, variables


@functools.cache
def compiled(name):
    model, _ = filled(name)
    return jax.jit(functools.partial(model.apply, train=False))


def pictures(n, h, w, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((n, h // 8, w // 8, 3), np.float32).repeat(8, 1).repeat(8, 2))


def test_every_detector_has_its_rows():
    assert set(COUNTS) == set(DETECTORS) <= set(MODELS)


@pytest.mark.parametrize("name", DETECTORS)
def test_parameters_as_published(name):
    assert re.search(r"[A-Z][a-z]+( et al.)? 201\d", model_source(name))
    variables = init_shapes(jaxseg.create_model(name, num_classes=91))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


NARROW = [name for name in DETECTORS if "resnet101" not in name]  # whose few channels are those of 50 layers


@pytest.mark.parametrize("name", some_slow(NARROW, {n for n in NARROW if "mobilenet" in n or n.endswith("v2")}))
def test_shapes_and_dtypes(name):
    model = small(name)
    variables = init_shapes(model)
    model = model.clone(dtype=jnp.bfloat16, remat=True)
    assert jax.tree.map(lambda x: x.shape, init_shapes(model)) == jax.tree.map(lambda x: x.shape, variables)
    images = jax.ShapeDtypeStruct((2, 96, 64, 3), jnp.float32)
    found = jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    assert (found.boxes.shape, found.boxes.dtype) == ((2, 10, 4), jnp.float32)
    assert (found.scores.shape, found.scores.dtype) == ((2, 10), jnp.float32)
    assert (found.classes.shape, found.classes.dtype) == ((2, 10), jnp.int32)
    assert (found.valid.shape, found.valid.dtype) == ((2, 10), jnp.bool_)
    if name.startswith("mask"):
        side = 14 if name.endswith("c4") else 28
        assert (found.masks.shape, found.masks.dtype) == ((2, 10, side, side), jnp.float32)
    else:
        assert found.masks is None


def test_detections_stay_within_the_true_sizes_and_classes():
    model, variables = filled("maskrcnn_resnet50_fpn")
    images = pictures(2, 96, 96)
    sizes = jnp.array([[50, 91], [96, 33]], jnp.int32)
    mask = (jnp.arange(96)[:, None] < sizes[:, 0, None, None]) & (jnp.arange(96) < sizes[:, 1, None, None])
    found = compiled("maskrcnn_resnet50_fpn")(variables, jnp.where(mask[..., None], images, 0), sizes)
    for i, (h, w) in enumerate(np.asarray(sizes)):
        valid = np.asarray(found.valid[i])
        boxes = np.asarray(found.boxes[i])[valid]
        assert valid.sum() > 3
        assert (np.diff(valid.astype(int)) <= 0).all()  # filled from the front
        assert (boxes >= 0).all()
        assert (boxes <= [w, h, w, h]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert set(np.asarray(found.classes[i])[valid]) <= {1, 2}
        scores = np.asarray(found.scores[i])
        assert (np.diff(scores) <= 0).all()
        assert (scores[valid] > model.box_score_thresh).all()
        assert ((found.masks[i] > 0).any((1, 2)) == valid).all()
        for array in (found.boxes, found.scores, found.classes, found.masks):
            assert not np.asarray(array[i])[~valid].any()


def test_a_batch_is_its_images_and_one_trace_serves_all_calls():
    model, variables = filled("maskrcnn_resnet50_fpn")
    images, sizes, traces = pictures(2, 96, 96, 1), jnp.array([[96, 96], [70, 80]], jnp.int32), []

    @jax.jit
    def run(variables, images, sizes):
        traces.append(None)
        return model.apply(variables, images, sizes, train=False, mutable=["batch_stats"])

    together, state = run(variables, images, sizes)
    again, _ = run(variables, images[::-1], sizes[::-1])
    assert len(traces) == 1
    assert jax.tree.all(jax.tree.map(np.array_equal, state["batch_stats"], variables["batch_stats"]))
    assert together.valid.sum() > 5
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b[::-1], atol=1e-4)


def test_no_object_is_found_where_none_scores():
    _, variables = filled("maskrcnn_resnet50_fpn")
    none = jax.tree.map(jnp.zeros_like, variables)
    none["params"]["box_predictor"]["cls_score"]["bias"] = jnp.array([30.0, 0, 0])
    found = compiled("maskrcnn_resnet50_fpn")(none, pictures(2, 96, 96), jnp.full((2, 2), 96, jnp.int32))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found))


def test_other_canvases_are_refused_with_the_next_good_one():
    model, _ = filled("maskrcnn_resnet50_fpn")
    with pytest.raises(ValueError, match=r"MaskRCNN needs .* divisible by 32, got \(97, 64\); pad to \(128, 64\)"):
        model.init(jax.random.key(0), jnp.zeros((1, 97, 64, 3)), train=False)


def test_frozen_norm_is_state_that_stays():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    norm = FrozenBatchNorm(epsilon=0.0)
    variables = norm.init(jax.random.key(0), x, train=True)
    assert set(variables) == {"batch_stats"}
    kept = fill(variables)
    out, state = norm.apply(kept, x, train=True, mutable=["batch_stats"])
    assert jax.tree.all(jax.tree.map(np.array_equal, dict(state), dict(kept)))
    plain = BatchNorm(epsilon=0.0)
    split = {"params": {k: kept["batch_stats"][k] for k in ("scale", "bias")}} | {
        "batch_stats": {k: kept["batch_stats"][k] for k in ("mean", "var")}
    }
    np.testing.assert_array_equal(out, plain.apply(split, x, train=False))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (24, 8), (7, 1)])
def test_group_norm_is_its_definition(channels, groups):
    rng = np.random.default_rng(channels)
    x = (3 * rng.standard_normal((2, 3, 5, channels)) + 40).astype(np.float32)
    variables = {"params": {k: jnp.asarray(rng.standard_normal(channels), jnp.float32) for k in ("scale", "bias")}}
    expected = np.zeros(x.shape)
    for n in range(2):
        for first in range(0, channels, channels // groups):
            own = slice(first, first + channels // groups)
            part = x[n, ..., own].astype(np.float64)
            expected[n, ..., own] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    expected = expected * np.asarray(variables["params"]["scale"]) + np.asarray(variables["params"]["bias"])
    for train in (True, False):
        np.testing.assert_allclose(GroupNorm().apply(variables, jnp.asarray(x), train=train), expected, atol=2e-4)
    half = GroupNorm().apply(variables, jnp.asarray(x, jnp.bfloat16), train=False)
    assert half.dtype == jnp.bfloat16  # rounded going in and out, not in between, where 40 would drown the rest
    np.testing.assert_allclose(np.asarray(half, np.float32), expected, atol=0.3)


@pytest.mark.parametrize("name", some_slow(NARROW, {*NARROW} - {"fasterrcnn_vgg16", "maskrcnn_small"}))
def test_group_norm_norms_every_detector(name):
    model = small(name)
    norms = {"norm": GroupNorm} if model.norm is not None else {}
    model = model.clone(**norms, head_norm=GroupNorm)
    variables = init_shapes(model)
    if norms:
        assert "batch_stats" not in variables
    if "fpn" in name:
        assert variables["params"]["backbone"]["layer_1"]["bn"].keys() == {"scale", "bias"}
    run = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    found = jax.eval_shape(run, variables, jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32))
    assert found.boxes.shape == (2, model.box_detections_per_img, 4)


NAMES = {
    "maskrcnn_resnet50_fpn": (
        "backbone.body.layer2.0.downsample.1.running_var",
        "backbone.fpn.inner_blocks.3.0.bias",
        "backbone.fpn.layer_blocks.0.0.weight",
        "rpn.head.conv.0.0.weight",
        "rpn.head.cls_logits.bias",
        "roi_heads.box_head.fc6.weight",
        "roi_heads.box_predictor.bbox_pred.weight",
        "roi_heads.mask_head.1.0.weight",
        "roi_heads.mask_predictor.conv5_mask.weight",
        "roi_heads.mask_predictor.mask_fcn_logits.bias",
    ),
    "maskrcnn_resnet50_fpn_v2": (
        "backbone.fpn.inner_blocks.3.1.running_mean",
        "rpn.head.conv.1.0.bias",
        "roi_heads.box_head.1.1.weight",
        "roi_heads.box_head.5.bias",
        "roi_heads.mask_head.0.1.running_var",
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": (
        "backbone.body.0.0.weight",
        "backbone.body.4.block.2.fc1.bias",
        "backbone.body.16.1.running_mean",
        "backbone.fpn.inner_blocks.1.0.weight",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_published_names_and_exact_round_trips(tmp_path, name):
    model = small(name)
    variables = fill(init_shapes(model))
    state = to_published(model, variables)
    assert set(NAMES[name]) <= set(state)
    save_weights(tmp_path / "w.safetensors", model, variables)
    loaded = load_published(tmp_path / "w.safetensors", model)
    assert loaded.publisher == "torchvision"
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, variables))
    other = from_published(state, model.clone(num_classes=5))
    assert "scores 3 classes and the model 5" in other.left_out
    assert other.variables["params"]["box_predictor"]["bbox_pred"]["kernel"].shape == (24, 20)
    assert not other.variables["params"]["box_predictor"]["cls_score"]["kernel"].any()


def test_names_of_older_files():
    model = small("maskrcnn_resnet50_fpn")
    variables = fill(init_shapes(model))
    old = {}
    for name, array in to_published(model, variables).items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if "_blocks" in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        for i in (0, 1):
            name = name.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
        old[name] = array
    assert {"rpn.head.conv.weight", "backbone.fpn.layer_blocks.2.bias", "roi_heads.mask_head.mask_fcn2.bias"} <= set(
        old
    )
    loaded = from_published(old, model).variables
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables))


@pytest.mark.parametrize("value", [255.0, -1.0, np.nan, np.inf])
def test_detect_refuses_floats_that_are_no_pixels(value):
    images = np.full((2, 40, 50, 3), 0.5, np.float32)
    images[1, 3, 4, 0] = value
    with pytest.raises(ValueError, match=r"floats in 0\.\.1, image 1 has .*; divide by 255, or give uint8"):
        detect(*filled("maskrcnn_resnet50_fpn"), images)


class WholePictures(nn.Module):
    """Finds one object, which is the picture."""

    min_size: int = 64
    max_size: int = 128

    def propose(self):
        """It is no Fast R-CNN, which is given boxes."""

    def __call__(self, images, sizes, *, train):
        boxes = jnp.concatenate([jnp.zeros_like(sizes), sizes[:, ::-1]], 1).astype(jnp.float32)[:, None]
        ones = jnp.ones(boxes.shape[:2], jnp.int32)
        return Detections(boxes, ones.astype(jnp.float32), ones, None, ones > 0)


def test_no_box_leaves_its_picture_by_rounding():
    images = [np.zeros((20, w, 3), np.uint8) for w in (28, 29, 65)]  # scaled by ratios that float32 rounds up
    for image, found in zip(images, detect(WholePictures(), {}, images), strict=True):
        np.testing.assert_array_equal(found.boxes, [[0, 0, image.shape[1], 20]])


def test_half_precision_is_floats_too():
    images = np.linspace(0, 1, 28 * 20 * 3).reshape(1, 20, 28, 3)
    for half in (images.astype(np.float16), jnp.asarray(images, jnp.bfloat16)):
        (found,) = detect(WholePictures(), {}, half)
        np.testing.assert_array_equal(found.boxes, [[0, 0, 28, 20]])


@pytest.mark.parametrize("at_once", [1, 4, 10])
def test_masks_that_are_pasted_in_parts_are_those_pasted_whole(at_once, monkeypatch):
    """Also where the last part is not a whole one, and one by one."""
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.random((10, 2, 2)) * 120, 1).reshape(10, 4).astype(np.float32)
    masks = rng.random((10, 7, 7)).astype(np.float32)
    size = (100, 140)
    expected = np.asarray(jax.jit(paste_masks, static_argnums=2)(masks, boxes, (128, 256)))[:, :100, :140]
    monkeypatch.setattr("jaxseg.detect.PASTED", at_once * 4 * 128 * 256)
    np.testing.assert_array_equal(_all_pasted(jnp.asarray(masks), jnp.asarray(boxes), size), expected)
    found = Detections(boxes, None, None, masks, None)
    np.testing.assert_array_equal(list(paste_each(found, size)), expected)
    chosen = [0, 3, 4, 5, 8]
    np.testing.assert_array_equal(list(paste_each(found, size, chosen)), expected[chosen])
    assert list(paste_each(found, size, [])) == []
    assert _all_pasted(jnp.zeros((0, 7, 7)), jnp.zeros((0, 4)), size).shape == (0, *size)


def test_detect_gives_each_image_its_own_pixels():
    model, variables = filled("maskrcnn_resnet50_fpn")
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (h // 8, w // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1) for h, w in ((120, 96), (80, 160))
    ]
    found = detect(model, variables, images)
    for image, one in zip(images, found, strict=True):
        h, w = image.shape[:2]
        valid = np.asarray(one.valid)
        boxes = np.asarray(one.boxes)
        assert valid.sum() > 2
        assert one.masks.shape == (10, h, w)
        assert (boxes <= np.array([w, h, w, h]) + 1e-3).all()
        assert boxes[:, 2].max() > 0.6 * w  # scaled back
        ys, xs = np.nonzero(np.asarray(one.masks[0]) > 0)
        x0, y0, x1, y1 = boxes[0]
        slack = 2 + 0.06 * max(x1 - x0, y1 - y0)  # the mask's frame is a fourteenth larger
        assert x0 - slack <= xs.min() <= xs.max() <= x1 + slack
        assert y0 - slack <= ys.min() <= ys.max() <= y1 + slack
    alone = detect(model, variables, images[:1], canvas=(96, 96))
    np.testing.assert_allclose(alone[0].boxes, found[0].boxes, atol=1e-3)
    floats = detect(model, variables, [images[0].astype(np.float32) / 255], canvas=(96, 96))
    np.testing.assert_allclose(floats[0].boxes, alone[0].boxes, atol=1e-3)
    assert detect(model, variables, []) == []
    with pytest.raises(ValueError, match=r"needs RGB images \[h, w, 3\], image 1 has shape \(8, 8\)"):
        detect(model, variables, [images[0], np.zeros((8, 8))])
    with pytest.raises(ValueError, match="image 0 is int64"):
        detect(model, variables, [np.zeros((8, 8, 3), np.int64)])
    with pytest.raises(ValueError, match="1 pixel or more, got 0 and"):
        detect(model, variables, images, min_size=0)
    with pytest.raises(ValueError, match=r"canvas of \(96, 96\) at least, got \(64, 96\)"):
        detect(model, variables, images, canvas=(64, 96))


@pytest.mark.parametrize("boxes", [2, 12])  # fewer than the kernel's columns, of which the bins are moved, and more
def test_the_box_head_takes_its_kernel_channels_first(boxes):
    head, rng = BoxHead(16), np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((boxes, 3, 3, 5), np.float32))
    shapes = jax.eval_shape(functools.partial(head.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape, np.float32)), shapes)
    fc6, fc7 = (variables["params"][name] for name in ("fc6", "fc7"))
    hidden = jnp.maximum(x.transpose(0, 3, 1, 2).reshape(boxes, -1) @ fc6["kernel"] + fc6["bias"], 0)
    wanted = jnp.maximum(hidden @ fc7["kernel"] + fc7["bias"], 0)
    np.testing.assert_allclose(head.apply(variables, x, train=False), wanted, rtol=1e-5, atol=1e-4)
