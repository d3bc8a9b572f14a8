"""Contours, thinning, and merging of cells on images whose borders are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxseg.clustering import hierarchy, segmentation_at, segmentation_of
from jaxseg.clustering.contours import (
    contour_strength,
    contour_tensor,
    cue_strength,
    histogram_tensor,
    segmentation_strength,
    strongest,
    texture_shares,
    thin,
)
from jaxseg.clustering.hierarchy import watershed_cells


def halves(h=24, w=32, angle=0.0):
    y, x = np.mgrid[:h, :w] - np.array([h / 2, w / 2])[:, None, None]
    right = (x * np.cos(angle) + y * np.sin(angle)) > 0
    return jnp.asarray(np.where(right[..., None], [0.8, 0.3, 0.2], [0.2, 0.3, 0.7]).astype(np.float32))


@pytest.fixture(scope="module")
def contours():
    return jax.jit(lambda x: (*strongest(contour_tensor(x)), contour_strength(x)))


@pytest.mark.parametrize("angle", [0.0, np.pi / 4, np.pi / 2, 2.5])
def test_a_step_is_strong_at_its_place_and_its_normal_points_across(contours, angle):
    strength, normal, thinned = contours(halves(angle=angle))
    y, x = np.mgrid[:24, :32] - np.array([12, 16])[:, None, None]
    away = np.abs((x + 0.5) * np.cos(angle) + (y + 0.5) * np.sin(angle))
    inner = np.zeros((24, 32), bool)
    inner[6:-6, 6:-6] = True
    assert float(strength[inner & (away < 1)].min()) > 0.5
    assert float(strength[inner & (away > 10)].max(initial=0)) < 1e-6  # the larger scale's lobes end at 9 pixels
    along = np.cos(angle) * normal[0] + np.sin(angle) * normal[1]
    assert float(jnp.abs(along)[inner & (away < 1)].min()) > 0.9
    assert float(thinned[inner & (away > 2)].max(initial=0)) < 0.05
    if angle == 0.0:  # one pixel in each row, next to the step
        assert ((np.asarray(thinned)[inner.any(1)] > 0.3).sum(axis=1) == 1).all()


def test_a_constant_image_has_no_contours(contours):
    strength, _, thinned = contours(jnp.full((24, 32, 3), 0.4))
    assert float(strength.max()) < 1e-6
    assert float(thinned.max()) < 1e-6


def test_thinning_keeps_the_ridge_of_a_ramp():
    ridge = jnp.broadcast_to(3.0 - jnp.abs(jnp.arange(9) - 4.0), (5, 9))
    across = jnp.stack([jnp.ones((5, 9)), jnp.zeros((5, 9))])
    np.testing.assert_array_equal(thin(ridge, across) > 0, ridge == 3)


def test_cells_meet_at_the_strongest_and_merge_across_the_weakest():
    strength = np.zeros((9, 30))
    strength[:, 10], strength[:, 20] = 0.9, 0.3
    tree = hierarchy(strength)
    assert watershed_cells(strength).max() == 2
    two = segmentation_of(tree, 2)
    assert len(np.unique(two[:, 12:])) == 1
    assert two[0, 5] != two[0, 25]
    assert len(np.unique(segmentation_of(tree, 3))) == 3
    assert segmentation_of(tree, 1).max() == 0
    assert (np.diff(tree.heights) >= 0).all()
    counts = [len(np.unique(segmentation_at(tree, level))) for level in (0.0, 0.3, 1.0)]
    assert counts == [3, 2, 1]


def test_cells_do_not_run_over_the_image_s_sides():
    strength = np.random.default_rng(1).random((12, 13))
    cells = watershed_cells(strength)
    for j in range(cells.max() + 1):
        assert scipy.ndimage.label(cells == j, structure=np.ones((3, 3)))[1] == 1


def test_every_merge_takes_the_least_border_left():
    rng = np.random.default_rng(0)
    strength = rng.random((14, 15))
    tree = hierarchy(strength, size_power=0.3)
    cells = tree.cells.copy()
    for a, b in tree.pairs[:40]:
        heights = {}
        for axis in (0, 1):
            first, second = (np.swapaxes(v, 0, axis) for v in (cells, strength))
            ends = np.stack([first[:-1].ravel(), first[1:].ravel()], 1)
            for (i, j), s, t in zip(ends, second[:-1].ravel(), second[1:].ravel(), strict=True):
                if i != j:
                    heights.setdefault((min(i, j), max(i, j)), []).append(max(s, t))
        size = np.bincount(cells.ravel()) / cells.size
        value = {k: np.mean(v) * min(size[k[0]], size[k[1]]) ** 0.3 for k, v in heights.items()}
        here = {tuple(sorted((cells[tree.cells == a][0], cells[tree.cells == b][0])))}
        assert value[here.pop()] == pytest.approx(min(value.values()))
        cells[cells == cells[tree.cells == b][0]] = cells[tree.cells == a][0]


def test_eigenvectors_add_their_own_contours():
    vectors = jnp.asarray(np.where(np.arange(32) < 10, -1.0, 1.0) * np.ones((1, 24, 1)), jnp.float32)
    strength = segmentation_strength(halves(), jnp.array([0.01]), vectors)
    row = np.asarray(strength)[12]
    assert row[10] > 0.4
    assert row[16] > 0.4
    assert row[4] < 0.1


@pytest.mark.parametrize("rise", [2, 8])
def test_cells_meet_on_a_crest_and_not_on_its_flank(rise):
    """Even where the two sides are unlike: what counts is height, and not how it changes."""
    x = np.arange(41)
    ridge = np.exp(-0.5 * ((x - 20) / np.where(x < 20, rise, 4)) ** 2)
    row = watershed_cells(np.tile(ridge, (7, 1)))[3]
    assert row.max() == 1
    assert np.flatnonzero(np.diff(row))[0] in (19, 20)


def test_a_shelf_with_a_way_down_is_no_cell():
    row = np.array([0.0, 0.1, 0.1, 0.1, 0.1, 0.5, 1.0, 0.3, 0.0])
    np.testing.assert_array_equal(watershed_cells(np.tile(row, (5, 1)))[2] > 0, np.arange(9) > 5)


def stripes(angle, h=64, w=64):
    """Two textures of one mean: waves of 4 pixels, along x on one side and y on the other, turned by `angle`."""
    y, x = np.mgrid[:h, :w] - np.array([(h - 1) / 2, (w - 1) / 2])[:, None, None]
    across, along = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    grey = 0.5 + 0.2 * np.sin(np.pi / 2 * np.where(across < 0, across, along) + 0.4)
    return jnp.asarray(np.repeat(grey[..., None], 3, axis=-1), jnp.float32), across


@pytest.fixture(scope="module")
def texture():
    return jax.jit(lambda x: strongest(histogram_tensor(texture_shares(x), 4.5)))


@pytest.mark.parametrize("angle", [0.0, np.pi / 2])
def test_textures_of_one_mean_part_where_they_meet(texture, angle):
    image, across = stripes(angle)
    strength, normal = texture(image)
    ridge = np.abs(across) < 1
    inner = np.zeros(ridge.shape, bool)
    inner[14:-14, 14:-14] = True
    assert float(strength[inner & ridge].min()) > 3 * float(strength[inner & (np.abs(across) > 14)].max())
    assert float(jnp.abs(np.cos(angle) * normal[0] + np.sin(angle) * normal[1])[inner & ridge].min()) > 0.95
    thinned = np.asarray(thin(strength, normal))
    assert np.abs(across)[inner & (thinned > 0.5 * thinned[inner].max())].max() <= 1.5


def test_texture_shares_sum_to_one_and_plain_pixels_have_none():
    shares = texture_shares(halves())
    np.testing.assert_allclose(shares.sum(axis=0), 1.0, rtol=1e-6)
    assert float(shares[-1, 12, 2]) > 0.999  # far from the step
    assert float(shares[-1, 12, 16]) < 0.5


@pytest.fixture(scope="module")
def cues():
    return jax.jit(cue_strength)


@pytest.mark.parametrize("name", ["brightness", "colour"])
def test_cues_are_strongest_at_a_step_and_nothing_on_a_plain_image(cues, name):
    left, right = {"brightness": ([0.3] * 3, [0.6] * 3), "colour": ([0.6, 0.3, 0.3], [0.3, 0.444, 0.3])}[name]
    image = jnp.asarray(np.where(np.arange(64)[None, :, None] < 40, left, right) * np.ones((64, 1, 1)), jnp.float32)
    row = np.asarray(cues(image))[24]
    assert row.argmax() in (39, 40)
    assert row.max() > 0.2
    assert row[:20].max() < 1e-4
    assert float(cues(jnp.full((64, 64, 3), 0.4)).max()) < 1e-4


def test_cues_have_textures_borders_too(cues):
    columns = np.asarray(cues(stripes(0.0)[0]))[16:-16].mean(axis=0)  # over whole waves
    assert columns[30:34].mean() > columns[14:18].mean() + 0.1
    assert columns[30:34].mean() > columns[46:50].mean() + 0.1


def test_cues_of_a_turned_image_are_turned(cues):
    image = jnp.asarray(np.random.default_rng(0).random((64, 64, 3)), jnp.float32)
    np.testing.assert_allclose(cues(jnp.rot90(image)), jnp.rot90(cues(image)), atol=1e-4)


def test_cues_of_a_batch_are_those_of_its_images(cues):
    batch = jnp.stack([halves(64, 64), stripes(0.0)[0]])
    np.testing.assert_allclose(jax.jit(jax.vmap(cue_strength))(batch), jnp.stack([cues(x) for x in batch]), atol=1e-5)
