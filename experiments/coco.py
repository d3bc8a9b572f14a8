"""Mask R-CNN ResNet-50 FPN on COCO 2017 (He et al. 2017; Lin et al. 2017), by the recipe of Detectron2's model zoo.

    python experiments/coco.py --data DIR --weights resnet50.pth --out runs/coco              # 1x: 90,000 steps of 16
    python experiments/coco.py --data DIR --weights resnet50.pth --schedule 3 --out runs/coco3

DIR holds train2017, val2017 and annotations/instances_{train,val}2017.json. SGD 0.02 with momentum 0.9 and weight
decay 1e-4, 1,000 steps of warm-up, a tenth at 2/3 and 8/9 of the run (1x) or at 7/9 and 25/27 (3x); frozen batch norm,
stem and first stage frozen; mirror images. Expected box and mask AP on val2017: 38.6 and 35.2 with 1x, 41.0 and 37.2
with 3x (Detectron2's R50-FPN; its strides are in the 1x1 convolutions, torchvision's and these in the 3x3). `--lsj`
instead jitters the scale by 0.1 to 2 and pastes objects of the next picture (Ghiasi et al. 2021), which pays from some
100 epochs on, with `--norm batch`. `--weights` are torchvision's ImageNet ResNet-50, with which `--norm frozen` has its
epsilon, or a whole published detector to fine-tune. The canvas holds each picture scaled to fit, where Detectron2
scales the short side to 640-800.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import tyro

from jaxseg.cli.arguments import Size, demand_positive, run_experiment
from jaxseg.data import coco, copy_paste, flip, padded_objects, scale_jitter
from jaxseg.fit import Run, evaluation_feed, fit, training_feed
from jaxseg.pretrained import start_from
from jaxseg.report import finish_detection
from jaxseg.runs import model_config, model_from_config
from jaxseg.train import first_stages, sgd_steps
from jaxseg.train_detection import Sampling, detection

FALLS = {1: (2 / 3, 8 / 9), 3: (7 / 9, 25 / 27)}  # of the run, where the rate falls
STEPS = 90_000  # of 16 pictures: 1x


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path
    """The folder with train2017, val2017 and annotations."""
    weights: pathlib.Path | None = None
    """ImageNet's weights of the body, or a published detector."""
    schedule: Literal[1, 3] = 1
    """1x or 3x."""
    run: tyro.conf.OmitArgPrefixes[Run] = dataclasses.field(
        default_factory=lambda: Run(steps=0, batch=16, checkpoint_every=2500, out=pathlib.Path("runs/coco"))
    )
    """Length (0: the schedule's), batch, output."""
    model: str = "maskrcnn_resnet50_fpn"
    """A detector of the zoo."""
    norm: Literal["frozen", "batch", "group"] | None = None
    """Of the body; by default the model's own."""
    size: Size = (1344, 1344)
    """The canvas; both of landscape and portrait pictures."""
    max_instances: int = 100
    """Objects of a picture that are learnt from; the smallest beyond are counted."""
    learning_rate: float = 0.02
    """Peak, for batches of 16."""
    lsj: bool = False
    """Large-scale jitter and copy-paste."""
    small_samples: bool = False
    """Few anchors and boxes, for a trial on a laptop."""
    pictures: int | None = None
    """Validation pictures to score; all of them by default."""


def main(config: Config) -> None:
    demand_positive(steps=config.run.steps or None, max_instances=config.max_instances, pictures=config.pictures)
    train, val = (
        coco(
            config.data / f"{split}2017",
            config.data / "annotations" / f"instances_{split}2017.json",
            contiguous=False,
            drop_empty=split == "train",
        )
        for split in ("train", "val")
    )
    run = dataclasses.replace(config.run, steps=config.run.steps or STEPS * config.schedule)
    fields: dict[str, Any] = {"min_size": min(config.size), "max_size": max(config.size)}
    if config.norm is not None:
        fields["norm"] = config.norm
    described = model_config(config.model, train.num_classes, config.size, train.class_names, train.palette, **fields)
    model = model_from_config(described)
    fns = detection(
        model,
        optimizer=sgd_steps(
            config.learning_rate,
            sorted({int(run.steps * share) for share in FALLS[config.schedule]}),
            warmup=min(1000, run.steps // 2),
        ),
        max_instances=config.max_instances,
        augment=(flip, scale_jitter(config.size)) if config.lsj else (flip,),
        batch_augment=(copy_paste,) if config.lsj else (),
        sampling=Sampling(anchors=32, boxes=16) if config.small_samples else Sampling(),
        pretrained=config.weights and start_from(config.weights, model),
        frozen=first_stages(2) if config.weights else (),
    )
    described |= {"learning_rate": config.learning_rate, "lsj": config.lsj, "schedule": config.schedule}
    described |= {"weights": str(config.weights), "max_instances": config.max_instances}
    described |= {"small_samples": config.small_samples}
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
