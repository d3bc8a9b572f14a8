"""k-means against its definition, scikit-learn, and itself on eight devices."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.clustering import assign, kmeans, minibatch_kmeans
from jaxseg.clustering.kmeans import as_points


def blobs(n, k, d=3, seed=0, spread=0.05):
    rng = np.random.default_rng(seed)
    centres = rng.random((k, d))
    return (centres[rng.integers(k, size=n)] + spread * rng.standard_normal((n, d))).astype(np.float32)


def lloyd(x, c, iterations):
    """The definition, in float64."""
    x, c = x.astype(np.float64), c.astype(np.float64)
    for _ in range(iterations):
        labels = ((x[:, None] - c) ** 2).sum(-1).argmin(1)
        c = np.stack([x[labels == j].mean(0) if (labels == j).any() else c[j] for j in range(len(c))])
    squared = ((x[:, None] - c) ** 2).sum(-1)
    return c, squared.argmin(1), squared.min(1).sum()


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (97, 5, 3), (5000, 8, 3), (300, 70, 2), (700, 4, 11)])
def test_lloyd_from_given_centroids_is_the_definition(n, k, d):
    x = blobs(n, k, d)
    result = kmeans(x, k, init=x[:k] + 0.001, max_iterations=4, tolerance=0.0)
    c, labels, inertia = lloyd(x, x[:k] + np.float32(0.001), 4)
    np.testing.assert_allclose(result.centroids, c, atol=1e-5)
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_allclose(result.inertia, inertia, rtol=1e-5, atol=1e-9)


def test_features_far_from_the_origin_lose_no_precision():
    x = blobs(2000, 4)
    near, far = (kmeans(x + s, 4, init=x[:4] + s, tolerance=0.0) for s in (np.float32(0), np.float32(1000)))
    assert float(near.inertia) == pytest.approx(float(far.inertia), rel=1e-3)  # x + 1000 is itself rounded


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_inits_find_well_separated_clusters(init):
    x = blobs(3000, 6, seed=3, spread=0.004)
    result = kmeans(x, 6, key=jax.random.key(1), init=init, num_restarts=8 if init == "random" else 2)
    assert bool(result.converged)
    assert float(result.inertia) < 2 * 3000 * 3 * 0.004**2


def test_empty_cluster_is_reseeded_at_the_farthest_point():
    x = np.array([[0.0], [0.1], [0.2], [5.0]], np.float32)
    result = kmeans(x, 2, init=np.array([[0.1], [100.0]], np.float32), tolerance=0.0)
    np.testing.assert_array_equal(result.labels, [0, 0, 0, 1])


def test_every_point_its_own_cluster_and_fewer_distinct_points_than_clusters():
    x = blobs(50, 50, seed=2)
    every = kmeans(x, 50, key=jax.random.key(0))
    assert sorted(np.asarray(every.labels)) == list(range(50))
    assert float(every.inertia) == pytest.approx(0.0, abs=1e-9)
    twice = kmeans(np.repeat(x[:3], 20, axis=0), 7, key=jax.random.key(0), tolerance=0.0)
    assert len(np.unique(twice.labels)) == 3
    assert bool(jnp.isfinite(twice.centroids).all())


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
@pytest.mark.parametrize("distinct", [1, 3])
def test_fewer_distinct_points_than_clusters_come_to_rest(distinct, init):
    x = np.repeat(blobs(distinct, distinct), 30, axis=0)
    result = kmeans(x, 5, key=jax.random.key(0), init=init, tolerance=0.0)
    assert bool(result.converged)
    assert int(result.num_iterations) <= 7
    assert len(np.unique(result.labels)) == distinct


def test_weights_stand_for_repeated_points():
    x, counts = blobs(60, 3), np.arange(60) % 4 + 1
    weighted = kmeans(x, 3, init=x[:3], weights=jnp.asarray(counts, jnp.float32), tolerance=0.0)
    repeated = kmeans(np.repeat(x, counts, axis=0), 3, init=x[:3], tolerance=0.0)
    np.testing.assert_allclose(weighted.centroids, repeated.centroids, atol=1e-5)
    assert float(weighted.inertia) == pytest.approx(float(repeated.inertia), rel=1e-5)


@pytest.mark.parametrize("init", ["k-means++", pytest.param("k-means||", marks=pytest.mark.slow)])
def test_labels_are_the_same_on_one_and_eight_devices(init):
    x = blobs(2000, 12, seed=5, spread=0.3)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    one = kmeans(jax.device_put(x, jax.devices()[0]), 12, key=jax.random.key(0), init=init)
    eight = kmeans(sharded, 12, key=jax.random.key(0), init=init)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_allclose(one.centroids, eight.centroids, atol=1e-6)
    np.testing.assert_array_equal(one.labels, eight.labels)


@pytest.mark.parametrize("distinct", [1, 3])
def test_labels_of_few_distinct_points_are_the_same_on_one_and_eight_devices(distinct):
    x = np.repeat(blobs(distinct, distinct), 800, axis=0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    one = kmeans(jax.device_put(x, jax.devices()[0]), 9, key=jax.random.key(0), tolerance=0.0)
    eight = kmeans(sharded, 9, key=jax.random.key(0), tolerance=0.0)
    np.testing.assert_array_equal(one.labels, eight.labels)
    assert len(np.unique(one.labels)) == distinct


def test_a_batch_of_images_by_vmap():
    x = np.stack([blobs(500, 4, seed=s) for s in range(3)])
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda f, k: kmeans(f, 4, key=k))(x, keys)
    apart = [kmeans(f, 4, key=k) for f, k in zip(x, keys, strict=True)]
    for i, one in enumerate(apart):
        np.testing.assert_array_equal(together.labels[i], one.labels)
        assert int(together.num_iterations[i]) == int(one.num_iterations)


def test_gradient_of_inertia_is_twice_the_distance_to_the_centroid():
    x = jnp.asarray(blobs(200, 3))
    run = lambda f: kmeans(f, 3, init=x[:3], tolerance=0.0)  # noqa: E731
    result = run(x)
    gradient = jax.grad(lambda f: run(f).inertia)(x)
    np.testing.assert_allclose(gradient, 2 * (x - result.centroids[result.labels]), atol=1e-5)
    means = jax.grad(lambda f: run(f).centroids[0, 0])(x)
    assert float(means.sum()) == pytest.approx(1.0, abs=1e-5)


def test_gradient_by_the_weights_is_the_squared_distance():
    x = jnp.asarray(blobs(200, 3))
    run = lambda w: kmeans(x, 3, init=x[:3], weights=w, tolerance=0.0)  # noqa: E731
    w = jnp.linspace(0.5, 2.0, 200)
    result = run(w)
    away = x - result.centroids[result.labels]
    np.testing.assert_allclose(jax.grad(lambda w: run(w).inertia)(w), (away**2).sum(1), rtol=1e-4)
    mass = float(w[result.labels == 0].sum())
    slope = jax.grad(lambda w: run(w).centroids[0, 0])(w)
    np.testing.assert_allclose(slope, jnp.where(result.labels == 0, away[:, 0] / mass, 0), atol=1e-7)


def test_mini_batches_come_near_lloyd():
    x = blobs(8000, 5, seed=7, spread=0.02)
    state = minibatch_kmeans(np.split(x, 16), 5, key=jax.random.key(0))
    labels = assign(jnp.asarray(x), state.centroids)
    inertia = float(jnp.sum((x - state.centroids[labels]) ** 2))
    assert inertia < 1.1 * float(kmeans(x, 5, key=jax.random.key(0), num_restarts=3).inertia)
    assert float(state.counts.sum()) == 8000


@pytest.mark.parametrize(
    ("features", "k", "match"),
    [
        (np.zeros((4, 2), np.float32), 5, "number of points 4, got 5"),
        (np.zeros((4, 2), np.float32), 0, "from 1"),
        (np.array([[0.0], [np.nan]], np.float32), 1, "finite features, got 1"),
        (np.array([[0.0], [np.inf]], np.float32), 1, "finite features"),
        (np.array([[1e30], [-1e30]], np.float32), 1, "overflow"),
    ],
)
def test_bad_input_is_refused_by_name(features, k, match):
    with pytest.raises(ValueError, match=match):
        kmeans(features, k, key=jax.random.key(0))


def test_bad_options_are_refused_by_name():
    x = blobs(10, 2)
    with pytest.raises(ValueError, match="init is one of"):
        kmeans(x, 2, key=jax.random.key(0), init="kmeans")
    with pytest.raises(ValueError, match="pass key="):
        kmeans(x, 2)
    with pytest.raises(ValueError, match="init centroids"):
        kmeans(x, 2, init=x[:3])


def test_what_does_not_fit_is_refused_by_name():
    x = blobs(10, 2)
    for k in (3.0, True, "3"):
        with pytest.raises(ValueError, match=f"num_clusters as an integer, got {k!r}"):
            as_points("kmeans", x, k)
    with pytest.raises(ValueError, match="block_size of 1 or more points, or None, got -5"):
        kmeans(x, 2, key=jax.random.key(0), block_size=-5)
    with pytest.raises(ValueError, match="real numbers, got complex64"):
        as_points("kmeans", x.astype(np.complex64))
    with pytest.raises(ValueError, match="features of 2 dimensions as centroids, got 3"):
        assign(x, x[:2, :2])
    with pytest.raises(ValueError, match="finite features, got 30"):
        assign(np.full_like(x, np.nan), x[:2])
    for width in (1, 2):  # one column would be repeated
        with pytest.raises(ValueError, match=f"need 3 dimensions as centroids, got {width}"):
            minibatch_kmeans([x, x[:, :width]], 2, key=jax.random.key(0))


def test_float64_points_are_taken_without_a_warning():
    x = blobs(30, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kmeans(x.astype(np.float64), 3, init=x[:3])


@pytest.mark.parity
@pytest.mark.parametrize("k", [8, 64])
def test_inertia_of_scikit_learn(k):
    cluster = pytest.importorskip("sklearn.cluster", reason="needs scikit-learn, the parity extra")
    x = blobs(6000, 40, seed=11, spread=0.1)
    theirs = cluster.KMeans(k, init=x[:k], n_init=1, algorithm="lloyd", tol=0, max_iter=30).fit(x.astype(np.float64))
    ours = kmeans(x, k, init=x[:k], tolerance=0.0, max_iterations=30)
    assert float(ours.inertia) == pytest.approx(theirs.inertia_, rel=1e-5)
    assert int(ours.num_iterations) == theirs.n_iter_


def test_mini_batches_take_pixels_as_they_are_stored():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 3), np.uint8)
    state = minibatch_kmeans([pixels, pixels], 3, key=jax.random.key(0))
    assert state.counts.dtype == jnp.float32
    assert float(state.counts.sum()) == 200
    half = minibatch_kmeans([pixels.astype(np.float16)], 3, key=jax.random.key(0))
    assert half.centroids.dtype == jnp.float32
    for batch, k, match in (
        (pixels, 0, "num_clusters of 1 or more, got 0"),
        (pixels[:2], 3, "at least 3 points, got 2"),
        (pixels.reshape(10, 10, 3), 3, r"points \[N, D\], got \(10, 10, 3\)"),
    ):
        with pytest.raises(ValueError, match=match):
            minibatch_kmeans([batch], k, key=jax.random.key(0))


def test_weights_that_do_not_fit_are_refused_by_name():
    x = blobs(20, 2)
    with pytest.raises(ValueError, match=r"one weight a point, \(20,\), got \(19,\)"):
        kmeans(x, 2, key=jax.random.key(0), weights=jnp.ones(19))
    assert kmeans(x, 2, key=jax.random.key(0), weights=[1.0] * 20).converged
    with pytest.raises(ValueError, match="tolerance >= 0"):
        kmeans(x, 2, key=jax.random.key(0), tolerance=float("nan"))
