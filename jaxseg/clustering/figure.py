"""`jaxseg cluster`: a photograph segmented by k-means or Normalized Cut, drawn as papers draw it."""

import pathlib
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from PIL import Image

from jaxseg.clustering.contours import segmentation_strength
from jaxseg.clustering.cuts import ncut_value
from jaxseg.clustering.eigen import smallest_eigenpairs
from jaxseg.clustering.features import as_rgb, pixel_features
from jaxseg.clustering.hierarchy import hierarchy, segmentation_of
from jaxseg.clustering.kmeans import kmeans
from jaxseg.clustering.ncut import graph, ncut
from jaxseg.data.images import open_picture
from jaxseg.data.source import DataError

__all__ = ["ClusterConfig", "cluster_image", "mean_colours", "outline", "read_image"]


@dataclass(frozen=True)
class ClusterConfig:
    num_segments: int = 8
    seed: int = 0
    longest_side: int | None = None  # reduced to this before, labels enlarged after; 240 for ncut, 1000 for kmeans
    space: Literal["rgb", "lab", "grey"] = "lab"
    position_weight: float = 0.5  # kmeans
    texture_weight: float = 0.0  # kmeans
    cut: Literal["merged", "k-way", "recursive"] = "merged"  # ncut: "merged" cells by eigenvector contours
    radius: float = 5.0  # ncut, pixels
    sigma_feature: float = 0.4  # ncut
    sigma_distance: float = 8.0  # ncut, pixels
    sigma_contour: float | None = 0.1  # ncut


_ANOTHERS = {  # what a method would pass over
    "kmeans": ("cut", "radius", "sigma_feature", "sigma_distance", "sigma_contour"),
    "ncut": ("position_weight", "texture_weight"),
}


def read_image(path: str | pathlib.Path) -> np.ndarray:
    """Pixels as stored, 8 or 16 bit, grey or colour, with alpha if there is one; palettes become colours.

    Raises DataError as `jaxseg.data.read_image`.
    """
    image = open_picture(pathlib.Path(path))
    if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    pixels = np.asarray(image)
    if pixels.dtype == np.int32:  # Pillow's mode I: 16-bit files of some kinds
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"{path}: needs 8 or 16 bits a channel, got values {pixels.min()} to {pixels.max()}")
        pixels = pixels.astype(np.uint16)
    return pixels


def mean_colours(image: Float[np.ndarray, "h w 3"], labels: Int[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Each segment in its mean colour."""
    counts = np.maximum(np.bincount(labels.reshape(-1)), 1)
    means = [np.bincount(labels.reshape(-1), image[..., c].reshape(-1)) / counts for c in range(3)]
    return np.stack(means, axis=-1)[labels]


def outline(image: Float[np.ndarray, "h w 3"], labels: Int[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """The image with segment borders in red."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return np.where(edge[..., None], np.array([1.0, 0.1, 0.1]), image)


def _draw(rgb: np.ndarray, labels: np.ndarray, vectors: np.ndarray, title: str, path: pathlib.Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = vectors[:8]
    columns = 4
    rows = 1 + -(-len(shown) // columns)
    height = 3.0 * rgb.shape[0] / rgb.shape[1] + 0.35
    figure = Figure(figsize=(3.0 * columns, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for ax in axes:
        ax.set_axis_off()
    panels = [("input", rgb), (title, outline(rgb, labels)), ("mean colours", mean_colours(rgb, labels))]
    for ax, (name, picture) in zip(axes, panels, strict=False):
        ax.imshow(np.clip(picture, 0, 1), interpolation="nearest")
        ax.set_title(name, fontsize=10)
    axes[3].imshow(labels, cmap="tab20", interpolation="nearest")
    axes[3].set_title("segments", fontsize=10)
    for i, (ax, vector) in enumerate(zip(axes[columns:], shown, strict=False)):
        low, high = np.percentile(vector, (1, 99))
        ax.imshow(vector, cmap="gray", vmin=low, vmax=high if high > low else low + 1)
        ax.set_title(f"eigenvector {i + 2}", fontsize=10)
    figure.savefig(path, dpi=100)


def cluster_image(
    path: str | pathlib.Path,
    out: str | pathlib.Path,
    method: str = "ncut",
    config: ClusterConfig = ClusterConfig(),
) -> dict[str, pathlib.Path]:
    """Segments the image at `path`; writes `<name>_<method>_labels.png` and `..._figure.png` under `out`.

    The label map has the image's size, one grey value a segment (16 bit for more than 256 of them).

    Raises:
      DataError: the image cannot be read.
      ValueError: an unknown method, an option of the other one, an image or a number of segments that cannot be used;
        the last two name the file.
    """
    if method not in _ANOTHERS:
        raise ValueError(f"cluster method is 'kmeans' or 'ncut', got {method!r}")
    for name in _ANOTHERS[method]:
        if getattr(config, name) != getattr(ClusterConfig, name):
            other = "ncut" if method == "kmeans" else "kmeans"
            raise ValueError(f"{name} belongs to {other}, and the method is {method}; leave it out, or ask for {other}")
    path, out = pathlib.Path(path), pathlib.Path(out)
    try:
        if config.longest_side is not None and config.longest_side < 1:
            raise ValueError(f"cluster needs longest_side of 1 pixel or more, got {config.longest_side}")
        rgb = as_rgb(read_image(path))
        size = rgb.shape[:2]
        longest = config.longest_side or (240 if method == "ncut" else 1000)
        scale = longest / max(size)
        if scale < 1:
            small = tuple(max(1, round(s * scale)) for s in size)
            rgb = jnp.clip(jax.image.resize(rgb, (*small, 3), "linear"), 0, 1)
        labels, vectors, title = _segment(rgb, method, config)
    except DataError:
        raise
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    files = {kind: out / f"{path.stem}_{method}_{kind}.png" for kind in ("labels", "figure")}
    rows, columns = (np.arange(full) * part // full for full, part in zip(size, labels.shape, strict=True))
    enlarged = labels[rows[:, None], columns]
    Image.fromarray(enlarged.astype(np.uint8 if config.num_segments <= 256 else np.uint16)).save(files["labels"])
    _draw(np.asarray(rgb), labels, vectors, title, files["figure"])
    return files


def _segment(rgb: Array, method: str, config: ClusterConfig) -> tuple[np.ndarray, np.ndarray, str]:
    key = jax.random.key(config.seed)
    h, w, _ = rgb.shape
    if method == "kmeans":
        features = pixel_features(
            rgb,
            space=config.space,
            position_weight=config.position_weight,
            texture_weight=config.texture_weight,
        )
        clusters = kmeans(features.reshape(h * w, -1), config.num_segments, key=key, num_restarts=3)
        return np.asarray(clusters.labels).reshape(h, w), np.zeros((0, h, w)), f"k-means, {config.num_segments}"
    weights: dict[str, Any] = {
        "space": config.space,
        "radius": config.radius,
        "sigma_feature": config.sigma_feature,
        "sigma_distance": config.sigma_distance,
        "sigma_contour": config.sigma_contour,
    }
    if config.cut == "merged" and h * w > 1:
        labels, vectors, value = _merged(rgb, config.num_segments, key, weights)
    else:
        method = "recursive" if config.cut == "recursive" else "k-way"
        result = ncut(rgb, config.num_segments, key=key, method=method, **weights)
        labels, vectors, value = np.asarray(result.labels), np.asarray(result.eigenvectors), float(result.ncut_value)
    return labels, vectors, f"Normalized Cut, {labels.max() + 1}: {value:.3f}"


_strength = jax.jit(segmentation_strength)  # apart from the solver: to compile both as one takes the memory of both


def _merged(rgb: Array, num_segments: int, key: PRNGKeyArray, weights: dict[str, Any]) -> tuple[Any, Any, float]:
    """Segments as in `experiments/bsds.py`, at most `num_segments`; the eigenvectors; the Ncut."""
    h, w, _ = rgb.shape
    if not 1 <= num_segments <= h * w:
        raise ValueError(f"ncut needs num_segments from 1 to the number of pixels {h * w}, got {num_segments}")
    affinity = graph(rgb, **weights)
    k = min(12, affinity.degree.size - 1)
    pairs = smallest_eigenpairs(affinity, k, key=key, tolerance=3e-4, max_iterations=12, guard=4)
    strength = _strength(rgb, pairs.values, pairs.vectors)
    labels = segmentation_of(hierarchy(strength, size_power=0.5), num_segments)
    return labels, np.asarray(pairs.vectors), float(ncut_value(affinity, jnp.asarray(labels), num_segments))
