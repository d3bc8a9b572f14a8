"""`jaxseg train`: any semantic model on the embedded shapes or on a folder."""

import dataclasses
import difflib
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, PyTree

from jaxseg import losses
from jaxseg.cli.arguments import (
    DISTRIBUTED,
    Size,
    checked,
    demand_output,
    demand_positive,
    demand_shared,
    describe,
    evaluation_split,
    initialize_distributed,
    nearest_model,
    open_split,
    placement_of,
)
from jaxseg.data import (
    color_jitter,
    elastic,
    flip,
    median_frequency,
    scale_crop,
    with_border_weights,
)
from jaxseg.fit import Run, demand_divisible, evaluation_feed, fit, training_feed
from jaxseg.models import DETECTORS, MODELS, scores_classes
from jaxseg.pretrained import fields_of, start_from
from jaxseg.report import finish_run
from jaxseg.runs import model_config, model_from_config
from jaxseg.train import adamw_cosine, sgd_poly, slower, supervised

__all__ = [
    "LOSSES",
    "PIXELWISE",
    "Train",
    "backbone_of",
    "loss_of",
    "train_command",
]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a semantic model. The same command again resumes the run, or says that it is finished."""

    model: tyro.conf.Positional[str]
    """A name that `jaxseg models` lists."""
    out: pathlib.Path
    """Folder of the run: checkpoints, metrics, figures."""
    data: str = "shapes"
    """`shapes`, the embedded data set, or a folder of images and masks."""
    steps: int = 1200
    """Optimizer steps."""
    batch: int = 8
    """Examples a step, over all devices and hosts."""
    size: Size = (128, 128)
    """Height x width at which images are seen; images are scaled to fit and padded."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    evaluate_every: int | None = None
    """Steps between evaluations; the end has one in any case."""
    seed: int = 0
    """Of parameters, data order, augmentation and dropout."""
    parallel: Literal["jit", "pmap"] = "jit"
    """One program over a mesh of all devices, or pmap."""
    shard: str = ""
    """Mesh axes for jit, such as `data=4,fsdp=2` or `data=2,spatial=2,width=2`; default: all devices on data."""
    distributed: Annotated[str | None, tyro.conf.arg(help=DISTRIBUTED)] = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW under warm-up and cosine, or SGD with momentum under poly decay."""
    learning_rate: float | None = None
    """Peak; default 5e-3 for adamw, 1e-2 for sgd."""
    loss: str = "cross_entropy+dice"
    """What is minimised, one or a sum: cross_entropy, ohem, focal, dice, jaccard, tversky, lovasz_softmax, boundary."""
    class_weights: Literal["none", "median"] = "none"
    """`median`: median-frequency balancing of cross_entropy, ohem and focal; the others weigh classes alike."""
    border_weights: bool = False
    """Weigh pixels between touching objects as the U-Net paper does."""
    augment: tuple[Literal["flip", "scale_crop", "color", "elastic"], ...] = ("flip", "scale_crop")
    """Augmentations on the device, in order."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters and statistics stay float32."""
    ema: float | None = None
    """Decay of a moving average of the parameters, used for evaluation and prediction."""
    accumulate: int = 1
    """Microbatches a step, one in memory at a time."""
    remat: bool = False
    """Recompute activations in the backward pass to save memory, where the model can."""
    weights: pathlib.Path | None = None
    """What to start from: a published checkpoint of the model (.pth, .safetensors; another number of classes leaves
    the head out), ImageNet weights of its backbone (also Caffe's VGG-16, .npz), or the folder of a run of the model or
    of a converted checkpoint."""
    backbone_rate: float = 1.0
    """The backbone's share of the learning rate; 0 freezes it, statistics of its batch norms included."""
    ignore_label: int | None = None
    """A label of the folder's masks to ignore, beside 255."""
    validation_fraction: float = 0.1
    """Share of a folder without splits that is kept for evaluation."""


LOSSES: dict[str, Callable] = {
    "cross_entropy": losses.cross_entropy,
    "ohem": losses.ohem_cross_entropy,
    "focal": losses.focal_loss,
    "dice": losses.dice_loss,
    "jaccard": losses.jaccard_loss,
    "tversky": losses.tversky_loss,
    "lovasz_softmax": losses.lovasz_softmax,
    "boundary": losses.boundary_loss,
}
PIXELWISE = ("cross_entropy", "ohem", "focal")  # a class counts by its pixels, so class weights have a use
BORDER = ("cross_entropy", "ohem")


def loss_of(words: str, weights: np.ndarray | None) -> Callable:
    """The sum of the losses named, with class weights and pixel weights where they belong."""
    names = words.split("+")
    for name in names:
        if name not in LOSSES:
            near = difflib.get_close_matches(name, LOSSES, n=1, cutoff=0.0)[0]
            raise ValueError(f'no loss "{name}"; did you mean "{near}"? There are {", ".join(LOSSES)}, and sums with +')
    class_weights = None if weights is None else jnp.asarray(weights)

    def loss(logits: Array, labels: Array, **pixel_weights: Array) -> Array:
        total = jnp.float32(0)
        for name in names:
            options = {"class_weights": class_weights} if name in PIXELWISE else {}
            total += LOSSES[name](logits, labels, **options, **pixel_weights if name in BORDER else {})
        return total

    return loss


def backbone_of(variables: PyTree) -> str:
    """The submodule that is the model's backbone. Raises ValueError where it has none."""
    found = [name for name in ("backbone", "encoder") if name in variables["params"]]
    if not found:
        raise ValueError(
            f"--backbone-rate: this model has no backbone, only {', '.join(sorted(variables['params']))[:60]} ..."
        )
    return found[0]


def demand_sound(config: Train) -> None:
    """Raises ValueError for a number that no run has, before data are read."""
    counts = ("steps", "batch", "checkpoint_every", "evaluate_every", "accumulate")
    demand_positive(**{name: getattr(config, name) for name in counts})
    if config.learning_rate is not None and not 0 < config.learning_rate < math.inf:
        raise ValueError(f"--learning-rate is above 0, got {config.learning_rate}")
    if config.ema is not None and not 0 <= config.ema < 1:
        raise ValueError(f"--ema is a decay from 0 to below 1, such as 0.999, got {config.ema}")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed is from 0 to {2**32 - 1}, got {config.seed}")
    if not 0 <= config.validation_fraction < 1:
        raise ValueError(f"--validation-fraction is a share from 0 to below 1, got {config.validation_fraction}")
    if not 0 <= config.backbone_rate < math.inf:
        raise ValueError(f"--backbone-rate is 0 or more, got {config.backbone_rate}")


def train_command(config: Annotated[Train, tyro.conf.arg(name="")]) -> int:
    """Train a semantic model; resumes where it was stopped."""
    if config.distributed:
        initialize_distributed(config.distributed)
    if config.model not in MODELS:
        raise ValueError(
            f'no model "{config.model}"; did you mean "{nearest_model(config.model)}"? `jaxseg models` lists all'
        )
    if config.model in DETECTORS:
        raise ValueError(f"{config.model} is a detector; experiments/shapes_mask_rcnn.py shows how one is trained")
    if not scores_classes(config.model):
        raise ValueError(
            f"{config.model} scores no classes of pixels; experiments/stylegan_faces.py, progan_faces.py and "
            "style_transfer.py train generators with their discriminators, and style transfer"
        )
    demand_sound(config)
    if config.weights is not None and not config.weights.exists():
        raise FileNotFoundError(f"--weights {config.weights}: no such file or folder")
    loss_of(config.loss, None)
    demand_output(config.out)
    if config.class_weights != "none" and not set(PIXELWISE) & set(config.loss.split("+")):
        raise ValueError(f"--class-weights weigh cross_entropy, ohem and focal; --loss is {config.loss}")
    if config.border_weights and not set(BORDER) & set(config.loss.split("+")):
        raise ValueError(f"--border-weights weigh the cross-entropy; --loss is {config.loss}")
    placement = placement_of(config.parallel, config.shard)
    demand_shared(config.size, placement)
    demand_divisible(config.batch, placement)
    split_first = config.parallel == "pmap" or placement.image_devices != (1, 1)  # over devices, before microbatches
    parts = config.accumulate * (placement.batch_devices if split_first else 1)
    if config.batch % parts:
        where = f" on each of {placement.batch_devices} devices" if split_first else ""
        raise ValueError(
            f"--batch {config.batch} does not split into --accumulate {config.accumulate} microbatches{where}; "
            f"use {max(round(config.batch / parts), 1) * parts}"
        )
    asked = config.ignore_label, config.validation_fraction
    train = open_split(config.data, "train", *asked)
    held_out = open_split(config.data, evaluation_split(config.data), *asked)
    fields: dict[str, Any] = {"dtype": config.dtype} if config.dtype != "float32" else {}
    if config.remat:
        fields["remat"] = True
    if config.weights is not None and (found := fields_of(config.weights, config.model)):
        print(f"{config.model} as in {config.weights}: {', '.join(f'{k}={v}' for k, v in found.items())}", flush=True)
        fields |= found
    described = model_config(config.model, train.num_classes, config.size, train.class_names, train.palette, **fields)
    model = model_from_config(described)
    images = jax.ShapeDtypeStruct((1, *config.size, 3), jnp.float32)
    # is the size one that it takes?
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)

    rate = config.learning_rate or {"adamw": 5e-3, "sgd": 1e-2}[config.optimizer]
    described |= {"data": "shapes" if config.data == "shapes" else "folder", "examples": len(train)}
    described |= {"learning_rate": rate, "steps": config.steps, "batch": config.batch, "seed": config.seed}
    for name in ("optimizer", "loss", "class_weights", "border_weights", "augment", "ema", "accumulate"):
        value = getattr(config, name)
        described[name] = list(value) if isinstance(value, tuple) else value
    described["weights"] = config.weights and config.weights.name
    backbone = backbone_of(shapes) if config.backbone_rate != 1 else ""
    if backbone:
        described["backbone_rate"] = config.backbone_rate
    if (finished := config.out / "results.json").exists():
        results = json.loads(finished.read_text())
        if results["config"] == described:
            print(f"{config.out} is finished: {config.steps} steps of {config.model}\n")
            print((config.out / "results.md").read_text())
            return 0

    report = checked(train, "training data")
    print(f"training data: {describe(report)}")
    print(f"evaluation data: {describe(checked(held_out, 'evaluation data'))}", flush=True)
    weights = median_frequency(report) if config.class_weights == "median" else None
    transforms = {
        "flip": flip,
        "scale_crop": scale_crop(config.size),
        "color": color_jitter(0.3, 0.3, 0.3, 0.05),
        "elastic": elastic(),
    }
    optimizer = (adamw_cosine if config.optimizer == "adamw" else sgd_poly)(rate, config.steps)
    if backbone and config.backbone_rate:
        optimizer = slower(optimizer, config.backbone_rate, [backbone])
    fns = supervised(
        model,
        loss=loss_of(config.loss, weights),
        optimizer=optimizer,
        augment=[transforms[name] for name in config.augment],
        ema_decay=config.ema,
        accumulate=config.accumulate,
        pretrained=None if config.weights is None else start_from(config.weights, model),
        frozen=[backbone] if config.backbone_rate == 0 else (),
    )
    run = Run(config.steps, config.batch, config.out, config.seed, config.checkpoint_every, config.evaluate_every)
    source = with_border_weights(train) if config.border_weights else train
    result = fit(
        fns,
        training_feed(source, config.size, config.batch, config.seed),
        evaluation_feed(held_out, config.size, config.batch),
        run,
        placement=placement,
        config=described,
    )
    if not result.stopped:
        finish_run(config.out, described, result.scores, held_out)
    return 0
