"""`jaxseg evaluate`: scores of a run on a data set."""

import dataclasses
import json
import pathlib
from typing import Annotated, Literal

import jax
import numpy as np
import optax
import tyro

from jaxseg import parallel
from jaxseg.cli.arguments import checked, describe, evaluation_split, open_split, placement_of
from jaxseg.data import DataError
from jaxseg.fit import evaluate_batches, evaluation_feed
from jaxseg.losses import cross_entropy
from jaxseg.report import metrics_table
from jaxseg.runs import load_described
from jaxseg.train import TrainState, supervised

__all__ = ["Evaluate", "evaluate_command"]


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


def evaluate_command(config: Annotated[Evaluate, tyro.conf.arg(name="")]) -> int:
    """Score a run on a data set."""
    model, variables, trained = load_described(config.run)
    split = config.split or evaluation_split(config.data)
    source = open_split(config.data, split, config.ignore_label, config.validation_fraction)
    if len(source.class_names) != trained["num_classes"]:
        raise DataError(
            f"{config.data} has {len(source.class_names)} classes ({', '.join(source.class_names)}), the run "
            f"{trained['num_classes']} ({', '.join(trained['class_names'])}); evaluate on data with the run's classes"
        )
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
    out = config.out or config.run / f"evaluation-{split}.json"
    finite = {k: v if np.isfinite(v) else None for k, v in scores.items()}
    if jax.process_index() == 0:
        out.write_text(json.dumps(finite, indent=1) + "\n")
        print(f"wrote {out}")
    return 0
