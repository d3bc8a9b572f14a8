"""Boxes, masks and padding move with their picture; large-scale jitter and copy-paste keep them consistent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg.data import copy_paste, elastic, flip, paste_objects, rotate, scale_crop, scale_jitter
from jaxseg.ops.batch import BATCH_AXIS
from jaxseg.parallel import make_mesh

H, W, G = 24, 32, 4


def example(seed=5, count=3, size=(H, W - 8)):
    """Rectangles, each of a colour of its own, which tells in the image where its mask should be."""
    rng = np.random.default_rng(seed)
    image, masks = np.zeros((H, W, 3), np.float32), np.zeros((G, H, W), bool)
    boxes, classes = np.zeros((G, 4), np.float32), np.zeros(G, np.int32)
    image[..., 2] = seed / 10
    taken = np.zeros((H, W), bool)
    for k in range(count):
        while True:
            x0, y0 = rng.integers(0, size[1] - 9), rng.integers(0, size[0] - 7)
            x1, y1 = x0 + rng.integers(5, 9), y0 + rng.integers(4, 7)
            if not taken[y0:y1, x0:x1].any():
                break
        taken[y0:y1, x0:x1] = masks[k, y0:y1, x0:x1] = True
        image[y0:y1, x0:x1, :2] = (k + 1) / G, seed / 10
        boxes[k], classes[k] = (x0, y0, x1, y1), k + 1
    return {
        "image": jnp.asarray(image),
        "boxes": jnp.asarray(boxes),
        "classes": jnp.asarray(classes),
        "valid": jnp.arange(G) < count,
        "masks": jnp.asarray(masks),
        "size": jnp.array(size, jnp.int32),
        "beyond": jnp.int32(0),
    }


def assert_consistent(out, tight=True):
    """Boxes around masks, nothing where not valid."""
    for k in range(G):
        if not out["valid"][k]:
            assert not out["masks"][k].any()
            assert not out["boxes"][k].any()
            assert out["classes"][k] == 0
            continue
        rows, cols = np.nonzero(out["masks"][k])
        around = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        if tight:
            assert out["boxes"][k].tolist() == around
        else:
            np.testing.assert_allclose(out["boxes"][k], around, atol=1)


def draws(augment, n=12, given=None, seed=0):
    keys = jax.random.split(jax.random.key(seed), n)
    out = jax.jit(jax.vmap(augment, (0, None)))(keys, example() if given is None else given)
    return [jax.tree.map(lambda x, i=i: np.asarray(x[i]), out) for i in range(n)]


AUGMENTS = {
    "flip": flip,
    "scale_crop": scale_crop((20, 28), (0.6, 1.6)),
    "large": scale_jitter((24, 28), (0.2, 2.0)),
    "rotate": rotate(30.0),
    "elastic": elastic(1.0),
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_boxes_masks_and_colours_move_together(name):
    moved, checked = draws(AUGMENTS[name]), 0
    for out in moved:
        assert_consistent(out)
        for k in np.flatnonzero(out["valid"]):
            colour = np.array([(k + 1) / G, 0.5])  # which it has but for its edges, and nothing else has
            painted = (np.abs(out["image"][..., :2] - colour) < 1e-3).all(-1)
            if painted.sum() >= 6:
                checked += 1
                assert out["masks"][k][painted].mean() > 0.9
    assert checked > 10
    assert len({out["boxes"].tobytes() for out in moved}) > (1 if name == "flip" else 5)


def test_a_mirror_leaves_the_padding_where_it_is():
    given = example()
    seen = 0
    for out in draws(flip):
        assert out["size"].tolist() == [H, W - 8]
        assert not out["masks"][:, :, W - 8 :].any()
        np.testing.assert_array_equal(out["image"][:, W - 8 :], given["image"][:, W - 8 :])
        if not np.array_equal(out["boxes"], given["boxes"]):
            seen += 1
            np.testing.assert_array_equal(out["image"][:, : W - 8], given["image"][:, : W - 8][:, ::-1])
    assert 0 < seen < 12


def test_boxes_without_masks_are_scaled_and_cut():
    given = {k: v for k, v in example().items() if k != "masks"}
    for size, augment in (((20, 28), scale_crop((20, 28), (0.6, 1.6))), ((24, 28), scale_jitter((24, 28), (0.5, 2.0)))):
        with_masks, without = draws(augment), draws(augment, given=given)
        for a, b in zip(with_masks, without, strict=True):
            for k in np.flatnonzero(a["valid"] & b["valid"]):
                np.testing.assert_allclose(a["boxes"][k], b["boxes"][k], atol=1.01)
            assert (b["boxes"] <= [size[1], size[0]] * 2).all()
            assert not b["boxes"][~b["valid"]].any()
    with pytest.raises(ValueError, match="by their masks, and there are none"):
        draws(rotate(10.0), given=given)


def test_large_scale_jitter_says_where_the_picture_is():
    given = example(size=(H, W))
    sizes = []
    for out in draws(scale_jitter((24, 28), (0.1, 2.0)), 24, given):
        h, w = out["size"]
        sizes.append(h / 24)
        assert 1 <= h <= 24
        assert 1 <= w <= 28
        assert not out["masks"][:, h + 1 :].any()
        grey = out["image"][h + 1 :]
        assert grey.size == 0 or np.abs(grey - np.array([0.485, 0.456, 0.406])).max() < 1e-5
    assert min(sizes) < 0.5
    assert max(sizes) == 1
    (same,) = draws(scale_jitter((H, W), (1.0, 1.0)), 1, given)
    for k, v in given.items():
        np.testing.assert_allclose(same[k], v, atol=1e-6)
    with pytest.raises(ValueError, match="0 < low <= high"):
        scale_jitter((8, 8), (2.0, 1.0))


def test_pasted_objects_cover_what_lies_below():
    below, above = example(1, 2), example(2, 2)
    out = jax.tree.map(np.asarray, jax.jit(paste_objects, static_argnums=3)(jax.random.key(0), below, above, 1.0))
    assert_consistent(out)
    over = np.asarray(above["masks"]).any(0)
    np.testing.assert_array_equal(out["image"], np.where(over[..., None], above["image"], below["image"]))
    left = [m & ~over for m in np.asarray(below["masks"][:2]) if (m & ~over).any()]
    expected = [*left, *np.asarray(above["masks"][:2])]
    assert out["valid"].sum() == len(expected)
    for mask, want in zip(out["masks"], expected, strict=False):
        np.testing.assert_array_equal(mask, want)
    nothing = paste_objects(jax.random.key(0), below, above, 0.0)
    jax.tree.map(np.testing.assert_array_equal, nothing, below)


def test_a_covered_object_is_gone_and_one_without_a_place_is_counted():
    below, above = example(1, 3), example(2, 3)
    whole = jnp.zeros((G, H, W), bool).at[0].set(True)
    box = jnp.zeros((G, 4)).at[0].set(jnp.array([0.0, 0, W, H]))
    cover = above | {"masks": whole, "boxes": box, "valid": jnp.arange(G) < 1}
    gone = jax.tree.map(np.asarray, paste_objects(jax.random.key(0), below, cover, 1.0))
    assert gone["valid"].tolist() == [True, False, False, False]
    assert gone["boxes"][0].tolist() == [0, 0, W, H]
    assert gone["beyond"] == 0
    full = jax.tree.map(np.asarray, paste_objects(jax.random.key(0), below, above, 1.0))
    assert full["beyond"] == 2  # of three, one place was free
    assert_consistent(full)
    kept = np.asarray(above["masks"])[1:].any(0) & ~np.asarray(above["masks"])[0]
    np.testing.assert_array_equal(full["image"][kept], np.asarray(below["image"])[kept])  # nor are they painted
    with pytest.raises(ValueError, match="needs masks"):
        paste_objects(jax.random.key(0), {k: v for k, v in below.items() if k != "masks"}, above)


def test_a_batch_pastes_the_next_however_it_is_sharded():
    examples = jax.tree.map(lambda *x: jnp.stack(x), *(example(i, 1 + i % 3) for i in range(8)))
    key = jax.random.key(3)
    expected = jax.jit(copy_paste)(key, examples)
    for i in range(8):
        assert_consistent(jax.tree.map(lambda x, i=i: np.asarray(x[i]), expected))
    assert not np.array_equal(expected["image"], examples["image"])
    sharding = NamedSharding(make_mesh(data=8), PartitionSpec("data"))
    sharded = jax.jit(copy_paste)(key, jax.device_put(examples, sharding))
    mapped = jax.pmap(copy_paste, axis_name=BATCH_AXIS, in_axes=(None, 0))(
        key, jax.tree.map(lambda x: x[:, None], examples)
    )
    jax.tree.map(np.testing.assert_array_equal, sharded, expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 0], b), mapped, expected)
