"""Mask R-CNN (He et al. 2017) on nuclei of the 2018 Data Science Bowl, from scratch: no pretraining is needed.

    python experiments/nuclei.py --data DIR --out runs/nuclei

DIR holds train/{images,instances} and val/{images,instances}. By default a small ResNet-18 FPN at 256x256, for a CPU;
`--model maskrcnn_resnet50_fpn --size 512x512 --steps 10000`, with a GPU, is the one that should pass the 0.83 AP50
that StarDist's authors (Schmidt et al. 2018) report for Mask R-CNN on their part of these images. Mirror images and
scale jitter, AdamW with warm-up and cosine decay. Writes `detections.png` and `results.json` with COCO's AP of boxes
and masks on the validation part.
"""

import dataclasses
import pathlib
from typing import Any

import tyro

from jaxseg.cli.arguments import Size, demand_positive, run_experiment
from jaxseg.data import flip, instance_folder, padded_objects, scale_jitter
from jaxseg.fit import Run, evaluation_feed, fit, training_feed
from jaxseg.report import finish_detection
from jaxseg.runs import model_config, model_from_config
from jaxseg.train import adamw_cosine
from jaxseg.train_detection import Sampling, detection

ANCHORS = ((8,), (16,), (32,), (64,), (128,))  # nuclei are small


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path
    """The folder with train and val."""
    run: tyro.conf.OmitArgPrefixes[Run] = dataclasses.field(
        default_factory=lambda: Run(steps=1500, batch=8, checkpoint_every=100, out=pathlib.Path("runs/nuclei"))
    )
    """Length, batch, output."""
    model: str = "maskrcnn_small"
    """A Mask R-CNN of the zoo."""
    size: Size = (256, 256)
    """What the model sees."""
    max_instances: int = 150
    """Nuclei of a picture that are learnt from; the smallest beyond are counted."""
    learning_rate: float = 2e-3
    """Peak."""
    pictures: int | None = None
    """Validation pictures to score; all of them by default."""


def fields(config: Config) -> dict[str, Any]:
    """What of the model is not its class's default."""
    return {
        "anchor_sizes": ANCHORS,
        "norm": "batch",
        "box_detections_per_img": 300,
        "rpn_pre_nms_top_n_train": 600,
        "rpn_post_nms_top_n_train": 300,
        "rpn_pre_nms_top_n_test": 600,
        "rpn_post_nms_top_n_test": 500,
        "min_size": min(config.size),
        "max_size": max(config.size),
    }


def main(config: Config) -> None:
    demand_positive(steps=config.run.steps, max_instances=config.max_instances, pictures=config.pictures)
    train, val = (instance_folder(config.data, split, class_name="nucleus") for split in ("train", "val"))
    run = config.run
    described = model_config(
        config.model, train.num_classes, config.size, train.class_names, train.palette, **fields(config)
    )
    model = model_from_config(described)
    fns = detection(
        model,
        optimizer=adamw_cosine(config.learning_rate, run.steps),
        max_instances=config.max_instances,
        augment=(flip, scale_jitter(config.size, (0.7, 1.6))),
        sampling=Sampling(anchors=256, boxes=128),
    )
    described |= {"learning_rate": config.learning_rate, "max_instances": config.max_instances}
    result = fit(
        fns,
        training_feed(padded_objects(train, config.size, config.max_instances), config.size, run.batch, run.seed),
        evaluation_feed(padded_objects(val, config.size, config.max_instances), config.size, run.batch),
        run,
        config=described,
    )
    if not result.stopped:
        variables = {"params": result.state.params, **result.state.model_state}
        finish_detection(run.out, described, model, variables, val, pictures=config.pictures)


if __name__ == "__main__":
    run_experiment(main, Config, __doc__)
