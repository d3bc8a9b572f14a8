"""k-means and Normalized Cut on BSDS500 against human segmentations (Arbelaez et al. 2011, Tables 1 to 3).

    python experiments/bsds.py --data DIR --out results/bsds  # DIR holds images/, labels/

Published on the test part, NCuts, ODS/OIS: covering 0.45/0.53, PRI 0.78/0.80, VI 2.23/1.89, F 0.64/0.68.
Resumable: segmentations and scores are kept by image under `out`; a second run goes on where one stopped.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from jaxseg.clustering import graph, kmeans, smallest_eigenpairs
from jaxseg.clustering.features import pixel_features
from jaxseg.metrics.boundaries import BoundaryCounts, boundary_counts, boundary_scores
from jaxseg.metrics.regions import region_scores

PUBLISHED = "NCuts, published (test)", (0.45, 0.53, 0.78, 0.80, 2.23, 1.89, 0.64, 0.68)
COLUMNS = "covering ODS", "OIS", "PRI ODS", "OIS", "VI ODS", "OIS", "F ODS", "OIS"


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path
    out: pathlib.Path = pathlib.Path("runs/bsds")
    methods: tuple[str, ...] = ("kmeans", "ncut")
    scales: tuple[int, ...] = (2, 4, 6, 9, 14, 22, 35)  # numbers of segments
    shrink: int = 2  # the image is reduced before, and labels enlarged after
    first: int = 0
    step: int = 1  # every so many images
    boundary: bool = True
    position_weight: float = 0.5
    num_eigenvectors: int = 12
    radius: float = 5.0
    sigma_feature: float = 0.25
    sigma_contour: float | None = None
    tolerance: float = 1e-4
    restarts: int = 1


@functools.partial(jax.jit, static_argnums=1)
def by_kmeans(image, config: Config):
    features = pixel_features(image, space="lab", position_weight=config.position_weight)
    flat = features.reshape(-1, features.shape[-1])
    labels = [kmeans(flat, k, key=jax.random.key(0), max_iterations=60).labels for k in config.scales]
    return [x.reshape(image.shape[:2]) for x in labels]


@functools.partial(jax.jit, static_argnums=1)
def by_ncut(image, config: Config):
    affinity = graph(
        image,
        space="lab",
        radius=config.radius,
        sigma_feature=config.sigma_feature,
        sigma_contour=config.sigma_contour,
    )
    key = jax.random.key(0)
    pairs = smallest_eigenpairs(
        affinity, config.num_eigenvectors, key=key, tolerance=config.tolerance, max_iterations=40
    )
    every = jnp.moveaxis(pairs.vectors / jnp.sqrt(pairs.values[:, None, None] + 1e-5), 0, -1)
    rows = every.reshape(-1, config.num_eigenvectors)
    cut = lambda k: kmeans(rows, k, key=key, max_iterations=60, num_restarts=config.restarts).labels  # noqa: E731
    return [cut(k).reshape(image.shape[:2]) for k in config.scales]


def segment(path: pathlib.Path, method: str, config: Config) -> list[np.ndarray]:
    image = Image.open(path).convert("RGB")
    size = image.size
    small = image.resize((size[0] // config.shrink, size[1] // config.shrink), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32) / 255
    upright = pixels if pixels.shape[0] < pixels.shape[1] else pixels.transpose(1, 0, 2)  # one shape: one compile
    labels = {"kmeans": by_kmeans, "ncut": by_ncut}[method](jnp.asarray(upright), config)
    labels = [np.asarray(x, np.uint8) for x in labels]
    labels = labels if upright is pixels else [x.T for x in labels]
    return [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.NEAREST)) for x in labels]


def score(config: Config, method: str, paths: list[pathlib.Path]) -> tuple[float, ...]:
    """The row of COLUMNS for the images done so far."""
    segmentations, truths, counts = [], [], []
    for path in paths:
        stored = config.out / method / f"{path.stem}.npz"
        if not stored.exists():
            stored.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(stored, *segment(path, method, config))
        with np.load(stored) as file:
            segmentations.append([file[name] for name in file.files])
        humans = sorted((config.data / "labels").glob(f"{path.stem}_*.png"))
        truths.append([np.asarray(Image.open(p)) for p in humans])
        if config.boundary:
            kept = stored.with_suffix(".json")
            if not kept.exists():
                found = [boundary_counts(labels, truths[-1]) for labels in segmentations[-1]]
                kept.write_text(json.dumps(found))
            counts.append([BoundaryCounts(*c) for c in json.loads(kept.read_text())])
        print(f"{method} {path.stem} {len(segmentations)}/{len(paths)}", flush=True)
    regions = region_scores(segmentations, truths)
    edge = boundary_scores(counts) if config.boundary else (float("nan"), float("nan"))
    return regions[:2] + regions[3:] + tuple(edge)


def main(config: Config) -> None:
    paths = sorted((config.data / "images").glob("*.jpg"))[config.first :: config.step]
    if not paths:
        raise ValueError(f"bsds needs images/*.jpg and labels/<id>_<k>.png under --data, found none in {config.data}")
    rows = {method: score(config, method, paths) for method in config.methods}
    lines = [f"{'':24}" + " ".join(f"{c:>12}" for c in COLUMNS)]
    for name, row in [*rows.items(), PUBLISHED]:
        lines.append(f"{name:24}" + " ".join(f"{v:12.3f}" for v in row))
    print("\n".join(lines))
    (config.out / "scores.json").write_text(
        json.dumps({"images": len(paths), "columns": COLUMNS, "rows": rows, "config": str(config)}, indent=1)
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
