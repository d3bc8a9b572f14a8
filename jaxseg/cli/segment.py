"""Predictors for `jaxseg predict` of a model that is loaded."""

import functools

import jax
import numpy as np

from jaxseg.cli import kept
from jaxseg.cli.arguments import placement_of
from jaxseg.cli.predict import Predict, Question, Segmenter, sees_once
from jaxseg.cli.trained import Trained
from jaxseg.predict.canvas import canvas_predictor
from jaxseg.predict.sharded import sharded_predictor
from jaxseg.predict.sliding import sliding_predictor
from jaxseg.predict.whole import batch_predictor, compiled_logits, logits_size
from jaxseg.weights.published import entries_of

__all__ = ["new_segmenter"]


def _demand_consistent(config: Predict) -> None:
    """Raises ValueError for options that no model takes together."""
    if config.long_side is not None and (config.window is None or config.long_side < 1):
        raise ValueError("--long-side is a positive number of pixels, and belongs to --window; without, --size says it")
    if config.stride != Predict.stride and sees_once(config):
        raise ValueError(
            f"--stride is between windows: give --window HxW, or leave --stride {config.stride:g} out: without windows "
            "an image is seen once"
        )
    if config.window is not None and config.size is not None:
        raise ValueError("--window says at which size the model sees an image: leave --size out")
    if config.shard and not (sees_once(config) and config.size is None):
        raise ValueError("--shard sees images whole, at their own size: leave --window, --scales, --flip, --size out")


def _compiled(question: Question, trained: Trained, images: int) -> Segmenter:
    """`batch_predictor`, compiled for the next start, too."""
    model, variables, size, palette = trained
    apply = compiled_logits(model)
    output_size = logits_size(apply, variables, size)
    seen = images if output_size == size else 1  # in tiles, one at a time
    program = kept.compiled_for(apply, variables, (seen, *size, 3))
    about = {"size": size, "output_size": output_size, "palette": palette.tolist()}
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, (shape, _) in question.shapes.items()}
    kept.keep(question.name, program, variables, entries_of(blank, model), about)
    logits = functools.partial(program, jax.device_put(jax.tree.leaves(variables)))
    return Segmenter(canvas_predictor(logits, size, output_size, images), images, palette)


def new_segmenter(config: Predict, trained: Trained, images: int, question: Question | None) -> Segmenter:
    """What sees up to so many images at once: whole, in windows, or in shares of devices.

    With a `question` it is compiled for the next start, too.
    """
    _demand_consistent(config)
    model, variables, size, palette = trained
    together = min(config.batch, images)
    if config.shard:
        placement = placement_of("jit", config.shard)
        return Segmenter(sharded_predictor(model, variables, placement, batch=config.batch), together, palette)
    if question is not None:
        return _compiled(question, trained, together)
    if sees_once(config):
        return Segmenter(batch_predictor(model, variables, size, together), together, palette)
    base = size if config.window is None else None
    if config.long_side is not None:
        base = (config.long_side, config.long_side)
    predict = sliding_predictor(
        model,
        variables,
        config.window or size,
        stride=config.stride,
        scales=config.scales,
        flip=config.flip,
        base=base,
        batch=config.batch,
    )
    return Segmenter(lambda images: [predict(image) for image in images], 1, palette)
