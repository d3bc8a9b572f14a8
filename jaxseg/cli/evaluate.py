"""`jaxseg evaluate`: scores of a run on a data set."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax
import tyro
from jaxtyping import PyTree

from jaxseg import parallel
from jaxseg.cli.arguments import (
    bar,
    checked,
    demand_output,
    demand_positive,
    describe,
    evaluation_split,
    open_split,
    placement_of,
)
from jaxseg.data import DataError, ObjectSource, ShapesObjects, coco, instance_folder, shapes
from jaxseg.fit import evaluate_batches, evaluation_feed
from jaxseg.losses import cross_entropy
from jaxseg.predict import score_objects
from jaxseg.report import average_precision_table, metrics_table
from jaxseg.runlog import write_whole
from jaxseg.runs import load_described
from jaxseg.train import TrainState, supervised

__all__ = ["Evaluate", "evaluate_command"]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a run on a data set, once an image, on any number of devices; of a detector, COCO's AP on one."""

    run: tyro.conf.Positional[pathlib.Path]
    """The folder of a run."""
    data: str = "shapes"
    """`shapes`, or a folder of images and masks with the run's classes. For a detector the masks hold instance ids
    (SPLIT/images and SPLIT/instances), or the folder is COCO's (SPLIT2017 and annotations)."""
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


def _demand_classes(config: Evaluate, names: Sequence[str], trained: Mapping[str, Any]) -> None:
    if len(names) != trained["num_classes"]:
        raise DataError(
            f"{config.data} has {len(names)} classes ({', '.join(names)}), the run "
            f"{trained['num_classes']} ({', '.join(trained['class_names'])}); evaluate on data with the run's classes"
        )


def _write(config: Evaluate, split: str, scores: Mapping[str, float]) -> None:
    out = config.out or config.run / f"evaluation-{split}.json"
    finite = {k: v if np.isfinite(v) else None for k, v in scores.items()}
    if jax.process_index() == 0:
        write_whole(out, json.dumps(finite, indent=1) + "\n")
        print(f"wrote {out}")


def _objects(data: str, split: str | None) -> tuple[str, ObjectSource]:
    """A split of a detector's data, by default the validation part, else the test part, and its name."""
    root = pathlib.Path(data)
    if data == "shapes":
        drawn = shapes(split or "validation")
        return drawn.split, ShapesObjects(drawn.home, drawn.split)
    if (root / "annotations").is_dir():
        split = split or "val"
        listing = root / "annotations" / f"instances_{split}2017.json"
        return split, coco(root / f"{split}2017", listing, contiguous=False)  # as experiments/coco.py has them
    held_out = (s for s in ("val", "validation", "valid", "test") if (root / s / "instances").is_dir())
    split = split or next(held_out, None)
    return split or "all", instance_folder(root, split)


def _evaluate_objects(config: Evaluate, model: Any, variables: PyTree, trained: Mapping[str, Any]) -> int:
    """The branch of detectors: average precision on the pictures at their own sizes."""
    names = ("parallel", "ignore_label", "validation_fraction")
    if given := [name for name in names if getattr(config, name) != getattr(Evaluate, name)]:
        words = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{words} are for semantic models, and a {type(model).__name__} finds objects: leave them out")
    demand_positive(batch=config.batch)
    split, source = _objects(config.data, config.split)
    _demand_classes(config, source.class_names, trained)
    print(f"{split} data: {len(source)} images", flush=True)
    with bar("detecting") as progress:
        scores = score_objects(model, variables, source, batch=min(config.batch, len(source)), progress=progress)
    print(average_precision_table(scores))
    _write(config, split, scores)
    return 0


def evaluate_command(config: Annotated[Evaluate, tyro.conf.arg(name="")]) -> int:
    """Score a run on a data set."""
    if config.out is not None:
        demand_output(config.out, file=True)
    elif config.run.is_dir():
        demand_output(config.run)
    model, variables, trained = load_described(config.run)
    if hasattr(model, "detect_boxes"):
        return _evaluate_objects(config, model, variables, trained)
    split = config.split or evaluation_split(config.data)
    source = open_split(config.data, split, config.ignore_label, config.validation_fraction)
    _demand_classes(config, source.class_names, trained)
    print(f"{split} data: {describe(checked(source, split))}", flush=True)
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
    _write(config, split, scores)
    return 0
