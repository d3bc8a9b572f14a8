"""`jaxseg predict`: label maps, or objects, of photographs."""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import PyTree
from PIL import Image

from jaxseg.cli import kept
from jaxseg.cli.arguments import Size, bar, demand_output
from jaxseg.data import IGNORE, IMAGE_SUFFIXES, DataError, read_image
from jaxseg.predict.canvas import canvas_predictor
from jaxseg.runlog import naming
from jaxseg.visualize import overlay, palette_image
from jaxseg.weights.files import DESCRIPTIONS, read_weights, weights_file, weights_header

__all__ = ["Predict", "Question", "Segmenter", "predict_command", "sees_once"]

WRITTEN = ("_labels.png", "_palette.png", "_overlay.png", "_detections.png", "_instances.png")


@dataclasses.dataclass(frozen=True)
class Predict:
    """Segment photographs: for each a label map, a palette PNG and an overlay; or find and outline objects."""

    model: tyro.conf.Positional[str]
    """The folder of a run or of a converted checkpoint, or a model's name with --weights."""
    paths: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Images, or folders of images."""
    out: pathlib.Path = pathlib.Path("predictions")
    """Folder for NAME_labels.png (the label map), NAME_palette.png and NAME_overlay.png; of a detector
    NAME_detections.png, NAME_detections.json (COCO's results) and NAME_instances.png (ids by rank). NAME is the
    image's path in its folder, below the folder's name where there are several, with its suffix where one with
    another stands beside it. What lies in here is no input."""
    weights: pathlib.Path | None = None
    """The folder of a run of that model, or a published checkpoint (.pth, .safetensors)."""
    size: Size | None = None
    """Height x width at which a published model sees images (default 512x512); a run knows its own."""
    classes: int | None = None
    """Number of classes, to be sure: the weights say it, and another number is an error."""
    window: Size | None = None
    """Height x width of windows that slide over the image at its own size, scores averaged where they overlap."""
    stride: float = 2 / 3
    """With --window, --scales or --flip: the distance between windows, as a share of the window."""
    long_side: int | None = None
    """With --window: first scale the image so that its longer side has this many pixels."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes to see the image at, relative to its own with --window and to the size that fits without."""
    flip: bool = False
    """See every window mirrored, too."""
    batch: int = 1
    """Images, or with windows, scales or flip windows, that the model sees at once."""
    shard: str = ""
    """See images whole at their own size, shared out among devices, such as `spatial=8` or `spatial=4,width=2`."""


def _tails(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """The end of each of several paths, as short as tells them all apart."""
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        tails = {path: pathlib.Path(*path.parts[1:][-length:]) for path in paths}
        if len({*tails.values()}) == len(tails):
            break
    return tails


def _images_in(folder: pathlib.Path, out: pathlib.Path) -> list[pathlib.Path]:
    """The images in a folder, less what predictions into `out` have written there."""
    around = folder.is_relative_to(out)  # then its images lie under `out`, and only names tell what was written
    inside = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not (path.is_relative_to(out) and (not around or path.name.endswith(WRITTEN)))
    ]
    if not inside:
        raise DataError(f"{folder}: no image in this folder; looked for {' '.join(sorted(IMAGE_SUFFIXES))}")
    return inside


def _image_files(paths: tuple[pathlib.Path, ...], out: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Pairs of an image file and its name under the output folder, each file once and no name twice."""
    places: dict[pathlib.Path, pathlib.Path] = {}  # under `out`, with the suffix
    out, *whole = (pathlib.Path(os.path.abspath(path)) for path in (out, *paths))
    tails = _tails([path for path in dict.fromkeys(whole) if path.is_dir()])
    for path, asked in zip(whole, paths, strict=True):
        if path.is_dir():
            below = tails[path] if len(tails) > 1 else pathlib.Path()
            for inside in _images_in(path, out):
                places.setdefault(inside, below / inside.relative_to(path))
        elif path.exists():
            places.setdefault(path, pathlib.Path(path.name))
        else:
            raise FileNotFoundError(f"{asked}: no such file or folder")
    if not places:
        raise ValueError("name at least one image or folder of images")
    times = collections.Counter(places.values())
    alone = _tails([path for path, place in places.items() if times[place] > 1])
    places = {path: alone.get(path, place) for path, place in places.items()}
    stems = collections.Counter(place.with_suffix("") for place in places.values())
    names = {path: p if stems[p.with_suffix("")] > 1 else p.with_suffix("") for path, p in places.items()}
    if len({*names.values()}) < len(names):  # as of a.jpg and a.png, beside which stands a.jpg.png
        names = _tails([*places])
    return [*names.items()]


class Segmenter(NamedTuple):
    """What turns up to `together` images into label maps, in colours of `palette`."""

    segment: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
    together: int
    palette: np.ndarray


def sees_once(config: Predict) -> bool:
    """Whether every image is seen once."""
    return config.window is None and config.scales == (1.0,) and not config.flip


class Question(NamedTuple):
    """A prediction that an earlier start may have compiled: what it is kept under, the file, and its arrays' shapes."""

    name: str
    file: pathlib.Path
    shapes: Mapping[str, tuple[tuple[int, ...], str]]


def _question(config: Predict, images: int) -> Question | None:
    """None where nothing is kept: images in shares, or in windows, and runs, whose checkpoints are no such files."""
    if config.shard or config.long_side is not None or not sees_once(config) or kept.programs_folder() is None:
        return None
    if config.stride != Predict.stride:  # which is refused
        return None
    weights = config.weights or pathlib.Path(config.model)
    described = {name: (weights / name).read_bytes() for name in DESCRIPTIONS if (weights / name).is_file()}
    if not weights.is_file() and (not described or (weights / "checkpoints").is_dir()):
        return None
    file = weights if weights.is_file() else weights_file(weights)
    shapes = weights_header(file)
    if shapes is None:
        return None
    asked = {"model": config.model, "classes": config.classes, "size": config.size, "described": described}
    return Question(kept.question({**asked, "together": min(config.batch, images)}, shapes), file, shapes)


def _kept(question: Question, images: int) -> Segmenter | None:
    """What an earlier start has compiled."""
    found = kept.find(question.name, lambda: read_weights(question.file))
    if found is None:
        return None
    size, output_size = (tuple(found.about[k]) for k in ("size", "output_size"))
    segment = canvas_predictor(found.logits, size, output_size, images)
    return Segmenter(segment, images, np.array(found.about["palette"], np.uint8))


def _read_ahead(
    files: Sequence[tuple[pathlib.Path, pathlib.Path]], ahead: int
) -> Iterator[tuple[pathlib.Path, np.ndarray | DataError]]:
    """Each file's name and image, or what is wrong with it; two threads decode while the caller works."""

    def read(path: pathlib.Path) -> np.ndarray | DataError:
        try:
            return read_image(path)
        except DataError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        rest = iter(files)
        reading = collections.deque((name, pool.submit(read, path)) for path, name in itertools.islice(rest, ahead))
        while reading:
            name, image = reading.popleft()
            reading.extend((n, pool.submit(read, path)) for path, n in itertools.islice(rest, 1))
            yield name, image.result()


def _write_pictures(base: pathlib.Path, image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> None:
    base.parent.mkdir(parents=True, exist_ok=True)
    shown = Image.fromarray(labels.astype(np.uint8)), palette_image(labels, palette)
    pictures = (*shown, Image.fromarray(overlay(image, labels, palette)))
    for kind, picture in zip(("labels", "palette", "overlay"), pictures, strict=True):
        path = base.with_name(f"{base.name}_{kind}.png")
        with naming(path):
            picture.save(path)


def _detect(config: Predict, files: list[tuple[pathlib.Path, pathlib.Path]], model: Any, variables: PyTree) -> int:
    """The branch of detectors, which see each image whole, at their own size, and know their classes."""
    from jaxseg.cli.detect import class_names, detect_files

    meant = {"model", "paths", "out", "weights", "batch", "classes"}
    given = [f.name for f in dataclasses.fields(config) if f.name not in meant]
    given = [name for name in given if getattr(config, name) != getattr(Predict, name)]
    if given:
        words = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{words} are for semantic models, and a {type(model).__name__} finds objects: leave them out")
    names = class_names(config.weights or pathlib.Path(config.model), model.num_classes)
    with bar("detecting") as progress:
        unread = detect_files(model, variables, names, files, config.out, progress, batch=config.batch)
    return _report("found the objects in", files, unread, config.out)


def predict_command(config: Annotated[Predict, tyro.conf.arg(name="")]) -> int:
    """Segment photographs or folders with what a run trained, or with published weights.

    By default an image is scaled to fit the size that the model trained at. --window slides over it at its own size
    instead; --scales and --flip average probabilities over scaled and mirrored images; --shard spatial=8 sees an
    image whole that no one of eight devices could hold. PSPNet's protocol on VOC is
    --window 473x473 --long-side 512 --scales 0.5 0.75 1 1.25 1.5 1.75 --flip. Unreadable files are skipped, named
    at the end, and make the exit code 1.
    """
    if config.batch < 1:
        raise ValueError(f"--batch is at least 1, got {config.batch}")
    files = _image_files(config.paths, config.out)
    demand_output(config.out)
    question = _question(config, len(files))
    segmenter = _kept(question, min(config.batch, len(files))) if question is not None else None
    if segmenter is not None:
        return _segment(config, files, segmenter)

    # models and Flax, which take a third of a second to import, are for a start that finds nothing kept
    from jaxseg.cli.detect import load_detector
    from jaxseg.cli.segment import new_segmenter
    from jaxseg.cli.trained import load_trained
    from jaxseg.models import DETECTORS

    if config.model in DETECTORS and config.weights is not None and config.weights.is_file():
        return _detect(config, files, *load_detector(config.model, config.weights, config.classes))
    trained = load_trained(config.model, config.weights, config.classes, config.size)
    if hasattr(trained.model, "detect_boxes"):
        return _detect(config, files, trained.model, trained.variables)
    if hasattr(trained.model, "inputs"):  # what sees other than photographs, or scores no classes, says what it takes
        raise ValueError(
            f"{config.weights or config.model} is of {type(trained.model).__name__}, and predict is for models that "
            "segment or find objects; jaxseg stylize transfers styles, and jaxseg.load_model gives any model in Python"
        )
    if len(trained.palette) > IGNORE:
        raise ValueError(
            f"{config.model} scores {len(trained.palette)} classes, and a label map of 8 bits holds {IGNORE}; "
            "jaxseg.predict gives the labels from Python"
        )
    return _segment(config, files, new_segmenter(config, trained, len(files), question))


def _segment(config: Predict, files: list[tuple[pathlib.Path, pathlib.Path]], segmenter: Segmenter) -> int:
    segment, together, palette = segmenter
    skipped: list[str] = []
    group: list[tuple[pathlib.Path, np.ndarray]] = []
    with bar("segmenting") as progress:
        for done, (name, image) in enumerate(_read_ahead(files, 2 * together), 1):
            if isinstance(image, DataError):
                skipped.append(str(image))
            else:
                group.append((name, image))
            if group and (len(group) == together or done == len(files)):
                for (name, image), labels in zip(group, segment([i for _, i in group]), strict=True):
                    _write_pictures(config.out / name, image, labels, palette)
                group.clear()
            progress(done, len(files))
    return _report("segmented", files, skipped, config.out)


def _report(did: str, files: list, skipped: list[str], out: pathlib.Path) -> int:
    print(f"{did} {len(files) - len(skipped)} of {len(files)} images into {out}")
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    return 1 if skipped else 0
