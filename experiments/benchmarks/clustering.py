"""k-means against scikit-learn's Lloyd, Normalized Cut's eigenpairs against scipy's eigsh, in one process.

    python experiments/benchmarks/clustering.py --photo photo.jpg --out experiments/results/clustering_cpu.json

Same initial centroids and number of iterations; the same graph, and the residual that eigsh is asked for. Runs
alternate; medians, by the wall clock and by processor time (of all threads; what counts on a machine that others
use too). Peak memory is that of the process, noted before and after ours, before the peer's first run.
Without `--photo`, the image is made by rule. The rows in the file are from one run for each of --parts.
"""

import dataclasses
import json
import os
import pathlib
import platform
import resource
import statistics
import time
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import scipy.sparse as sparse
import sklearn
import tyro
from PIL import Image
from scipy.sparse.linalg import eigsh
from sklearn.cluster import KMeans

from jaxseg.clustering import graph, kmeans, smallest_eigenpairs
from jaxseg.clustering.features import pixel_features
from jaxseg.ops.affinity import Affinity


@dataclasses.dataclass(frozen=True)
class Config:
    out: pathlib.Path = pathlib.Path("experiments/results/clustering_cpu.json")
    parts: tuple[Literal["graph", "kmeans", "large"], ...] = ("graph", "kmeans", "large")
    photo: pathlib.Path | None = None
    sizes: tuple[str, ...] = ("481x321", "2048x2048")
    clusters: tuple[int, ...] = (8, 64)
    iterations: int = 10
    repeats: int = 3
    graph_size: str = "481x321"
    eigenvectors: int = 7  # for 8 segments
    tolerance: float = 1e-5
    large: str = "4000x4000"


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


def picture(config: Config, size: str) -> np.ndarray:
    if config.photo is None:
        return procedural(size)
    w, h = (int(v) for v in size.split("x"))
    return (
        np.asarray(Image.open(config.photo).convert("RGB").resize((w, h), Image.Resampling.BICUBIC), np.float32) / 255
    )


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(run) -> tuple[float, float]:
    """Seconds by the wall clock, and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - wall, time.process_time() - processor


def alternate(ours, theirs, repeats: int) -> dict[str, float]:
    first, _ = timed(ours)
    pairs = [(*timed(ours), *timed(theirs)) for _ in range(repeats)]
    a, ac, b, bc = (statistics.median(column) for column in zip(*pairs, strict=True))
    times = {"ours_s": a, "peer_s": b, "ours_processor_s": ac, "peer_processor_s": bc}
    return {"first_call_s": first, **times, "ratio": b / a, "processor_ratio": bc / ac}


def stream_rate() -> float:
    """Bytes a second that the device reads and writes, as in STREAM's scale (McCalpin 1995)."""
    x = jnp.ones(2**26, jnp.float32)
    scale = jax.jit(lambda x: 2 * x)
    timed(lambda: scale(x))
    return 2 * x.nbytes / min(timed(lambda: scale(x))[0] for _ in range(5))


def lloyd(config: Config) -> list[dict]:
    """Lloyd from the same centroids. Inertias, ours and scikit-learn's in float32, beside its own in float64.

    Of the memory's bandwidth what reading the pixels once an iteration takes, which is the least that must be moved.
    """
    rows, rate = [], stream_rate()
    for size in config.sizes:
        image = picture(config, size)
        rgb = image.reshape(-1, 3)
        lab = np.array(pixel_features(jnp.asarray(image), space="lab", position_weight=0.5)).reshape(len(rgb), -1)
        for name, pixels in {"rgb": rgb, "lab and position": lab}.items():
            for k in config.clusters:
                init = pixels[:: len(pixels) // k][:k]
                # off the grid of 8-bit colours: rounding decides between centroids at equal distance
                init = init + np.random.default_rng(0).uniform(-0.5, 0.5, init.shape).astype(np.float32) / 255
                device, n = jnp.asarray(pixels), config.iterations
                ours = lambda: kmeans(device, k, init=init, max_iterations=n, tolerance=0.0)  # noqa: B023, E731
                model = KMeans(k, init=init, n_init=1, max_iter=n, tol=0, algorithm="lloyd")
                row = {"size": size, "features": name, "k": k}
                row |= alternate(ours, lambda: model.fit(pixels).inertia_, config.repeats)  # noqa: B023
                double = pixels.astype(np.float64)
                exact = KMeans(k, init=init.astype(np.float64), n_init=1, max_iter=n, tol=0).fit(double).inertia_
                row["inertia_against_float64"] = float(ours().inertia) / exact - 1
                row["peer_inertia_against_float64"] = model.inertia_ / exact - 1
                row["pixels_per_s"] = len(pixels) * n / row["ours_s"]
                row["bandwidth_share"] = pixels.nbytes * n / row["ours_s"] / rate
                rows.append(row)
                print(row, flush=True)
    return rows


def large(config: Config) -> dict:
    """64 clusters of as many pixels as no N x K matrix would fit: time and peak memory."""
    pixels = jnp.asarray(picture(config, config.large).reshape(-1, 3))
    before = peak_mb()
    init = pixels[:: len(pixels) // 64][:64]
    wall, processor = timed(lambda: kmeans(pixels, 64, init=init, max_iterations=3, tolerance=0.0).labels)
    times = {"seconds": wall, "processor_s": processor, "iterations": 3}
    n_by_k = len(pixels) * 64 * 4 / 2**20
    return {"size": config.large, "k": 64, **times, "n_by_k_mb": n_by_k, "peak_mb_before": before, "peak_mb": peak_mb()}


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
    before = peak_mb()
    affinity = jax.block_until_ready(jax.jit(graph)(jnp.asarray(picture(config, config.graph_size))))
    with_graph = peak_mb()
    run = jax.jit(
        lambda g: smallest_eigenpairs(g, config.eigenvectors, key=jax.random.key(0), tolerance=config.tolerance)
    )
    first, _ = timed(lambda: run(affinity))
    peak = peak_mb()
    matrix = normalised_matrix(affinity)
    solution: list = []

    def peer():
        solution[:] = eigsh(matrix, config.eigenvectors + 1, which="LA", tol=config.tolerance)

    row = {"size": config.graph_size, "pairs": config.eigenvectors, "tolerance": config.tolerance}
    row |= alternate(lambda: run(affinity).values, peer, config.repeats) | {"first_call_s": first}
    pairs = run(affinity)
    scaled = np.asarray(pairs.vectors, np.float64).reshape(config.eigenvectors, -1)
    scaled *= np.sqrt(np.asarray(affinity.degree, np.float64).reshape(-1))
    ours, values = np.asarray(pairs.values, np.float64), solution[0]
    order = np.argsort(-values)
    values, vectors = values[order], solution[1][:, order]
    away = scaled - (matrix @ scaled.T).T - ours[:, None] * scaled
    row |= {
        "iterations": int(pairs.num_iterations),
        "eigenvalues": ours.tolist(),
        "peer_eigenvalues": (1 - values[1:]).tolist(),
        "largest_residual": float(np.linalg.norm(away, axis=1).max()),
        "peer_largest_residual": float(np.linalg.norm(matrix @ vectors - vectors * values, axis=0).max()),
        "program_temporary_mb": run.lower(affinity).compile().memory_analysis().temp_size_in_bytes / 2**20,
        "peak_mb_before": before,
        "peak_mb_with_graph": with_graph,
        "peak_mb": peak,
    }
    print(row, flush=True)
    return row


def main(config: Config) -> None:
    result = json.loads(config.out.read_text()) if config.out.exists() else {}
    measures = {"graph": eigenpairs, "large": large, "kmeans": lloyd}
    for part, measure in measures.items():
        if part in config.parts:
            result[part] = measure(config)
    result |= {
        "device": str(jax.devices()[0]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "image": "a photograph" if config.photo else "made by rule",
        "versions": {m.__name__: m.__version__ for m in (jax, np, scipy, sklearn)},
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Config))
