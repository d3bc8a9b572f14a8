"""AdaIN style transfer (Huang and Belongie 2017), the decoder trained on photographs and paintings of one's own.

    python experiments/style_transfer.py --content DIR --style DIR --encoder vgg16_imagenet_conv.npz --out runs/style
    python experiments/style_transfer.py --content DIR --style DIR --encoder vgg_normalised.pth --vgg vgg19 \
        --size 512 --crop 256 --steps 160000 --batch 8 --learning-rate 1e-4 --decay 5e-5 --warm-up 0 \
        --out runs/style256 # published

The first sees 128 px, a few hundred steps on 2 CPU cores: its rate rises to five times the published one and falls to
half of that. A run leaves `grid.png`, content x style x alpha, and is what `jaxseg stylize photo.jpg painting.jpg
--weights runs/style` uses.
"""

import dataclasses
import functools
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from jaxseg.cli.arguments import demand_positive, run_experiment
from jaxseg.data import pictures
from jaxseg.fit import Feed, Run, evaluation_feed, fit, training_feed
from jaxseg.losses import OFFICIAL_WEIGHTS, PORT_WEIGHTS
from jaxseg.models.adain_transfer import ENCODERS, AdaINTransfer
from jaxseg.train_style import adam_hyperbolic, style_transfer
from jaxseg.weights import load_adain_transfer, normalize_encoder


@dataclasses.dataclass(frozen=True)
class Config:
    content: pathlib.Path
    """Folder of photographs."""
    style: pathlib.Path
    """Folder of paintings."""
    encoder: pathlib.Path
    """Weights of the fixed encoder: pytorch-AdaIN's, torchvision's, or Caffe's in an .npz."""
    run: tyro.conf.OmitArgPrefixes[Run] = dataclasses.field(
        default_factory=lambda: Run(steps=600, batch=2, checkpoint_every=50, out=pathlib.Path("runs/style"))
    )
    """Length, batch, output."""
    vgg: Literal["vgg16", "vgg19"] = "vgg16"
    """The encoder's architecture."""
    size: int = 160
    """Pixels of the squares that pictures are scaled to."""
    crop: int = 128
    """Pixels of the random squares of these that a step sees."""
    learning_rate: float = 5e-4
    """Adam's at the start; published 1e-4."""
    decay: float = 2e-3
    """The rate is divided by 1 + decay * step; published 5e-5."""
    warm_up: int = 50
    """Steps over which the rate rises to that; published 0."""
    weighting: Literal["port", "official"] = "port"
    """Of the style loss."""
    held_out: int = 16
    """Pictures of each kind kept for evaluation and for the grid."""


def paired(content: Feed, style: Feed) -> Feed:
    """Batches with a photograph and a painting for each place."""

    def batches(start):
        for photographs, paintings in zip(content.batches(start), style.batches(start), strict=False):
            yield {"image": photographs["image"], "style": paintings["image"]}

    return Feed(batches, lambda step: content.names(step) + style.names(step))


def save_grid(path: pathlib.Path, model: AdaINTransfer, variables, contents, styles, alphas) -> None:
    """A row for each content and alpha, a column for each style; the content before them and the styles above."""
    transfer = jax.jit(functools.partial(model.apply, train=False))
    blank = np.ones_like(contents[0])
    rows = [[blank, *styles]]
    for content in contents:
        for alpha in alphas:
            images = [transfer(variables, content[None], style[None], alpha=alpha)[0] for style in styles]
            rows.append([content, *(image[: content.shape[0], : content.shape[1]] for image in images)])
    grid = np.concatenate([np.concatenate(row, 1) for row in rows])
    Image.fromarray((np.clip(grid, 0, 1) * 255).round().astype(np.uint8)).save(path)


def main(config: Config) -> None:
    demand_positive(steps=config.run.steps, batch=config.run.batch, size=config.size, crop=config.crop)
    if config.held_out % config.run.batch:  # a batch filled up would count what fills it
        raise SystemExit(f"--held-out is a multiple of the batch {config.run.batch}, got {config.held_out}")
    photographs, paintings = pictures(config.content, config.size), pictures(config.style, config.size)
    n = config.held_out
    if not 0 < n < min(len(photographs), len(paintings)):
        raise SystemExit(
            f"--held-out {n} of {len(photographs)} photographs and {len(paintings)} paintings: hold some out, and "
            "leave some to train on"
        )

    def part(source, positions):
        pick = lambda values: tuple(values[i] for i in positions)  # noqa: E731
        return dataclasses.replace(source, paths=pick(source.paths), classes=pick(source.classes))

    held_out = [part(s, range(0, len(s), max(len(s) // n, 1))[:n]) for s in (photographs, paintings)]
    kept = {path for source in held_out for path in source.paths}
    training = [part(s, [i for i, path in enumerate(s.paths) if path not in kept]) for s in (photographs, paintings)]
    model = AdaINTransfer(vgg=ENCODERS[config.vgg])

    def pretrained(variables):
        variables = load_adain_transfer(model, encoder=config.encoder, variables=variables)
        if config.encoder.suffix == ".pth" and "normalised" in config.encoder.name:
            return variables
        sample = np.stack([training[0][i]["image"] for i in range(0, len(training[0]), max(len(training[0]) // 16, 1))])
        return normalize_encoder(model, variables, jnp.float32(sample[:16]) / 255)

    fns = style_transfer(
        model,
        optimizer=adam_hyperbolic(config.learning_rate, config.decay, config.warm_up),
        pretrained=pretrained,
        crop=config.crop,
        weights={"port": PORT_WEIGHTS, "official": OFFICIAL_WEIGHTS}[config.weighting],
    )
    size = (config.size, config.size)
    run = config.run
    feed = paired(*(training_feed(s, size, run.batch, run.seed + i) for i, s in enumerate(training)))

    def evaluation():
        each = [evaluation_feed(s, size, run.batch)() for s in held_out]
        return ({"image": a["image"], "style": b["image"]} for a, b in zip(*each, strict=True))

    described = {
        "model": "adain_transfer",
        "encoder": config.vgg,
        **{
            k: getattr(config, k)
            for k in ("size", "crop", "learning_rate", "decay", "warm_up", "weighting", "held_out")
        },
    }
    result = fit(fns, feed, evaluation, run, config=described)
    if not result.stopped and jax.process_index() == 0:
        variables = {"params": jax.device_get(result.state.params)}
        show = [[jnp.float32(s[i]["image"]) / 255 for i in range(0, len(s), max(len(s) // 3, 1))[:3]] for s in held_out]
        save_grid(run.out / "grid.png", model, variables, *show, alphas=(0.5, 1.0))


if __name__ == "__main__":
    run_experiment(main, Config, __doc__)
