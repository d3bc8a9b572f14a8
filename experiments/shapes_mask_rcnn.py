"""Mask R-CNN (He et al. 2017) on a small ResNet, from scratch on the embedded shapes: boxes, classes and masks.

    python experiments/shapes_mask_rcnn.py --out runs/shapes_mask_rcnn

Writes the run, `detections.png` and `results.json` with COCO's AP of boxes and masks on the 200 validation pictures:
mask AP50 0.811, box AP50 0.850, in 29 minutes on two cores with other work beside it.
"""

import dataclasses
import pathlib

import tyro

from jaxseg.cli.arguments import demand_positive, run_experiment
from jaxseg.data import ShapesObjects, flip, shapes
from jaxseg.fit import Run, evaluation_feed, fit, training_feed
from jaxseg.report import finish_detection
from jaxseg.runs import model_config, model_from_config
from jaxseg.train import adamw_cosine
from jaxseg.train_detection import Sampling, detection

SIZE = (128, 128)


@dataclasses.dataclass(frozen=True)
class Config:
    run: tyro.conf.OmitArgPrefixes[Run] = dataclasses.field(
        default_factory=lambda: Run(
            steps=4800, batch=8, checkpoint_every=400, out=pathlib.Path("runs/shapes_mask_rcnn")
        )
    )
    """Length, batch, output."""
    learning_rate: float = 2e-3
    """Peak."""
    pictures: int = 200
    """Validation pictures to score."""


FIELDS = {
    "anchor_sizes": ((16,), (32,), (48,), (64,), (96,)),
    "rpn_pre_nms_top_n_train": 200,
    "rpn_post_nms_top_n_train": 64,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 64,
    "box_detections_per_img": 20,
    "min_size": SIZE[0],
    "max_size": SIZE[1],
}


def main(config: Config) -> None:
    demand_positive(steps=config.run.steps, pictures=config.pictures)
    train, test = shapes("train"), shapes("validation")
    run = config.run
    described = model_config("maskrcnn_small", train.num_classes, SIZE, train.class_names, train.palette, **FIELDS)
    model = model_from_config(described)
    described |= {"learning_rate": config.learning_rate}
    fns = detection(
        model,
        optimizer=adamw_cosine(config.learning_rate, run.steps),
        max_instances=6,
        augment=(flip,),
        sampling=Sampling(anchors=64, boxes=32),
    )
    result = fit(
        fns, training_feed(train, SIZE, run.batch, run.seed), evaluation_feed(test, SIZE, run.batch), run,
        config=described,
    )  # fmt: skip
    if not result.stopped:
        variables = {"params": result.state.params, **result.state.model_state}
        held_out = ShapesObjects(test.home, test.split)
        finish_detection(run.out, described, model, variables, held_out, batch=20, pictures=config.pictures)


if __name__ == "__main__":
    run_experiment(main, Config, __doc__)
