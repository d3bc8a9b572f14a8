"""U-Net on CamVid from ImageNet's VGG-16, in minutes: the encoder frozen, slower than the decoder, or as fast.

    python experiments/camvid_finetune.py --data DIR --weights vgg16_imagenet_conv.npz --backbone slower --out runs/ft

`frozen` keeps the encoder bit for bit, with its batch norms at the identity, which is plain VGG-16; `slower` gives it
a tenth of the decoder's learning rate; `same` the decoder's; `scratch` leaves the weights out. DIR is as for camvid.py.
Scores are of the test part at the labels' own 360x480, from images seen at 72x96. After 80 steps of 4, five minutes or
so on 2 CPU cores with other work beside it, mean IoU is 0.217 from scratch, 0.237 frozen and 0.290 slower
(experiments/results/camvid_finetune). Published, at full resolution and for many epochs of the same 367 images: U-Net
0.498, SegNet VGG-16 BN 0.577 (both reimplemented by GitLanx).
"""

import dataclasses
import functools
import pathlib
from typing import Literal

import jax.numpy as jnp
import tyro

from jaxseg.cli.arguments import Size, run_experiment
from jaxseg.data import camvid, check_data, color_jitter, flip, median_frequency, scale_crop
from jaxseg.fit import Run, evaluation_feed, fit, training_feed
from jaxseg.losses import cross_entropy, dice_loss
from jaxseg.report import finish_run
from jaxseg.runs import model_config, model_from_config
from jaxseg.train import adamw_cosine, slower, supervised
from jaxseg.weights import load_encoder

LABEL_SIZE = (360, 480)
NARROW = (64, 64, 32, 16, 16)  # a decoder that costs little beside the encoder


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path
    """The CamVid folder."""
    weights: pathlib.Path
    """ImageNet weights of VGG-16: torchvision's state_dict, or Caffe's convolutions (.npz)."""
    run: tyro.conf.OmitArgPrefixes[Run] = dataclasses.field(
        default_factory=lambda: Run(steps=80, batch=4, checkpoint_every=10, out=pathlib.Path("runs/camvid_finetune"))
    )
    """Length, batch, output."""
    backbone: Literal["frozen", "slower", "same", "scratch"] = "slower"
    """What becomes of the encoder."""
    size: Size = (72, 96)
    """What the model sees."""
    learning_rate: float = 4e-3
    """Peak, of the decoder."""


def main(config: Config) -> None:
    train = camvid(config.data, "train")
    test = camvid(config.data, "test")
    class_weights = jnp.sqrt(median_frequency(check_data(train)))  # the full balance costs the large classes more
    fields = {"center": False, "decoder_features": NARROW}
    described = model_config(
        "unet_vgg16_bn", train.num_classes, config.size, train.class_names, train.palette, **fields
    )

    def loss(logits, labels):
        return cross_entropy(logits, labels, class_weights=class_weights) + dice_loss(logits, labels)

    optimizer = adamw_cosine(config.learning_rate, config.run.steps)
    fns = supervised(
        model_from_config(described),
        loss=loss,
        optimizer=slower(optimizer, 0.1, ["encoder"]) if config.backbone == "slower" else optimizer,
        augment=(flip, scale_crop(config.size, (0.75, 1.75)), color_jitter(0.3, 0.3, 0.3, 0.03)),
        pretrained=None if config.backbone == "scratch" else functools.partial(load_encoder, config.weights),
        frozen=["encoder"] if config.backbone == "frozen" else (),
    )
    run = config.run
    result = fit(
        fns,
        training_feed(train, config.size, run.batch, run.seed),
        evaluation_feed(test, config.size, run.batch, LABEL_SIZE),
        run,
        config=described | {"backbone": config.backbone, "learning_rate": config.learning_rate},
    )
    if not result.stopped:
        finish_run(run.out, described, result.scores, test)


if __name__ == "__main__":
    run_experiment(main, Config, __doc__)
