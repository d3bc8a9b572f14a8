"""Mask R-CNN (He et al. 2017) on the pedestrians of Penn-Fudan: fine-tuned, or on a small body from scratch.

    python experiments/pennfudan.py --data DIR --weights maskrcnn_resnet50_fpn_coco.pth --out runs/pennfudan

DIR holds train/{images,instances} and test/{images,instances}. With weights that torchvision published for COCO, all
but the predictors of classes start from them, the stem and the first stage stay (`--freeze-at 2`), and SGD falls in
steps: torchvision's tutorial gets 0.80 box AP and 0.76 mask AP so in ten epochs. Without `--weights` it trains
`--model maskrcnn_small` from scratch on 120 pictures, which shows the way and not the numbers. Writes
`detections.png` and `results.json` with COCO's AP of boxes and masks on the test part.
"""

import dataclasses
import pathlib
from typing import Any

import tyro

from jaxseg.cli.arguments import Size, demand_positive, run_experiment
from jaxseg.data import flip, instance_folder, padded_objects, scale_jitter
from jaxseg.fit import Run, evaluation_feed, fit, training_feed
from jaxseg.pretrained import start_from
from jaxseg.report import finish_detection
from jaxseg.runs import model_config, model_from_config
from jaxseg.train import adamw_cosine, first_stages, sgd_steps
from jaxseg.train_detection import Sampling, detection

MOST = 10  # pedestrians of a picture; there are at most eight


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path
    """The folder with train and test."""
    weights: pathlib.Path | None = None
    """Published weights of `--model`, or of its backbone."""
    run: tyro.conf.OmitArgPrefixes[Run] = dataclasses.field(
        default_factory=lambda: Run(steps=600, batch=4, checkpoint_every=100, out=pathlib.Path("runs/pennfudan"))
    )
    """Length, batch, output."""
    model: str = "maskrcnn_resnet50_fpn"
    """A Mask R-CNN of the zoo."""
    size: Size = (512, 512)
    """What the model sees."""
    freeze_at: int = 2
    """With weights: how many stages of the body stay, 2 being the stem and the first."""
    learning_rate: float | None = None
    """Peak: by default 0.005 with weights (SGD), 0.002 from scratch (AdamW)."""
    pictures: int | None = None
    """Test pictures to score; all of them by default."""


def fields(config: Config) -> dict[str, Any]:
    """What of the model is not its class's default."""
    fields: dict[str, Any] = {
        "min_size": min(config.size),
        "max_size": max(config.size),
        "box_detections_per_img": 30,
    }
    if not config.weights:
        fields["norm"] = "batch"
    if config.model == "maskrcnn_small":
        fields |= {"rpn_pre_nms_top_n_train": 300, "rpn_post_nms_top_n_train": 100}
        fields |= {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 100}
    return fields


def main(config: Config) -> None:
    demand_positive(steps=config.run.steps, pictures=config.pictures)
    train, test = (instance_folder(config.data, split, class_name="pedestrian") for split in ("train", "test"))
    run = config.run
    described = model_config(
        config.model, train.num_classes, config.size, train.class_names, train.palette, **fields(config)
    )
    model = model_from_config(described)
    if config.weights:
        milestones = [run.steps * 3 // 5, run.steps * 9 // 10] if run.steps >= 10 else []
        optimizer = sgd_steps(
            config.learning_rate or 5e-3, milestones, warmup=min(100, run.steps // 2), weight_decay=5e-4
        )
    else:
        optimizer = adamw_cosine(config.learning_rate or 2e-3, run.steps)
    fns = detection(
        model,
        optimizer=optimizer,
        max_instances=MOST,
        augment=(flip, scale_jitter(config.size, (0.8, 1.25))),
        sampling=Sampling() if config.model != "maskrcnn_small" else Sampling(anchors=128, boxes=64),
        pretrained=config.weights and start_from(config.weights, model),
        frozen=first_stages(config.freeze_at) if config.weights else (),
    )
    described |= {"learning_rate": config.learning_rate, "weights": str(config.weights), "freeze_at": config.freeze_at}
    result = fit(
        fns,
        training_feed(padded_objects(train, config.size, MOST), config.size, run.batch, run.seed),
        evaluation_feed(padded_objects(test, config.size, MOST), config.size, run.batch),
        run,
        config=described,
    )
    if not result.stopped:
        variables = {"params": result.state.params, **result.state.model_state}
        finish_detection(run.out, described, model, variables, test, pictures=config.pictures)


if __name__ == "__main__":
    run_experiment(main, Config, __doc__)
