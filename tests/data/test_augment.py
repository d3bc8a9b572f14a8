"""Augmentations move image and maps together, under jit, vmap, grad and sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg.data import IMAGENET_MEAN, color_jitter, elastic, flip, normalize, rotate, scale_crop

H, W = 24, 32
GEOMETRIC = {
    "flip": flip,
    "scale_crop": scale_crop((20, 28), (0.5, 2.0)),
    "rotate": rotate(40.0),
    "elastic": elastic(3.0),
}
ALL = {**GEOMETRIC, "color_jitter": color_jitter(0.4, 0.4, 0.4, 0.2)}


def coordinates():
    """An example whose pixels hold their own place: in the image as colour, in the maps as a number."""
    rows, cols = np.indices((H, W))
    image = np.stack([rows / H, cols / W, np.ones((H, W))], -1).astype(np.float32)
    place = rows * W + cols
    return {
        "image": jnp.asarray(image),
        "label": jnp.asarray(place % 200, jnp.int32),
        "instances": jnp.asarray(place + 1, jnp.int32),
        "weight": jnp.asarray(place + 1, jnp.float32),
    }


def draws(augment, n=16, seed=0):
    keys = jax.random.split(jax.random.key(seed), n)
    return jax.jit(jax.vmap(augment, (0, None)))(keys, coordinates())


@pytest.mark.parametrize("name", GEOMETRIC)
def test_image_and_maps_move_together(name):
    out = {k: np.asarray(v) for k, v in draws(GEOMETRIC[name]).items()}
    inside = out["instances"] > 0
    place = out["instances"] - 1
    np.testing.assert_array_equal(out["label"], np.where(inside, place % 200, 255))
    np.testing.assert_array_equal(out["weight"], out["instances"].astype(np.float32))
    rows, cols = place // W, place % W
    # the colour is a plane: resampling keeps it wherever no neighbour lies outside
    whole = inside & (rows >= 2) & (rows < H - 2) & (cols >= 2) & (cols < W - 2)
    assert whole.mean() > 0.2
    assert np.abs(out["image"][..., 0] * H - rows)[whole].max() < 0.52
    assert np.abs(out["image"][..., 1] * W - cols)[whole].max() < 0.52
    assert np.abs(out["image"] - np.array(IMAGENET_MEAN))[~inside].max(initial=0) < 1e-6
    assert len({image.tobytes() for image in out["image"]}) > (1 if name == "flip" else 12)


def test_flip_is_a_mirror_half_of_the_time():
    example = coordinates()
    out = np.asarray(draws(flip, 64)["image"])
    kept = (out == np.asarray(example["image"])).all((1, 2, 3))
    mirrored = (out == np.asarray(example["image"])[:, ::-1]).all((1, 2, 3))
    assert (kept ^ mirrored).all()
    assert 16 < kept.sum() < 48


def test_scale_crop_at_scale_one_and_full_size_changes_nothing():
    example = coordinates()
    out = jax.jit(scale_crop((H, W), (1.0, 1.0)))(jax.random.key(0), example)
    for key in example:
        np.testing.assert_allclose(out[key], example[key], atol=1e-6)


def test_scale_crop_reaches_every_place():
    out = np.asarray(draws(scale_crop((H, W), (0.5, 0.5)), 64)["instances"]) > 0
    corners = out[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (out.reshape(64, -1).sum(1) > H * W / 4 - 40).all()
    assert out.any(0).mean() > 0.9  # the very corners need luck
    assert corners.sum() < 16
    large = np.asarray(draws(scale_crop((H, W), (2.0, 2.0)), 64)["instances"])
    assert (large > 0).all()
    assert np.unique(large).size > 0.95 * H * W


def test_elastic_displaces_by_about_sigma():
    big = {"image": jnp.zeros((60, 60, 3)), "instances": jnp.arange(1, 3601, dtype=jnp.int32).reshape(60, 60)}
    keys = jax.random.split(jax.random.key(0), 40)
    out = np.asarray(jax.jit(jax.vmap(elastic(4.0), (0, None)))(keys, big)["instances"])
    moved = (out - 1) // 60 - np.arange(60)[None, :, None]
    spread = moved[:, 25:35, 25:35][out[:, 25:35, 25:35] > 0].std()
    assert 2.5 < spread < 5.5
    still = jax.jit(elastic(0.0))(keys[0], big)
    np.testing.assert_array_equal(still["instances"], big["instances"])


def test_color_jitter_leaves_maps_alone_and_zero_is_nothing():
    example = coordinates()
    out = color_jitter(0.4, 0.4, 0.4, 0.1)(jax.random.key(1), example)
    assert float(jnp.abs(out["image"] - example["image"]).max()) > 0.02
    assert float(out["image"].min()) >= 0
    assert float(out["image"].max()) <= 1
    for key in ("label", "instances", "weight"):
        assert out[key] is example[key]
    same = color_jitter()(jax.random.key(1), example)
    np.testing.assert_allclose(same["image"], example["image"], atol=1e-6)
    grey = {"image": jnp.full((4, 4, 3), 0.5)}
    turned = color_jitter(hue=0.5, saturation=0.5)(jax.random.key(2), grey)
    np.testing.assert_allclose(turned["image"], 0.5, atol=2e-3)  # YIQ's published rows sum to 0 +- 0.001


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_finite_and_flows(name):
    example = coordinates()
    example["image"] = example["image"].at[:4].set(0.5)  # grey too

    def total(image):
        return ALL[name](jax.random.key(3), example | {"image": image})["image"].sum()

    gradient = np.asarray(jax.jit(jax.grad(total))(example["image"]))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).sum() > 0


def test_sharding_draws_the_same_numbers():
    def augment(key, example):
        for k, f in zip(jax.random.split(key, len(ALL)), ALL.values(), strict=True):
            example = f(k, example)
        return example

    batch = jax.tree.map(lambda a: jnp.broadcast_to(a, (8, *a.shape)), coordinates())
    keys = jax.random.split(jax.random.key(0), 8)
    step = jax.jit(jax.vmap(augment))
    alone = step(keys, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = step(*jax.device_put((keys, batch), NamedSharding(mesh, PartitionSpec("data"))))
    np.testing.assert_array_equal(alone["label"], spread["label"])
    np.testing.assert_allclose(alone["image"], spread["image"], atol=1e-5)


def test_normalize():
    image = jnp.broadcast_to(jnp.array(IMAGENET_MEAN), (2, 2, 3))
    np.testing.assert_allclose(normalize(image), 0, atol=1e-6)
    np.testing.assert_allclose(normalize(image + 0.1)[0, 0], 0.1 / np.array([0.229, 0.224, 0.225]), rtol=1e-5)


def test_bad_arguments_name_the_fix():
    with pytest.raises(ValueError, match=r"0 < low <= high.*\(2\.0, 1\.0\)"):
        scale_crop((4, 4), (2.0, 1.0))
    with pytest.raises(ValueError, match="grid of at least 2"):
        elastic(grid=1)
    with pytest.raises(ValueError, match=r"hue in 0\.\.0\.5, got 0\.6"):
        color_jitter(hue=0.6)
