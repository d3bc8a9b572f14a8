"""Contours, thinning, and merging of cells on images whose borders are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxseg.clustering import hierarchy, segmentation_at, segmentation_of
from jaxseg.clustering.contours import contour_strength, contour_tensor, segmentation_strength, strongest, thin
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
