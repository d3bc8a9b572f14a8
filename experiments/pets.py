"""FCN on the Oxford pets (Parkhi et al. 2012): pet or background, fine-tuned from torchvision's COCO weights.

    python experiments/pets.py --data DIR --weights fcn_resnet101_coco.pth --out runs/pets

The paper segments by GrabCut and has no network. This is the recipe of d-f/oxford-semantic-segmentation: every layer
of FCN-ResNet-101 trained on at 128x128, batch 32, learning rate 1e-3, 16 epochs, for a mean IoU of 0.93 on a random
twentieth of the images, which is what to expect. Here the split is the official one, 3,680 images to train and 3,669
to test; the optimizer is AdamW under warm-up and cosine; and the trimaps' border, neither pet nor background, is
ignored. Minutes on one GPU. Without `--weights` it starts fresh.
"""

import dataclasses
import pathlib

import tyro

from jaxseg.cli.arguments import Size, bar, run_experiment
from jaxseg.data import flip, oxford_pets, scale_crop
from jaxseg.fit import Run, fit, training_feed
from jaxseg.losses import cross_entropy
from jaxseg.predict import predictor, score
from jaxseg.pretrained import fields_of, start_from
from jaxseg.report import finish_run
from jaxseg.runs import load_run, model_config, model_from_config
from jaxseg.train import adamw_cosine, supervised


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path
    """The folder with images and annotations."""
    run: tyro.conf.OmitArgPrefixes[Run] = dataclasses.field(
        default_factory=lambda: Run(steps=1840, batch=32, out=pathlib.Path("runs/pets"))
    )
    """Length, batch, output."""
    model: str = "fcn_resnet101"
    """Any semantic model of the zoo."""
    size: Size = (128, 128)
    """What the model sees."""
    learning_rate: float = 1e-3
    """Peak."""
    weights: pathlib.Path | None = None
    """What to start from, as `jaxseg train --weights` takes it."""


def main(config: Config) -> None:
    train, test = oxford_pets(config.data, "trainval"), oxford_pets(config.data, "test")
    fields = fields_of(config.weights, config.model)
    described = model_config(config.model, train.num_classes, config.size, train.class_names, train.palette, **fields)
    model = model_from_config(described)
    fns = supervised(
        model,
        loss=cross_entropy,
        optimizer=adamw_cosine(config.learning_rate, config.run.steps),
        augment=(flip, scale_crop(config.size, (0.75, 1.25))),
        pretrained=config.weights and start_from(config.weights, model),
    )
    feed = training_feed(train, config.size, config.run.batch, config.run.seed)
    result = fit(fns, feed, None, config.run, config=described | {"learning_rate": config.learning_rate})
    if not result.stopped:
        predict = predictor(*load_run(config.run.out), config.size)
        with bar("scoring") as progress:
            finish_run(config.run.out, described, score(predict, test, progress), test)


if __name__ == "__main__":
    run_experiment(main, Config, __doc__)
