"""k-means against scikit-learn's Lloyd, Normalized Cut's eigenpairs against scipy's eigsh, in one process.

    python experiments/benchmarks/clustering.py --out experiments/results/clustering.json

Same initial centroids and number of iterations; the same graph, and a residual no larger than eigsh was
given. Runs alternate; medians. Peak memory is noted after ours and before the peer's first graph run.
"""

import dataclasses
import json
import pathlib
import platform
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import scipy.sparse as sparse
import sklearn
import tyro
from scipy.sparse.linalg import eigsh
from sklearn.cluster import KMeans

from jaxseg.clustering import graph, kmeans, smallest_eigenpairs
from jaxseg.ops.affinity import Affinity


@dataclasses.dataclass(frozen=True)
class Config:
    out: pathlib.Path = pathlib.Path("experiments/results/clustering.json")
    sizes: tuple[str, ...] = ("481x321", "2048x2048")
    clusters: tuple[int, ...] = (8, 64)
    iterations: int = 10
    repeats: int = 3
    graph_size: str = "481x321"
    eigenvectors: int = 7  # for 8 segments
    tolerance: float = 1e-5
    peer_graph: bool = True


def procedural(size: str) -> np.ndarray:
    """Smooth shading, discs and noise: an image in [0, 1] made by rule."""
    w, h = (int(v) for v in size.split("x"))
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w] / max(h, w)
    image = np.stack([0.3 + 0.3 * x, 0.4 + 0.2 * y, 0.5 - 0.2 * x * y], axis=-1)
    for _ in range(24):
        cy, cx, r = rng.random(3) * (h / max(h, w), w / max(h, w), 0.15)
        image[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = rng.random(3)
    return np.clip(image + 0.03 * rng.standard_normal(image.shape), 0, 1).astype(np.float32)


def timed(run) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def alternate(ours, theirs, repeats: int) -> dict[str, float]:
    compile_s = timed(ours)
    pairs = [(timed(ours), timed(theirs)) for _ in range(repeats)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"first_call_s": compile_s, "ours_s": a, "peer_s": b, "ratio": b / a}


def lloyd(config: Config) -> list[dict]:
    rows = []
    for size in config.sizes:
        pixels = procedural(size).reshape(-1, 3)
        for k in config.clusters:
            init = pixels[:: len(pixels) // k][:k].copy()
            device = jnp.asarray(pixels)
            n = config.iterations
            ours = lambda: kmeans(device, k, init=init, max_iterations=n, tolerance=0.0)  # noqa: B023, E731
            model = KMeans(k, init=init, n_init=1, max_iter=n, tol=0, algorithm="lloyd")
            row = alternate(ours, lambda: model.fit(pixels).inertia_, config.repeats)  # noqa: B023
            exact = ((pixels.astype(np.float64) - model.cluster_centers_[model.labels_]) ** 2).sum()
            row |= {"size": size, "k": k, "relative_inertia": float(ours().inertia) / exact - 1}
            row["pixels_per_s"] = len(pixels) * n / row["ours_s"]
            rows.append(row)
            print(row, flush=True)
    return rows


def normalised_matrix(affinity: Affinity) -> sparse.csr_array:
    """D^-1/2 W D^-1/2 for the peer."""
    h, w = affinity.degree.shape
    r, index = affinity.reach, np.arange(h * w).reshape(h, w)
    rows, columns, values = [], [], []
    for plane, (dy, dx) in zip(np.asarray(affinity.weights), affinity.offsets, strict=True):
        ys, xs = np.nonzero(plane[r:, r : r + w])
        rows.append(index[ys, xs])
        columns.append(index[ys + dy, xs + dx])
        values.append(plane[ys + r, xs + r])
    i, j, v = (np.concatenate(x) for x in (rows, columns, values))
    half = sparse.coo_array((v.astype(np.float64), (i, j)), shape=(h * w, h * w)).tocsr()
    own = np.asarray(affinity.degree - affinity.diagonal, np.float64).reshape(-1)
    full = half + half.T + sparse.diags_array(own)
    scale = sparse.diags_array(1 / np.sqrt(full.sum(axis=1)))
    return (scale @ full @ scale).tocsr()


def eigenpairs(config: Config) -> dict:
    affinity = graph(jnp.asarray(procedural(config.graph_size)), sigma_feature=0.15)
    run = jax.jit(
        lambda g: smallest_eigenpairs(g, config.eigenvectors, key=jax.random.key(0), tolerance=config.tolerance)
    )
    first = timed(lambda: run(affinity))
    ours = [timed(lambda: run(affinity)) for _ in range(config.repeats)]
    pairs = run(affinity)
    row = {
        "size": config.graph_size,
        "pairs": config.eigenvectors,
        "first_call_s": first,
        "ours_s": statistics.median(ours),
        "iterations": int(pairs.num_iterations),
        "eigenvalues": np.asarray(pairs.values).tolist(),
        "largest_residual": float(pairs.residuals.max()),
        "peak_bytes_of_program": run.lower(affinity).compile().memory_analysis().temp_size_in_bytes,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(row, flush=True)
    if config.peer_graph:
        matrix = normalised_matrix(affinity)
        start = time.perf_counter()
        values, vectors = eigsh(matrix, config.eigenvectors + 1, which="LA", tol=config.tolerance)
        row["peer_s"] = time.perf_counter() - start
        again = timed(lambda: run(affinity))
        row["ours_after_peer_s"], row["ratio"] = again, row["peer_s"] / statistics.median([*ours, again])
        order = np.argsort(-values)
        values, vectors = values[order], vectors[:, order]
        row["peer_eigenvalues"] = (1 - values[1:]).tolist()
        row["peer_largest_residual"] = float(np.linalg.norm(matrix @ vectors - vectors * values, axis=0).max())
    return row


def main(config: Config) -> None:
    result = {
        "graph": eigenpairs(config),
        "kmeans": lloyd(config),
        "device": str(jax.devices()[0]),
        "machine": platform.machine(),
        "versions": {m.__name__: m.__version__ for m in (jax, np, scipy, sklearn)},
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["graph"], indent=1))


if __name__ == "__main__":
    main(tyro.cli(Config))
