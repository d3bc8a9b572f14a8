"""Pictures of label maps: palette images, overlays, and panels of input, truth and prediction."""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from jaxseg.data.source import IGNORE

__all__ = ["colorize", "overlay", "palette_image", "save_panels"]


def colorize(labels: Int[np.ndarray, "h w"], palette: UInt8[np.ndarray, "k 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The colour of each label; 255 (ignore) is white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def palette_image(labels: Int[np.ndarray, "h w"], palette: UInt8[np.ndarray, "k 3"]) -> Image.Image:
    """A PNG-ready palette ("P") image: its pixels are the labels, its palette shows them in colour."""
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = palette
    image.putpalette(table.ravel().tolist())
    return image


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Int[np.ndarray, "h w"],
    palette: UInt8[np.ndarray, "k 3"],
    alpha: float = 0.55,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image under its labels' colours, with a dark line where labels meet; ignored pixels stay as they are."""
    mixed = (1 - alpha) * image + alpha * colorize(labels, palette)
    edge = np.zeros(labels.shape, bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    mixed[edge] *= 0.35
    return np.where((labels == IGNORE)[..., None], image, mixed).round().astype(np.uint8)


def save_panels(
    path: pathlib.Path,
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    truths: Sequence[Int[np.ndarray, "h w"]],
    predictions: Sequence[Int[np.ndarray, "h w"]],
    palette: UInt8[np.ndarray, "k 3"],
    class_names: Sequence[str],
) -> None:
    """Writes a PNG with a row for each image (input, truth, prediction), and the legend of the classes."""
    import matplotlib.patches
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(images)
    aspect = images[0].shape[0] / images[0].shape[1]
    legend_rows = -(-len(class_names) // 6)
    width, legend_height = 9.0, 0.35 + 0.24 * legend_rows
    height = rows * width / 3 * aspect + 0.35 + legend_height
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False)
    for row, (image, truth, prediction) in enumerate(zip(images, truths, predictions, strict=True)):
        shown = (image, colorize(truth, palette), colorize(prediction, palette))
        for axis, picture, title in zip(axes[row], shown, ("input", "truth", "prediction"), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=10, pad=4)
    patches = [
        matplotlib.patches.Patch(facecolor=tuple((np.asarray(c) / 255).tolist()), edgecolor="0.6", label=name)
        for c, name in zip(palette, class_names, strict=True)
    ]
    figure.legend(handles=patches, loc="lower center", ncols=min(len(patches), 6), fontsize=8, frameon=False)
    figure.subplots_adjust(
        left=0.01, right=0.99, top=1 - 0.3 / height, bottom=legend_height / height, wspace=0.03, hspace=0.03
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
