"""Overlap-tile, label maps at the original size, and pictures."""

import tracemalloc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxseg.metrics import segmentation_scores
from jaxseg.models import Detections, SegmentationOutput, create_model
from jaxseg.parallel import make_mesh, over_mesh
from jaxseg.predict import (
    batch_predictor,
    labels_at,
    overlap_tile,
    predictor,
    score,
    sharded_predictor,
    sliding_predictor,
)
from jaxseg.visualize import colorize, draw_detections, overlay, palette_image, save_panels


def box_mean(image, reach):
    """Mean over (2 reach + 1)^2 windows of the mirrored image: what a valid convolution of ones would give."""
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1), axis=(0, 1))
    return windows.mean((-1, -2))


@pytest.mark.parametrize("size", [(13, 9), (8, 8), (20, 31), (5, 40)])
def test_overlap_tile_is_seamless(size):
    reach, out = 3, (8, 6)
    image = np.random.default_rng(0).normal(size=(*size, 2)).astype(np.float32)

    def valid(tile):
        assert tile.shape == (1, 14, 12, 2), "every tile has the one compiled shape"
        windows = np.lib.stride_tricks.sliding_window_view(tile[0], (7, 7), axis=(0, 1))
        return windows.mean((-1, -2))[None]

    got = overlap_tile(valid, image, (out[0] + 2 * reach, out[1] + 2 * reach), out)
    np.testing.assert_allclose(got, box_mean(image, reach), atol=1e-6)


def test_labels_at_another_size_are_those_of_the_resized_logits():
    logits = np.random.default_rng(0).normal(size=(9, 7, 5)).astype(np.float32)
    for size in ((31, 20), (9, 7), (4, 5), (9, 20)):
        resized = jax.image.resize(jnp.array(logits), (*size, 5), "bilinear", antialias=False)
        np.testing.assert_array_equal(labels_at(logits, size), np.argmax(resized, -1))


class Brightness(nn.Module):
    """Label 1 where a pixel is bright."""

    @nn.compact
    def __call__(self, images, *, train):
        bright = images.mean(-1)
        return SegmentationOutput(jnp.stack([-bright, bright], -1), None)


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (64, 64), (150, 90), (1, 1)])
def test_any_photograph_gives_labels_of_its_own_size(size):
    image = np.zeros((*size, 3), np.uint8)
    image[: (size[0] + 1) // 2] = 255
    predict = predictor(Brightness(), {}, (64, 64))
    labels = predict(image)
    assert labels.shape == size
    truth = image[..., 0] // 255
    assert (labels == truth).mean() > 0.95


def test_a_batch_gives_what_each_image_gives_alone():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((40, 60), (64, 64), (9, 3))]
    together, alone = batch_predictor(Brightness(), {}, (64, 64), 4), predictor(Brightness(), {}, (64, 64))
    for got, image in zip(together(images), images, strict=True):
        np.testing.assert_array_equal(got, alone(image))
    with pytest.raises(ValueError, match="takes 1 to 4 images at once, got 5"):
        together(images[:1] * 5)


class Bright(nn.Module):
    """A binary model's one logit, above 0 where a pixel is bright."""

    @nn.compact
    def __call__(self, images, *, train):
        return SegmentationOutput(images.mean(-1, keepdims=True), None)


@pytest.mark.parametrize("size", [(64, 64), (40, 90)])
def test_the_one_logit_of_a_binary_model_is_label_1_where_it_is_above_0(size):
    image = np.zeros((*size, 3), np.uint8)
    image[: size[0] // 2] = 255
    truth = image[..., 0] // 255
    sharded = sharded_predictor(Bright(), {}, over_mesh(make_mesh(spatial=8)))
    ways = {
        "whole": predictor(Bright(), {}, (64, 64)),
        "sliding": sliding_predictor(Bright(), {}, (16, 16), flip=True),
        "sharded": lambda image: sharded([image])[0],
    }
    for way, predict in ways.items():
        labels = predict(image)
        assert set(np.unique(labels)) == {0, 1}, way
        assert (labels == truth).mean() > 0.95, way  # whole: the border moves by less than a pixel of the canvas


def test_scores_on_a_source_are_those_of_its_pixels():
    rng = np.random.default_rng(0)
    labels = [rng.choice([0, 1, 2, 255], size).astype(np.int32) for size in ((5, 6), (7, 3))]
    found = [rng.integers(0, 3, label.shape).astype(np.int32) for label in labels]

    class Pairs:
        class_names, num_classes, palette = ("a", "b", "c"), 3, np.zeros((3, 3), np.uint8)

        def __len__(self):
            return len(labels)

        def __getitem__(self, index):
            return {"image": np.full((*labels[index].shape, 3), index, np.uint8), "label": labels[index]}

        def name(self, index):
            return str(index)

    told = []
    scores = score(lambda image: found[image[0, 0, 0]], Pairs(), lambda *done: told.append(done))
    confusion = np.zeros((3, 3), int)
    for label, guess in zip(labels, found, strict=True):
        np.add.at(confusion, (label[label != 255], guess[label != 255]), 1)
    want = segmentation_scores(confusion)
    np.testing.assert_allclose(scores["miou"], want.miou)
    np.testing.assert_allclose([scores[f"iou/{k}"] for k in range(3)], want.iou_per_class)
    assert told == [(1, 2), (2, 2)]
    for label in (3, -1):  # 3 * truth + 3 would be another pair of classes
        found[1][labels[1] != 255] = label
        with pytest.raises(ValueError, match=rf"^1: predicted label\(s\) {label} to {label}, and the source has 3"):
            score(lambda image: found[image[0, 0, 0]], Pairs())


def test_an_image_that_is_not_rgb_of_8_bits_is_refused():
    """Floats in 0..1 would be all but black, and labelled so."""
    model = create_model("unet_small", 2, features=(2, 2, 2, 2, 2))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    ways = predictor(model, variables, (32, 32)), sliding_predictor(model, variables, (32, 32))
    for predict in ways:
        want = predict(image)
        np.testing.assert_array_equal(predict(jnp.asarray(image)), want)
        np.testing.assert_array_equal(predict(Image.fromarray(image)), want)
        with pytest.raises(ValueError, match=r"is uint8, 0 to 255, got float64; multiply floats in 0\.\.1 by 255"):
            predict(image / 255)
        for other in (image[..., 0], np.concatenate([image, image[..., :1]], -1), image[:0]):
            with pytest.raises(ValueError, match=r"is RGB, \[h, w, 3\], got \(\d"):
                predict(other)
    with pytest.raises(ValueError, match="a batch is of at least 1 window, got 0"):
        sliding_predictor(model, variables, (32, 32), batch=0)(image)
    with pytest.raises(ValueError, match="a batch is of at least 1 image, got 0"):
        batch_predictor(model, variables, (32, 32), 0)
    for scale in (float("nan"), float("inf"), 0.0):
        with pytest.raises(ValueError, match="scales are positive"):
            sliding_predictor(model, variables, (32, 32), scales=(1.0, scale))(image)


def test_valid_unet_covers_every_pixel_in_tiles():
    model = create_model("unet_valid", 2, features=(2, 4))
    tile = next(s for s in range(20, 60) if _takes(model, s))
    variables = model.init(jax.random.key(0), jnp.zeros((1, tile, tile, 3)), train=False)
    labels = predictor(model, variables, (tile, tile))(np.random.default_rng(0).integers(0, 255, (33, 70, 3), np.uint8))
    assert labels.shape == (33, 70)


def _takes(model, size):
    try:
        jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, size, size, 3)), train=False), jax.random.key(0))
    except ValueError:
        return False
    return True


def test_an_object_narrower_than_a_pixel_is_drawn():
    boxes = np.array([[10, 10, 10.5, 50], [20, 30, 60, 30.2]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8]), np.array([1, 1]), None, np.ones(2, bool))
    palette = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
    drawn = draw_detections(np.zeros((500, 600, 3), np.uint8), found, ("background", "thing"), palette)
    assert drawn.shape == (500, 600, 3)
    assert (drawn[30, 10] == [255, 0, 0]).all()
    assert (drawn[30, 40] == [255, 0, 0]).all()


def test_what_is_written_of_an_object_stays_within_the_picture():
    palette = np.array([[0, 0, 0], [0, 0, 255]], np.uint8)
    labels = []
    for x0 in (100, 570):  # in the middle, and at the right edge
        boxes = np.array([[x0, 100, x0 + 20, 150]], np.float32)
        found = Detections(boxes, np.array([0.9]), np.array([1]), None, np.ones(1, bool))
        drawn = draw_detections(np.zeros((500, 600, 3), np.uint8), found, ("background", "a long name"), palette)
        shown = drawn[86:100].any((0, 2)).nonzero()[0]
        labels.append(drawn[86:100, shown[0] : shown[-1] + 1])
    np.testing.assert_array_equal(*labels)


def test_a_figure_of_a_sliver_is_no_larger_than_it_must_be():
    nothing = Detections(np.zeros((1, 4), np.float32), np.zeros(1), np.zeros(1, int), None, np.zeros(1, bool))
    palette = np.zeros((1, 3), np.uint8)
    for shape, drawn in (((2, 900, 3), (2, 900, 3)), ((2, 120, 3), (8, 480, 3)), ((120, 2, 3), (480, 8, 3))):
        assert draw_detections(np.zeros(shape, np.uint8), nothing, ("background",), palette).shape == drawn


def test_an_overlay_takes_little_more_memory_than_the_image():
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (1500, 700, 3), np.uint8), rng.integers(0, 3, (1500, 700)).astype(np.int32)
    labels[labels == 2] = 255
    palette = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
    tracemalloc.start()
    drawn = overlay(image, labels, palette)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * image.nbytes
    edge = np.zeros(labels.shape, bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    want = (0.45 * image + 0.55 * colorize(labels, palette)) * np.where(edge, 0.35, 1)[..., None]
    np.testing.assert_allclose(drawn, np.where((labels == 255)[..., None], image, want), atol=0.501)


def test_pictures(tmp_path):
    palette = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
    labels = np.array([[0, 1, 255], [0, 1, 1]], np.int32)
    np.testing.assert_array_equal(colorize(labels, palette)[0], [[0, 0, 0], [255, 0, 0], [255, 255, 255]])
    palette_image(labels, palette).save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as reread:
        np.testing.assert_array_equal(np.asarray(reread), labels)
        np.testing.assert_array_equal(np.asarray(reread.convert("RGB"))[1, 1], [255, 0, 0])
    image = np.full((2, 3, 3), 100, np.uint8)
    assert (overlay(image, labels, palette)[0, 2] == 100).all(), "an ignored pixel stays as it is"
    save_panels(tmp_path / "f.png", [image] * 2, [labels] * 2, [labels] * 2, palette, ("background", "thing"))
    with Image.open(tmp_path / "f.png") as figure:
        assert figure.width > 800
