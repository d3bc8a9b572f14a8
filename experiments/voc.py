"""PSPNet on PASCAL VOC 2012 with SBD (Zhao et al. 2017, section 5.3), by the recipe of hszhao/semseg.

    python experiments/voc.py --data DIR --sbd DIR --weights resnet50_v2.pth --out runs/voc

10,582 images of 21 classes, 50 epochs of 16: SGD 0.01 for the backbone and ten times that for the rest, poly 0.9,
momentum 0.9, weight decay 1e-4 (here of kernels only), crops of 473 at scales of 0.5 to 2, turns to 10 degrees, mirror
images, auxiliary loss 0.4, batch norm over the global batch. The validation part is scored by windows of 473 over
images of 512, with mirror images: expected mean IoU 0.7705 with ResNet-50, 0.7907 with ResNet-101 (semseg's README,
where it took 3.3 h on eight RTX 2080 Ti). `--weights` are semseg's ImageNet ResNet-50 with the deep stem; without, it
starts fresh.
"""

import dataclasses
import pathlib

import tyro

from jaxseg.cli.arguments import Size, bar, run_experiment
from jaxseg.data import flip, rotate, scale_crop, voc
from jaxseg.fit import Run, fit, training_feed
from jaxseg.losses import cross_entropy
from jaxseg.predict import score, sliding_predictor
from jaxseg.pretrained import fields_of, start_from
from jaxseg.report import finish_run
from jaxseg.runs import load_run, model_config, model_from_config
from jaxseg.train import sgd_poly, slower, supervised


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path
    """The folder with VOCdevkit."""
    sbd: pathlib.Path
    """The folder with benchmark_RELEASE."""
    run: tyro.conf.OmitArgPrefixes[Run] = dataclasses.field(
        default_factory=lambda: Run(steps=33_069, batch=16, out=pathlib.Path("runs/voc"))
    )
    """Length, batch, output."""
    model: str = "pspnet_resnet50"
    """A model of the zoo with a backbone."""
    size: Size = (473, 473)
    """Crops and windows."""
    weights: pathlib.Path | None = None
    """What to start from, as `jaxseg train --weights` takes it."""


def main(config: Config) -> None:
    train, val = voc(config.data, "trainaug", config.sbd), voc(config.data, "val")
    fields = fields_of(config.weights, config.model)
    described = model_config(config.model, train.num_classes, config.size, train.class_names, train.palette, **fields)
    model = model_from_config(described)
    fns = supervised(
        model,
        loss=cross_entropy,
        optimizer=slower(sgd_poly(0.1, config.run.steps, weight_decay=1e-4), 0.1, ["backbone"]),
        augment=(scale_crop(config.size), rotate(10.0), flip),
        pretrained=config.weights and start_from(config.weights, model),
    )
    feed = training_feed(train, config.size, config.run.batch, config.run.seed)
    result = fit(fns, feed, None, config.run, config=described)
    if not result.stopped:
        predict = sliding_predictor(*load_run(config.run.out), config.size, base=(512, 512), flip=True)
        with bar("scoring") as progress:
            finish_run(config.run.out, described, score(predict, val, progress), val)


if __name__ == "__main__":
    run_experiment(main, Config, __doc__)
