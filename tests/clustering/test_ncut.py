"""Normalized Cut against dense definitions on small graphs, brute force, and scipy's eigensolver."""

import functools
import itertools
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from jaxseg.clustering import (
    assoc,
    cut,
    is_stable,
    ncut_graph,
    ncut_regions,
    ncut_value,
    region_affinity,
    splitting_point,
)
from jaxseg.clustering import graph as any_graph
from jaxseg.clustering import ncut as any_ncut
from jaxseg.clustering.eigen import smallest_eigenpairs
from jaxseg.clustering.ncut import _cut
from jaxseg.ops.affinity import affinity_product, coarsen, laplacian_product, pixel_affinity, subgraph

KEY = jax.random.key(0)

# the published weights, and a short radius: XLA's compile time goes with the number of edges
graph = functools.partial(any_graph, space="rgb", radius=3.0, sigma_distance=4.0, sigma_contour=None)
ncut = functools.partial(any_ncut, space="rgb", radius=3.0, sigma_distance=4.0, sigma_contour=None)


def dense(affinity):
    """W column by column, from products with unit vectors."""
    h, w = affinity.degree.shape
    eye = jnp.eye(h * w).reshape(-1, h, w)
    return np.asarray(affinity_product(affinity, eye)).reshape(h * w, h * w).astype(np.float64)


def by_definition(features, radius, sigma_feature, sigma_distance, contour=None, sigma_contour=0.1):
    """Shi & Malik's eq. 11, pixel pair by pixel pair."""
    h, w, _ = features.shape
    out = np.zeros((h * w, h * w))
    for (i, a), (j, b) in itertools.product(enumerate(np.ndindex(h, w)), repeat=2):
        d2 = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
        if d2 < radius**2:
            f2 = ((features[a] - features[b]) ** 2).sum()
            out[i, j] = math.exp(-f2 / sigma_feature**2 - d2 / sigma_distance**2)
            if contour is not None and a != b:  # a pixel's edge with itself crosses nothing
                a, b = min(a, b), max(a, b)
                n = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1)
                line = [
                    (a[0] + round(t * (b[0] - a[0]) / n), a[1] + round(t * (b[1] - a[1]) / n)) for t in range(n + 1)
                ]
                out[i, j] *= math.exp(-max(contour[p] for p in line) / sigma_contour)
    return out


def noisy_blocks(h, w, seed=0, noise=0.02):
    rng = np.random.default_rng(seed)
    image = np.zeros((h, w, 3))
    image[:, w // 2 :] = [0.5, 0.4, 0.3]
    image[h // 2 :, : w // 2] = [0.2, 0.7, 0.4]
    return np.clip(image + noise * rng.standard_normal(image.shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize(("h", "w", "radius"), [(5, 6, 3.0), (4, 7, 1.5), (1, 6, 5.0), (3, 2, 5.0)])
def test_stencil_is_the_formula(h, w, radius):
    x = noisy_blocks(h, w)
    contour = np.random.default_rng(1).random((h, w)).astype(np.float32)
    plain = pixel_affinity(x, radius=radius, sigma_feature=0.3, sigma_distance=2.0)
    np.testing.assert_allclose(dense(plain), by_definition(x, radius, 0.3, 2.0), atol=1e-6)
    with_contour = pixel_affinity(
        x,
        radius=radius,
        sigma_feature=0.3,
        sigma_distance=2.0,
        contour=jnp.asarray(contour),
        sigma_contour=0.4,
    )
    np.testing.assert_allclose(dense(with_contour), by_definition(x, radius, 0.3, 2.0, contour, 0.4), atol=1e-6)
    np.testing.assert_allclose(plain.degree.reshape(-1), dense(plain).sum(1), rtol=1e-5)
    y = np.random.default_rng(2).random((2, h, w)).astype(np.float32)
    product = np.asarray(laplacian_product(plain, jnp.asarray(y))).reshape(2, -1)
    matrix = dense(plain)
    np.testing.assert_allclose(product, y.reshape(2, -1) @ (np.diag(matrix.sum(1)) - matrix), atol=1e-5)


def test_coarse_graph_sums_the_fine_one():
    g = graph(jnp.asarray(noisy_blocks(7, 5)), sigma_feature=0.3)
    cells = np.add.outer(np.arange(7) // 2 * 3, np.arange(5) // 2).reshape(-1)
    p = np.eye(12)[cells]
    coarse = coarsen(g)
    np.testing.assert_allclose(dense(coarse), p.T @ dense(g) @ p, rtol=1e-4, atol=1e-5)


def test_cut_assoc_and_ncut_by_definition():
    g = graph(jnp.asarray(noisy_blocks(4, 5)), sigma_feature=0.5, radius=3.0)
    matrix = dense(g)
    labels = np.random.default_rng(0).integers(3, size=(4, 5))
    value = 0.0
    for j in range(3):
        a = (labels == j).reshape(-1)
        assert float(cut(g, jnp.asarray(labels == j))) == pytest.approx(matrix[a][:, ~a].sum(), rel=1e-5)
        assert float(assoc(g, jnp.asarray(labels == j))) == pytest.approx(matrix[a].sum(), rel=1e-5)
        b = labels == (j + 1) % 3
        between = assoc(g, jnp.asarray(labels == j), jnp.asarray(b))
        assert float(between) == pytest.approx(matrix[a][:, b.reshape(-1)].sum(), rel=1e-4, abs=1e-6)
        value += matrix[a][:, ~a].sum() / matrix[a].sum()
    assert float(ncut_value(g, jnp.asarray(labels), 3)) == pytest.approx(value, rel=1e-5)


def test_two_way_cut_is_the_best_of_all_bipartitions():
    g = graph(jnp.asarray(noisy_blocks(3, 4)), sigma_feature=0.3, radius=2.5)
    matrix = dense(g)

    def value(a):
        return matrix[a][:, ~a].sum() * (1 / matrix[a].sum() + 1 / matrix[~a].sum())

    least = min(value(np.array([bool(i >> b & 1) for b in range(12)])) for i in range(1, 2**11))
    for method in ("k-way", "recursive"):
        result = ncut_graph(g, 2, key=KEY, method=method, stability=False)
        assert float(result.ncut_value) == pytest.approx(least, rel=1e-4)


def test_eigenpairs_of_scipy():
    g = graph(jnp.asarray(noisy_blocks(40, 30, noise=0.05)), sigma_feature=0.2)
    pairs = jax.jit(lambda g: smallest_eigenpairs(g, 5, key=KEY, tolerance=1e-5))(g)
    matrix = dense(g)
    d = matrix.sum(1)
    values = scipy.linalg.eigh(
        np.eye(1200) - matrix / np.sqrt(np.outer(d, d)), eigvals_only=True, subset_by_index=[1, 5]
    )
    np.testing.assert_allclose(pairs.values, values, atol=1e-6)
    assert float(pairs.residuals.max()) <= 1e-5
    y = np.asarray(pairs.vectors).reshape(5, -1)
    np.testing.assert_allclose(y * d @ y.T, np.eye(5), atol=1e-4)
    np.testing.assert_allclose(y @ d, 0, atol=1e-3 * np.sqrt(d.sum()))


def test_subgraph_has_no_edges_outside():
    g = graph(jnp.asarray(noisy_blocks(4, 4)), sigma_feature=0.5)
    inside = np.zeros((4, 4), np.float32)
    inside[:, :3] = 1
    keep = np.flatnonzero(inside)
    matrix = dense(subgraph(g, jnp.asarray(inside)))
    np.testing.assert_allclose(matrix[np.ix_(keep, keep)], dense(g)[np.ix_(keep, keep)], rtol=1e-5, atol=1e-6)
    assert matrix.sum() == pytest.approx(matrix[np.ix_(keep, keep)].sum())


@pytest.mark.parametrize("method", ["k-way", "recursive"])
def test_three_blocks_are_found(method):
    x = noisy_blocks(24, 30)
    # recursive: a fourth segment costs 0.097, and the program is that of the test below
    options = {"num_segments": 3} if method == "k-way" else {"num_segments": 6, "max_ncut": 0.05}
    result = ncut(x, method=method, sigma_feature=0.15, stability=False, **options)
    truth = np.zeros((24, 30), int)
    truth[:, 15:] = 1
    truth[12:, :15] = 2
    table = np.zeros((3, 3))
    np.add.at(table, (np.asarray(result.labels), truth), 1)
    assert (table > 0).sum() == 3
    g = graph(jnp.asarray(x), sigma_feature=0.15)
    assert float(result.ncut_value) == pytest.approx(float(ncut_value(g, jnp.asarray(truth), 3)), rel=1e-4)


def test_recursion_stops_at_max_ncut_and_compiles_once():
    options = {"method": "recursive", "sigma_feature": 0.15, "stability": False}
    compiled = _cut._cache_size()
    for max_ncut, segments in ((0.05, 3), (0.1, 4)):  # to halve the largest block costs 0.097
        result = ncut(noisy_blocks(24, 30), 6, max_ncut=max_ncut, **options)
        assert len(np.unique(result.labels)) == segments
        assert result.ncut_value <= max_ncut
    assert _cut._cache_size() <= compiled + 1


def test_stability_tells_steps_from_ramps():
    ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 40), (10, 40))
    assert not bool(is_stable(ramp, jnp.ones((10, 40), bool)))
    assert bool(is_stable(jnp.sign(ramp), jnp.ones((10, 40), bool)))


def test_splitting_point_takes_the_least_ncut():
    g = graph(jnp.asarray(noisy_blocks(8, 8)), sigma_feature=0.2)
    y = jnp.broadcast_to(jnp.linspace(0.0, 1.0, 8), (8, 8))
    threshold, value = splitting_point(g, y)
    values = [float(ncut_value(g, (y > t).astype(jnp.int32), 2)) for t in np.linspace(0.01, 0.99, 60)]
    assert float(value) == pytest.approx(min(values), rel=1e-4)
    assert 3 / 7 <= float(threshold) < 4 / 7


def test_region_graph_has_the_ncut_of_its_pixels():
    x = jnp.asarray(noisy_blocks(16, 16))
    g = graph(x, sigma_feature=0.2)
    cells = jnp.asarray(np.add.outer(np.arange(16) // 4 * 4, np.arange(16) // 4))
    weights = region_affinity(g, cells, 16)
    p = np.eye(16)[np.asarray(cells).reshape(-1)]
    np.testing.assert_allclose(weights, p.T @ dense(g) @ p, rtol=1e-4, atol=1e-4)
    result = ncut_regions(weights, 3, key=KEY)
    assert float(result.ncut_value) == pytest.approx(float(ncut_value(g, result.labels[cells], 3)), rel=1e-3)


@pytest.mark.slow
def test_a_batch_of_images_by_vmap():
    x = jnp.stack([jnp.asarray(noisy_blocks(16, 14, seed=s)) for s in range(2)])
    together = jax.vmap(lambda i: ncut(i, 3, sigma_feature=0.2))(x)
    for i in range(2):
        alone = ncut(x[i], 3, sigma_feature=0.2)
        np.testing.assert_array_equal(together.labels[i], alone.labels)
        np.testing.assert_allclose(together.eigenvalues[i], alone.eigenvalues, atol=1e-5)


def test_ncut_value_differentiates():
    labels = jnp.asarray(np.arange(30).reshape(5, 6) % 6 // 3)
    value = lambda x: ncut_value(graph(x, sigma_feature=0.5), labels, 2)  # noqa: E731
    x = jnp.asarray(noisy_blocks(5, 6))
    slope = jax.grad(value)(x)
    direction = jax.random.normal(KEY, x.shape)
    step = (value(x + 1e-2 * direction) - value(x - 1e-2 * direction)) / 2e-2
    assert float(jnp.vdot(slope, direction)) == pytest.approx(float(step), rel=2e-2)


def image_of(kind):
    rgb = (noisy_blocks(8, 10) * 255).astype(np.uint8)
    alpha = np.full((8, 10, 1), 255, np.uint8)
    return {
        "grey": rgb[..., 0],
        "grey with a channel axis": rgb[..., :1],
        "grey and alpha": np.concatenate([rgb[..., :1], alpha], axis=-1),
        "alpha": np.concatenate([rgb, alpha], axis=-1),
        "16 bit": rgb.astype(np.uint16) * 257,
        "32 bit": rgb.astype(np.uint32) * 16843009,
        "constant": np.full((8, 10, 3), 90, np.uint8),
        "one pixel": rgb[:1, :1],
        "a row": rgb[:1],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "grey",
        "grey with a channel axis",
        "grey and alpha",
        "alpha",
        "16 bit",
        "32 bit",
        "constant",
        "one pixel",
        "a row",
    ],
)
def test_any_image_is_cut(kind):
    image = image_of(kind)
    k = min(2, image.shape[0] * image.shape[1])
    result = ncut(image, k)
    assert result.labels.shape == image.shape[:2]
    assert len(np.unique(result.labels)) == k
    assert bool(jnp.isfinite(result.eigenvectors).all())
    assert math.isfinite(float(result.ncut_value))


@pytest.mark.parametrize(
    ("image", "k", "match"),
    [
        (np.zeros((4, 4, 3), np.float32), 17, "number of pixels 16, got 17"),
        (np.zeros((4, 4, 3), np.float32), 0, "from 1"),
        (np.full((4, 4, 3), np.nan, np.float32), 2, "finite image, got 48"),
        (np.full((4, 4, 3), 255.0, np.float32), 2, r"in \[0, 1\], got 255"),
        (np.zeros((4, 4, 5), np.float32), 2, "an image"),
        (np.zeros((0, 4, 3), np.float32), 2, "an image"),
        (np.zeros((4, 4, 3), np.int32), 2, "unsigned integer or float"),
    ],
)
def test_bad_images_are_refused_by_name(image, k, match):
    with pytest.raises(ValueError, match=match):
        ncut(image, k)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"radius": 1.0}, "finite radius above 1 pixel"),
        ({"radius": math.inf}, "finite radius above 1 pixel"),
        ({"sigma_feature": 0.0}, "sigma_feature above 0, got 0"),
        ({"sigma_distance": math.nan}, "sigma_distance above 0, got nan"),
        ({"sigma_contour": -0.1}, "sigma_contour above 0, got -0.1"),
        ({"method": "both"}, "'k-way' or 'recursive', got 'both'"),
        ({"num_eigenvectors": 0}, "num_eigenvectors of 1 or more, or None, got 0"),
        ({"restarts": 0}, "restarts >= 1"),
        ({"tolerance": math.nan}, "tolerance >= 0"),
        ({"method": "recursive", "max_ncut": math.nan}, "max_ncut >= 0"),
    ],
)
def test_bad_options_are_refused_by_name(options, match):
    with pytest.raises(ValueError, match=match):
        ncut(noisy_blocks(4, 5), 2, **options)


def test_what_is_no_rgb_or_does_not_fit_the_graph_is_refused_by_name():
    x = noisy_blocks(4, 5)
    for image in ((255 * x).astype(np.uint8), x[..., :1], x[..., 0]):
        with pytest.raises(ValueError, match=r"float RGB image .*as_rgb makes one"):
            any_graph(image)
    g = graph(x)
    for k in (0, 20):
        with pytest.raises(ValueError, match=f"k from 1 to pixels - 1 = 19, got {k}"):
            smallest_eigenpairs(g, k, key=KEY)
    for call in ({"num_segments": 21}, {"num_segments": 2, "method": "both"}):
        with pytest.raises(ValueError, match=r"^ncut "):
            ncut_graph(g, key=KEY, **call)
    with pytest.raises(ValueError, match=r"labels from 0 to 1, got 0 to 2"):
        region_affinity(g, jnp.arange(20).reshape(4, 5) % 3, 2)
    with pytest.raises(ValueError, match=r"graph's shape \(4, 5\), got \(2, 10\)"):
        region_affinity(g, jnp.zeros((2, 10), jnp.int32), 2)
    with pytest.raises(ValueError, match=r"\[R, R\], got \(3, 4\)"):
        ncut_regions(jnp.ones((3, 4)), 2, key=KEY)


@pytest.mark.parity
def test_no_worse_than_spectral_clustering():
    cluster = pytest.importorskip("sklearn.cluster", reason="needs scikit-learn, the parity extra")
    x = noisy_blocks(30, 24, noise=0.12)
    g = graph(jnp.asarray(x), sigma_feature=0.3)
    ours = ncut_graph(g, 4, key=KEY)
    theirs = cluster.SpectralClustering(4, affinity="precomputed", random_state=0).fit_predict(dense(g))
    value = ncut_value(g, jnp.asarray(theirs.reshape(30, 24)), 4)
    assert float(ours.ncut_value) <= float(value) * 1.001


def textures(h, w):
    """Stripes, checks, noise and two constant regions."""
    y, x = np.mgrid[:h, :w]
    image = np.stack([0.5 + 0.3 * np.sin(x / 2), 0.4 + 0.2 * ((x // 3 + y // 3) % 2), 0.5 + 0 * x], axis=-1)
    image[: h // 2, : w // 2] = [0.2, 0.6, 0.3]
    image[: h // 3, w // 2 :] = 0.5
    return np.clip(image + 0.1 * np.random.default_rng(0).random((h, w, 1)) * (y > h / 2)[..., None], 0, 1)


def spread(affinity):
    """D^-1/2 W D^-1/2 as scipy has it, edge by edge."""
    h, w = affinity.degree.shape
    r, index = affinity.reach, np.arange(h * w).reshape(h, w)
    matrix = scipy.sparse.diags_array(np.asarray(affinity.degree - affinity.diagonal, np.float64).ravel()).tocsr()
    for plane, (dy, dx) in zip(np.asarray(affinity.weights, np.float64), affinity.offsets, strict=True):
        y, x = np.nonzero(plane[r:, r : r + w])
        half = scipy.sparse.coo_array((plane[y + r, x + r], (index[y, x], index[y + dy, x + dx])), shape=(h * w, h * w))
        matrix = matrix + half + half.T
    scale = scipy.sparse.diags_array(1 / np.sqrt(matrix.sum(axis=1)))
    return (scale @ matrix @ scale).tocsr()


@pytest.mark.parity
@pytest.mark.parametrize("weights", [{}, {"space": "rgb", "sigma_feature": 0.1, "sigma_contour": None}])
def test_eigenvalues_of_eigsh_at_160_by_120(weights):
    solve = jax.jit(lambda g: smallest_eigenpairs(g, 7, key=KEY))
    for image in (textures(120, 160), np.full((120, 160, 3), 0.3), noisy_blocks(120, 160, noise=0.1)):
        g = any_graph(jnp.asarray(image, jnp.float32), **weights)
        theirs = scipy.sparse.linalg.eigsh(spread(g), 8, which="LA", tol=1e-7, return_eigenvectors=False)
        np.testing.assert_allclose(solve(g).values, 1 - np.sort(theirs)[::-1][1:], atol=1e-5)


@pytest.mark.parity
def test_no_worse_than_cut_normalized():
    skimage_graph = pytest.importorskip("skimage.graph", reason="needs scikit-image, the parity extra")
    cells = np.add.outer(np.arange(30) // 5 * 6, np.arange(30) // 5)
    g = graph(jnp.asarray(noisy_blocks(30, 30, noise=0.15)), sigma_feature=0.3)
    weights = np.array(region_affinity(g, jnp.asarray(cells), 36), np.float64)
    weights /= (weights - np.diag(np.diag(weights))).max()
    np.fill_diagonal(weights, 1.0)  # as cut_normalized has it
    theirs = skimage_graph.RAG()
    for i, j in zip(*np.nonzero(np.triu(weights, 1)), strict=True):
        theirs.add_edge(int(i), int(j), weight=weights[i, j])
    for i in range(36):
        theirs.nodes[i]["labels"] = [i]
    labels = skimage_graph.cut_normalized(np.arange(36).reshape(6, 6), theirs, thresh=0.3, in_place=False, rng=0)
    _, labels = np.unique(labels.ravel(), return_inverse=True)
    k = labels.max() + 1
    assert 2 <= k < 36
    value = sum(1 - weights[labels == j][:, labels == j].sum() / weights[labels == j].sum() for j in range(k))
    ours = ncut_regions(jnp.asarray(weights, jnp.float32), int(k), key=KEY)
    assert float(ours.ncut_value) <= value * 1.001


@pytest.mark.slow
def test_a_photograph_of_bsds500_is_cut_within_a_gigabyte():
    """From a bare interpreter to the labels, all programs compiled anew, as a user's. The peak is the kernel's `VmHWM`:
    `ru_maxrss` survives an exec, so that it would count what the tests before this one hold."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs Linux's /proc")
    code = (
        "import numpy as np\n"
        "from jaxseg.clustering import ncut\n"
        "x = np.kron(np.random.default_rng(0).random((11, 16, 3)), np.ones((30, 31, 1)))[:321, :481]\n"
        "ncut((255 * x).astype(np.uint8), 8).labels.block_until_ready()\n"
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    env |= {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert 1024 * int(done.stdout) < 1e9
