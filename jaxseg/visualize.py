"""Pictures of label maps: palette images, overlays, and panels of input, truth and prediction."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from jaxseg.data.source import IGNORE

__all__ = ["colorize", "draw_detections", "overlay", "palette_image", "save_curves", "save_panels", "save_tiles"]


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
    edge = np.zeros(labels.shape, bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    result = np.array(image)
    for top in range(0, len(image), 128):  # of an image of 8192x8192 the floats alone are gigabytes
        rows = slice(top, top + 128)
        mixed = (1 - alpha) * image[rows] + alpha * colorize(labels[rows], palette)
        mixed[edge[rows]] *= 0.35
        np.copyto(result[rows], mixed.round().astype(np.uint8), where=(labels[rows] != IGNORE)[..., None])
    return result


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


def save_curves(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes a PNG of loss and mIoU against the step, from the records of a `metrics.jsonl`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name, label in zip(figure.subplots(1, 2), ("loss", "miou"), ("loss", "mIoU"), strict=True):
        steps = [(r["step"], r[name]) for r in records if name in r]
        held_out = [(r["step"], r["evaluation"][name]) for r in records if name in r.get("evaluation", {})]
        x, y = (np.array(column) for column in zip(*steps, strict=True))
        width = max(len(y) // 50, 1)
        smooth = np.convolve(y, np.ones(width) / width, "valid")
        axis.plot(x, y, color="0.8", linewidth=0.8, label="a batch")
        axis.plot(x[width - 1 :], smooth, color="tab:blue", label=f"mean of {width} steps")
        if held_out:
            axis.plot(*zip(*held_out, strict=True), "o-", color="tab:red", label="evaluation")
        axis.set_xlabel("step")
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def draw_detections(
    image: UInt8[np.ndarray, "h w 3"],
    found: Any,
    class_names: Sequence[str],
    palette: UInt8[np.ndarray, "k 3"],
    *,
    threshold: float = 0.5,
) -> UInt8[np.ndarray, "H W 3"]:
    """The image, its longer side about 480 pixels at least, with the boxes, masks, classes and scores of `found`.

    What scores below `threshold` is left out. `found` is `Detections` of this image, as `jaxseg.predict.detect` gives
    them.
    """
    from PIL import ImageDraw

    zoom = max(1, round(480 / max(image.shape[:2])))
    boxes, scores, classes = (np.asarray(x) for x in (found.boxes, found.scores, found.classes))
    shown = [i for i in range(len(scores)) if found.valid[i] and scores[i] >= threshold]
    mixed = image.astype(np.float32)
    for i in reversed(shown) if found.masks is not None else ():
        inside = np.asarray(found.masks[i]) > 0.5
        mixed[inside] = 0.5 * mixed[inside] + 0.5 * palette[classes[i]]
    large = Image.fromarray(mixed.round().astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1))
    pen = ImageDraw.Draw(large)
    for i in shown:
        colour = tuple(int(c) for c in palette[classes[i]])
        x0, y0, x1, y1 = (float(v) * zoom for v in boxes[i])
        pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colour, width=2)
        text = f"{class_names[classes[i]]} {scores[i]:.2f}"
        corner = max(min(x0, large.width - 7 - pen.textbbox((0, 0), text)[2]), 0) + 3, max(y0 - 13, 0)
        left, top, right, bottom = pen.textbbox(corner, text)
        pen.rectangle((left - 3, top - 1, right + 3, bottom + 1), fill=colour)
        pen.text(corner, text, fill=(0, 0, 0) if sum(colour) > 380 else (255, 255, 255))
    return np.asarray(large)


def save_tiles(path: pathlib.Path, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], columns: int = 3) -> None:
    """Writes pictures of any sizes as one PNG, `columns` a row, each scaled into a tile of the first one's height."""
    height = min(pictures[0].shape[0], 480)
    width = max(round(height * p.shape[1] / p.shape[0]) for p in pictures)
    width = min(width, 2 * height)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (min(columns, len(pictures)) * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        tile = Image.fromarray(picture)
        tile.thumbnail((width, height), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % columns * width, i // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
