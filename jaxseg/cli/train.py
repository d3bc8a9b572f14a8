"""`jaxseg train`: any semantic model on the embedded shapes or on a folder."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxseg import losses, parallel
from jaxseg.cli.arguments import Size, checked, describe, evaluation_split, nearest_model, open_split
from jaxseg.data import (
    color_jitter,
    elastic,
    flip,
    median_frequency,
    scale_crop,
    with_border_weights,
)
from jaxseg.fit import Run, evaluation_feed, fit, training_feed
from jaxseg.models import DETECTORS, MODELS
from jaxseg.report import finish_run
from jaxseg.runs import model_config, model_from_config
from jaxseg.train import adamw_cosine, sgd_poly, supervised
from jaxseg.weights.vgg import load_encoder

__all__ = ["Train", "placement_of", "train_command"]


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
    """Mesh axes for jit, such as `data=4,fsdp=2` or `data=2,spatial=4`; default: all devices on data."""
    distributed: str | None = None
    """Several processes: `auto` on a cluster that JAX knows, else `ADDRESS:PORT,PROCESSES,THIS`."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW under warm-up and cosine, or SGD with momentum under poly decay."""
    learning_rate: float | None = None
    """Peak; default 5e-3 for adamw, 1e-2 for sgd."""
    loss: Literal["cross_entropy", "dice", "focal", "cross_entropy+dice"] = "cross_entropy+dice"
    """What is minimised."""
    class_weights: Literal["none", "median"] = "none"
    """`median`: median-frequency balancing of the cross-entropy or focal loss."""
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
    """Weights of the encoder, for models on VGG: torchvision's state_dict (.pth, .safetensors), or Caffe's (.npz)."""
    ignore_label: int | None = None
    """A label of the folder's masks to ignore, beside 255."""
    validation_fraction: float = 0.1
    """Share of a folder without splits that is kept for evaluation."""


def placement_of(kind: str, shard: str) -> parallel.Placement:
    """The placement that `--parallel` and `--shard` ask for."""
    if kind == "pmap":
        if shard:
            raise ValueError("--shard belongs to --parallel jit; pmap is data-parallel over all devices")
        return parallel.over_pmap()
    axes: dict[str, Any] = {}
    for part in filter(None, shard.split(",")):
        name, _, size = part.partition("=")
        if name not in ("data", "fsdp", "spatial") or not size.isdecimal():
            raise ValueError(f"--shard is made of data=N, fsdp=N and spatial=N, got {part!r}; e.g. data=4,fsdp=2")
        axes[name] = int(size)
    return parallel.over_mesh(parallel.make_mesh(**axes))


def initialize_distributed(words: str) -> None:
    """Joins the other processes before any device is used."""
    if words == "auto":
        jax.distributed.initialize()
        return
    parts = words.split(",")
    if len(parts) != 3 or not all(p.isdecimal() for p in parts[1:]):
        raise ValueError(
            f"--distributed is auto or ADDRESS:PORT,PROCESSES,THIS, such as 10.0.0.1:1234,2,0; got {words}"
        )
    jax.distributed.initialize(parts[0], int(parts[1]), int(parts[2]))


def _loss(config: Train, weights: np.ndarray | None) -> Callable:
    class_weights = None if weights is None else jnp.asarray(weights)
    cross_entropy = functools.partial(losses.cross_entropy, class_weights=class_weights)
    match config.loss:
        case "cross_entropy":
            return cross_entropy
        case "dice":
            return losses.dice_loss
        case "focal":
            return functools.partial(losses.focal_loss, class_weights=class_weights)
        case "cross_entropy+dice":
            return lambda logits, labels, **w: cross_entropy(logits, labels, **w) + losses.dice_loss(logits, labels)
    raise AssertionError(config.loss)


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
    if config.border_weights and config.loss not in ("cross_entropy", "cross_entropy+dice"):
        raise ValueError(f"--border-weights weigh the cross-entropy; --loss is {config.loss}")
    placement = placement_of(config.parallel, config.shard)
    asked = config.ignore_label, config.validation_fraction
    train = open_split(config.data, "train", *asked)
    held_out = open_split(config.data, evaluation_split(config.data), *asked)
    fields: dict[str, Any] = {"dtype": config.dtype} if config.dtype != "float32" else {}
    if config.remat:
        fields["remat"] = True
    described = model_config(config.model, train.num_classes, config.size, train.class_names, train.palette, **fields)
    model = model_from_config(described)
    images = jax.ShapeDtypeStruct((1, *config.size, 3), jnp.float32)
    jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)  # is the size one it takes?

    rate = config.learning_rate or {"adamw": 5e-3, "sgd": 1e-2}[config.optimizer]
    described |= {"data": "shapes" if config.data == "shapes" else "folder", "examples": len(train)}
    described |= {"learning_rate": rate, "steps": config.steps, "batch": config.batch, "seed": config.seed}
    for name in ("optimizer", "loss", "class_weights", "border_weights", "augment", "ema", "accumulate"):
        value = getattr(config, name)
        described[name] = list(value) if isinstance(value, tuple) else value
    described["weights"] = config.weights and config.weights.name
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
    fns = supervised(
        model,
        loss=_loss(config, weights),
        optimizer=optimizer,
        augment=[transforms[name] for name in config.augment],
        ema_decay=config.ema,
        accumulate=config.accumulate,
        pretrained=None if config.weights is None else functools.partial(load_encoder, config.weights),
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
    if not result.stopped and jax.process_index() == 0:
        finish_run(config.out, described, result.scores, held_out)
    return 0
