"""`jaxseg predict` and `jaxseg evaluate`: using what a run left."""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Annotated, Literal

import flax.linen as nn
import jax
import numpy as np
import optax
import tyro
from jaxtyping import PyTree
from PIL import Image

from jaxseg import parallel
from jaxseg.cli.arguments import Size, bar, checked, describe, evaluation_split, nearest_model, open_split
from jaxseg.cli.detect import detect_files
from jaxseg.cli.train import placement_of
from jaxseg.data import DataError, read_image, voc_palette
from jaxseg.fit import evaluate_batches, evaluation_feed
from jaxseg.losses import cross_entropy
from jaxseg.models import DETECTORS, MODELS, create_model
from jaxseg.predict import predictor
from jaxseg.report import metrics_table
from jaxseg.runs import load_variables, model_from_config
from jaxseg.train import TrainState, supervised
from jaxseg.visualize import overlay, palette_image
from jaxseg.weights import load_weights

__all__ = ["Evaluate", "Predict", "evaluate_command", "predict_command"]

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))


@dataclasses.dataclass(frozen=True)
class Predict:
    """Segment photographs: for each a label map, a palette PNG and an overlay; or find and outline objects."""

    model: tyro.conf.Positional[str]
    """The folder of a run, or a model's name with --weights."""
    paths: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Images, or folders of images."""
    out: pathlib.Path
    """Folder for NAME_labels.png (the label map), NAME_palette.png and NAME_overlay.png; of a detector
    NAME_detections.png, NAME_detections.json (COCO's results) and NAME_instances.png (ids by rank)."""
    weights: pathlib.Path | None = None
    """The folder of a run of that model, or a published checkpoint (.pth, .safetensors)."""
    size: Size | None = None
    """Height x width at which a published model sees images (default 512x512); a run knows its own."""
    classes: int = 21
    """Number of classes of a published checkpoint."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a run on a data set, once an image, on any number of devices."""

    run: tyro.conf.Positional[pathlib.Path]
    """The folder of a run."""
    data: str = "shapes"
    """`shapes`, or a folder of images and masks with the run's classes."""
    split: str | None = None
    """Default: the validation part, else the test part."""
    batch: int = 16
    """Images at once, over all devices."""
    parallel: Literal["jit", "pmap"] = "jit"
    """One program over a mesh, or pmap."""
    out: pathlib.Path | None = None
    """A JSON file for the scores; default: evaluation-SPLIT.json in the run's folder."""
    ignore_label: int | None = None
    """A label of the folder's masks to ignore, beside 255."""
    validation_fraction: float = 0.1
    """Share of a folder without splits that is kept for evaluation."""


def _image_files(paths: tuple[pathlib.Path, ...]) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Pairs of an image file and its name under the output folder, without its suffix."""
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
            if not inside:
                raise DataError(f"{path}: no image in this folder; looked for {' '.join(sorted(_SUFFIXES))}")
            found += [(p, p.relative_to(path).with_suffix("")) for p in inside]
        elif path.exists():
            found.append((path, pathlib.Path(path.stem)))
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    if not found:
        raise ValueError("name at least one image or folder of images")
    seen: dict[pathlib.Path, pathlib.Path] = {}
    for path, name in found:
        if name in seen:
            raise DataError(f"{path} and {seen[name]} would both be written as {name}; predict them to two folders")
        seen[name] = path
    return found


def _trained(config: Predict) -> tuple[nn.Module, PyTree, tuple[int, int], np.ndarray]:
    """The model, its variables, the size at which it sees images, and its palette."""
    name, weights = config.model, config.weights
    if weights is None:
        if name in MODELS:
            raise ValueError(f"{name} is a model without weights; add --weights, or name the folder of a run")
        if not (pathlib.Path(name) / "checkpoints").is_dir():
            near = "" if os.sep in name or pathlib.Path(name).exists() else f"; of models: {nearest_model(name)}"
            raise FileNotFoundError(f"{name} is not the folder of a run (it holds no checkpoints){near}")
        weights = pathlib.Path(name)
    elif nearest_model(name) != name:
        raise ValueError(f'no model "{name}"; did you mean "{nearest_model(name)}"? `jaxseg models` lists all')
    elif weights.is_file():
        model = create_model(name, config.classes)
        return model, load_weights(weights, model), config.size or (512, 512), voc_palette(config.classes)
    variables, trained = load_variables(weights)
    if name in MODELS and trained["model"] != name:
        raise ValueError(f"{weights} holds {trained['model']}, not {name}; name that model")
    if config.size not in (None, tuple(trained["size"])):
        raise ValueError(f"{weights} sees images at {'x'.join(map(str, trained['size']))}; leave --size out")
    return model_from_config(trained), variables, tuple(trained["size"]), np.array(trained["palette"], np.uint8)


def predict_command(config: Annotated[Predict, tyro.conf.arg(name="")]) -> int:
    """Segment photographs or folders with what a run trained."""
    files = _image_files(config.paths)
    if config.model in DETECTORS:
        if config.weights is None or not config.weights.is_file():
            raise ValueError(f"{config.model} needs --weights with a published checkpoint (.pth, .safetensors)")
        with bar("detecting") as progress:
            skipped = detect_files(config.model, config.weights, files, config.out, progress)
        return _report("found the objects in", files, skipped, config.out)
    model, variables, size, palette = _trained(config)
    predict = predictor(model, variables, size)
    skipped = []
    with bar("segmenting") as progress:
        for done, (path, name) in enumerate(files, 1):
            try:
                image = read_image(path)
            except DataError as error:
                skipped.append(str(error))
            else:
                labels = predict(image)
                base = config.out / name
                base.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(labels.astype(np.uint8)).save(base.with_name(base.name + "_labels.png"))
                palette_image(labels, palette).save(base.with_name(base.name + "_palette.png"))
                Image.fromarray(overlay(image, labels, palette)).save(base.with_name(base.name + "_overlay.png"))
            progress(done, len(files))
    return _report("segmented", files, skipped, config.out)


def _report(did: str, files: list, skipped: list[str], out: pathlib.Path) -> int:
    print(f"{did} {len(files) - len(skipped)} of {len(files)} images into {out}")
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    return 1 if skipped else 0


def evaluate_command(config: Annotated[Evaluate, tyro.conf.arg(name="")]) -> int:
    """Score a run on a data set."""
    variables, trained = load_variables(config.run)
    split = config.split or evaluation_split(config.data)
    source = open_split(config.data, split, config.ignore_label, config.validation_fraction)
    if len(source.class_names) != trained["num_classes"]:
        raise DataError(
            f"{config.data} has {len(source.class_names)} classes ({', '.join(source.class_names)}), the run "
            f"{trained['num_classes']} ({', '.join(trained['class_names'])}); evaluate on data with the run's classes"
        )
    print(f"{split} data: {describe(checked(source, split))}", flush=True)
    model = model_from_config(trained)
    placement: parallel.Placement = placement_of(config.parallel, "")
    if config.batch % placement.batch_devices:
        raise ValueError(f"--batch {config.batch} does not divide over {placement.batch_devices} devices")
    fns = supervised(model, loss=cross_entropy, optimizer=optax.identity())
    state = TrainState(
        np.int32(0), variables["params"], {k: v for k, v in variables.items() if k != "params"}, (), None
    )
    feed = evaluation_feed(source, tuple(trained["size"]), config.batch)
    scores = evaluate_batches(fns, placement, placement.put_state(state), feed())
    print(metrics_table(scores, trained["class_names"]))
    out = config.out or config.run / f"evaluation-{split}.json"
    finite = {k: v if np.isfinite(v) else None for k, v in scores.items()}
    if jax.process_index() == 0:
        out.write_text(json.dumps(finite, indent=1) + "\n")
        print(f"wrote {out}")
    return 0
