"""What each model of the zoo is measured and compiled by: its forward pass and its training step, as shapes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxseg.losses import cross_entropy
from jaxseg.models import create_model, scores_classes
from jaxseg.models.adain_transfer import AdaINTransfer
from jaxseg.models.fast_rcnn import FastRCNN
from jaxseg.models.faster_rcnn import FasterRCNN
from jaxseg.models.progan import GrowingDiscriminator, ProGANGenerator
from jaxseg.models.stylegan import StyleGANGenerator
from jaxseg.train import TrainFns, supervised
from jaxseg.train_adversarial import PROGAN_LOSS, STYLEGAN_LOSS, adversarial
from jaxseg.train_detection import detection
from jaxseg.train_style import style_transfer

__all__ = ["Forward", "Training", "forward", "is_trained_alone", "sized_model", "training"]

PROPOSALS = 2000  # selective search's of an image (Girshick et al. 2014, section 2.1)
INSTANCES = 32  # places for objects in an image that a detector is trained on


class Forward(NamedTuple):
    """A forward pass: `apply(variables, *inputs)`."""

    apply: Callable[..., PyTree]
    variables: PyTree  # shapes
    inputs: tuple[jax.ShapeDtypeStruct, ...]


class Training(NamedTuple):
    """A training step: `fns.update(state, batch, key)`."""

    fns: TrainFns
    batch: dict[str, jax.ShapeDtypeStruct]


def sized_model(name: str, num_classes: int, size: tuple[int, int], **fields: Any) -> nn.Module:
    """The model of that name for images of `size` (h, w), with `num_classes` where it scores classes.

    Raises ValueError for a generator or discriminator where `size` is no square.
    """
    model = create_model(name, num_classes if scores_classes(name) else None, **fields)
    if not hasattr(model, "resolution"):
        return model
    if size[0] != size[1]:
        raise ValueError(f"{name} makes squares, got {size[0]}x{size[1]}; use {size[0]}x{size[0]}")
    return create_model(name, resolution=size[0], **fields)


def _images(size: tuple[int, int], batch: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)


def forward(model: nn.Module, size: tuple[int, int], batch: int) -> Forward:
    """The forward pass of `batch` images of `size`, as it is after training; of a generator, that makes them."""
    inputs_of: Callable = getattr(model, "inputs", lambda images: (images,))
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), *inputs_of(_images(size, 1)))
    return Forward(functools.partial(model.apply, train=False), variables, inputs_of(_images(size, batch)))


def _partner(generator: Any) -> tuple[nn.Module, Any]:
    """The discriminator that a generator is published with, and the loss."""
    name, loss = "progan_discriminator", PROGAN_LOSS
    if isinstance(generator, StyleGANGenerator):
        name, loss = "stylegan_discriminator", STYLEGAN_LOSS
    return create_model(name, resolution=generator.resolution, dtype=generator.dtype), loss


def is_trained_alone(model: nn.Module) -> bool:
    """False for a discriminator: the training step is its generator's."""
    return not isinstance(model, GrowingDiscriminator)


def training(
    model: nn.Module, size: tuple[int, int], batch: int, optimizer: optax.GradientTransformation | None = None
) -> Training:
    """The training step on `batch` images of `size`, as jaxseg trains such a model; AdamW unless told otherwise.

    Semantic models by cross-entropy, detectors by torchvision's losses, a style transfer's decoder by Huang and
    Belongie's, and a generator together with its discriminator, at its last resolution. Raises ValueError for a
    discriminator, which is trained with its generator.
    """
    optimizer = optax.adamw(1e-3) if optimizer is None else optimizer
    image = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    label = jax.ShapeDtypeStruct((batch, *size), jnp.int32)
    match model:
        case FasterRCNN():
            fns = detection(model, optimizer=optimizer, max_instances=INSTANCES)
            return Training(fns, {"image": image, "label": label, "instances": label})
        case FastRCNN():  # and R-CNN: without proposals of their own
            fns = detection(model, optimizer=optimizer, max_instances=INSTANCES)
            proposals = jax.ShapeDtypeStruct((batch, PROPOSALS, 4), jnp.float32)
            return Training(fns, {"image": image, "label": label, "instances": label, "proposals": proposals})
        case AdaINTransfer():
            fns = style_transfer(model, optimizer=optimizer, pretrained=lambda variables: variables, crop=min(size))
            return Training(fns, {"image": image, "style": image})
        case ProGANGenerator() | StyleGANGenerator():
            discriminator, loss = _partner(model)
            stage = (model.resolution // 4).bit_length() - 1
            fns = adversarial(model, discriminator, loss=loss, optimizers=(optimizer, optimizer), stage=stage)
            return Training(fns, {"image": image})
        case GrowingDiscriminator():
            raise ValueError("a discriminator is trained with its generator; name that one")
    return Training(supervised(model, loss=cross_entropy, optimizer=optimizer), {"image": image, "label": label})
