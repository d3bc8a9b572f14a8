"""Progressive growing: a run of `fit` for each resolution, one after the other, from a schedule in images."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from jaxseg import checkpoint
from jaxseg.data.pictures import PictureSource
from jaxseg.fit import FitResult, Run, fit, training_feed
from jaxseg.parallel import Placement
from jaxseg.train import TrainFns, TrainState
from jaxseg.train_adversarial import grown

__all__ = ["BATCHES", "RATES", "Stage", "adam", "grow", "load_generator", "schedule"]

BATCHES = {4: 512, 8: 256, 16: 128, 32: 64}  # on 8 GPUs, and 32 from 64x64 on, by both papers' code
RATES = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}  # and 0.001 below


class Stage(NamedTuple):
    """A resolution's part of a run: its fade and then its training are one program."""

    stage: int  # doublings from 4x4
    batch: int
    fade_images: int
    steps: int
    learning_rate: float

    @property
    def resolution(self) -> int:
        return 4 << self.stage


def adam(rate: float) -> optax.GradientTransformation:
    """Adam as both papers have it."""
    return optax.adam(rate, b1=0.0, b2=0.99, eps=1e-8)


def schedule(
    start: int,
    resolution: int,
    *,
    train_kimg: float = 600.0,
    fade_kimg: float = 600.0,
    total_kimg: float | None = None,
    batches: Mapping[int, int] = BATCHES,
    rates: Mapping[int, float] = RATES,
    least_batch: int = 32,
    base_rate: float = 0.001,
) -> tuple[Stage, ...]:
    """The stages from `start` to `resolution`: `fade_kimg` thousand images of fading, `train_kimg` after it.

    The first stage has no fade. The last goes on until `total_kimg` thousand images in all, where that is
    given. Batches and rates are by resolution, `least_batch` and `base_rate` where there is none. Raises
    ValueError for resolutions that are not powers of two in order, numbers of images below zero, none in all
    or no end, and rates that are not above zero.
    """
    if start < 4 or start & (start - 1) or resolution & (resolution - 1) or resolution < max(start, 8):
        raise ValueError(f"growth goes by powers of two, from 4 or more, got {start} to {resolution}")
    if not (fade_kimg >= 0 and train_kimg >= 0):
        raise ValueError(f"fade_kimg and train_kimg are thousands of images, got {fade_kimg} and {train_kimg}")
    if total_kimg is not None and total_kimg < 0:
        raise ValueError(f"total_kimg is thousands of images, or None, got {total_kimg}")
    if not all(0 < rate < math.inf for rate in (base_rate, *rates.values())):
        raise ValueError(f"learning rates are above 0, got {', '.join(map(str, (base_rate, *rates.values())))}")
    if not fade_kimg + train_kimg + (total_kimg or 0) < math.inf:
        raise ValueError(
            f"a run has an end: fade_kimg, train_kimg and total_kimg are finite, got {fade_kimg}, {train_kimg} and "
            f"{total_kimg}"
        )
    if (least := min([least_batch, *batches.values()])) < 1:
        raise ValueError(f"a batch is at least 1 image, got {least}")
    stages, shown = [], 0.0
    for log in range(start.bit_length() - 1, resolution.bit_length()):
        size = 1 << log
        fade = 0 if size == start else round(1000 * fade_kimg)
        images = fade + 1000 * train_kimg
        if size == resolution and total_kimg is not None:
            images = max(1000 * total_kimg - shown, images)
        batch = batches.get(size, least_batch)
        steps = -(-int(images) // batch)
        if steps < 1:
            raise ValueError(f"{size}x{size} would see no image: train_kimg is {train_kimg}, give it more than 0")
        stages.append(Stage(log - 2, batch, fade, steps, rates.get(size, base_rate)))
        shown += steps * batch
    return tuple(stages)


def grow(
    stages: Sequence[Stage],
    fns_of: Callable[[Stage, TrainState | None], TrainFns],
    source_of: Callable[[int], PictureSource],
    run: Run,
    *,
    config: Mapping[str, Any],
    after: Callable[[Stage, TrainState], None] = lambda stage, state: None,
    placement: Placement | None = None,
) -> FitResult:
    """Trains stage after stage, each under `run.out`/RESOLUTION, from where it was left.

    `fns_of` makes a stage's functions from the state of the one before, `source_of(resolution)` its reals;
    `after` is called at the end of each with its state on the host. `run.steps` and `run.batch` are the
    schedule's. A run that is killed goes on, with the same bits, in the middle of a fade too. Raises ValueError for
    no stages.
    """
    state: TrainState | None = None
    result: FitResult | None = None
    for stage in stages:
        size = stage.resolution
        feed = training_feed(source_of(size), (size, size), stage.batch, run.seed)
        at = dataclasses.replace(run, steps=stage.steps, batch=stage.batch, out=run.out / str(size))
        described = {**config, **stage._asdict()}
        result = fit(fns_of(stage, state), feed, None, at, placement=placement, config=described)
        if result.stopped:
            return result
        state = grown(jax.tree.map(np.asarray, jax.device_get(result.state)))
        after(stage, jax.device_get(result.state))
    if result is None:
        raise ValueError("grow was given no stages; jaxseg.grow.schedule makes them")
    return result


def load_generator(run: pathlib.Path) -> tuple[PyTree, dict[str, Any]]:
    """The averaged generator's variables of the highest resolution under `run`, and the config of that stage.

    Of resolutions that have faded in: before, the newest layers have learned little, and only a share of them counts.
    """
    sizes = sorted((int(p.name) for p in pathlib.Path(run).glob("*") if p.name.isdigit()), reverse=True)
    for size in sizes:
        if (pathlib.Path(run) / str(size) / "checkpoints").is_dir():
            try:
                state, meta = checkpoint.restore_params(pathlib.Path(run) / str(size) / "checkpoints")
            except FileNotFoundError:  # a resolution that has only begun
                continue
            config = meta["config"]
            if meta["step"] * config["batch"] < config["fade_images"]:
                continue
            return {"params": state["ema_params"]["generator"], **state["model_state"]["generator"]}, config
    raise FileNotFoundError(f"{run} holds no run that grew: no checkpoint, faded in, under RESOLUTION/checkpoints")
