"""What the experiments on faces share: reals, grids, distances, the check of conditioning, and a run's generator."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from face_classifier import train_classifier
from PIL import Image

from jaxseg.cli.arguments import demand_positive
from jaxseg.data import DataError, PictureSource, pictures
from jaxseg.fit import Run
from jaxseg.grow import BATCHES, Stage, adam, grow, load_generator, schedule
from jaxseg.metrics.swd import sliced_wasserstein
from jaxseg.models import create_model
from jaxseg.train_adversarial import AdversarialLoss, adversarial


@dataclasses.dataclass(frozen=True)
class Faces:
    data: pathlib.Path
    """Folder of square pictures; with `conditional`, a folder for each class."""
    out: pathlib.Path
    """Folder of the run; it goes on from what it holds."""
    seed: int = 0
    """Of networks, data order, latents and noise."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    resolution: int = 16
    """Of the last stage, and of the networks."""
    start: int | None = 4
    """Of the first stage."""
    fade_kimg: float = 10.0
    """Thousands of images over which a resolution fades in; published 600."""
    train_kimg: float = 40.0
    """Thousands of images after it; published 600."""
    total_kimg: float | None = 240.0
    """Thousands of images in all, for the last stage to go on to."""
    batch: int = 32
    """Images a step, at all resolutions; 0 for the published ones (512 at 4x4 ... 32 from 64x64)."""
    base_features: int = 1024
    """Channels times resolution; published 16384."""
    max_features: int = 64
    """Most channels; published 512."""
    learning_rate: float = 0.002
    """Below 128x128; published 0.001."""
    ema_half_life: float = 2000.0
    """Images after which the averaged generator has half forgotten: short, for a short run; published 10000."""
    conditional: bool = False
    """Generate a class that one asks for."""
    samples: int = 1024
    """Images for the distances."""


def sampler(generator: Any, stage: int):
    """A compiled (variables, latents, labels) -> uint8 images."""

    @jax.jit
    def run(variables, latents, labels):
        extra = () if labels is None else (labels,)
        images = generator.apply(variables, latents, *extra, stage=stage, train=False)
        return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)

    return run


def generate(run, variables, generator: Any, labels: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    latents = np.random.default_rng(seed).standard_normal((count, generator.latent_features), np.float32)
    parts = [
        np.asarray(run(variables, latents[i : i + 64], None if labels is None else jnp.asarray(labels[i : i + 64])))
        for i in range(0, count, 64)
    ]
    return np.concatenate(parts)


def save_grid(path: pathlib.Path, images: Sequence[np.ndarray], columns: int, zoom: int = 64) -> None:
    """Images row by row, each enlarged to `zoom` pixels."""
    factor = max(zoom // images[0].shape[0], 1)
    large = [np.asarray(image).repeat(factor, 0).repeat(factor, 1) for image in images]
    rows = [np.concatenate(large[i : i + columns], 1) for i in range(0, len(large), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    factor = size // images.shape[1]
    return images.repeat(factor, 1).repeat(factor, 2)


def drawn(source: PictureSource, count: int, seed: int) -> list[int]:
    """Positions of pictures at random, each at most once."""
    return [int(i) for i in np.random.default_rng(seed).permutation(len(source))[:count]]


def reals(source: PictureSource, count: int, seed: int) -> np.ndarray:
    return np.stack([source[i]["image"] for i in drawn(source, count, seed)])


def agreement(source: PictureSource, made: np.ndarray, asked: np.ndarray, out: pathlib.Path) -> dict[str, float]:
    """How often a classifier of the reals gives made images the class that was asked for, and held-out reals theirs."""
    classifier = train_classifier(source, out)
    predict = jax.jit(lambda images: classifier.logits(images.astype(jnp.float32) / 127.5 - 1).argmax(-1))
    return {
        "agreement_of_made": float(np.mean(np.asarray(predict(made)) == asked)),
        "accuracy_on_reals": classifier.accuracy,
        "chance_of_made": 1 / source.num_classes,
        "share_of_largest_class": float(np.bincount(source.classes).max() / len(source)),
    }


class Opened(NamedTuple):
    """A generator of a run, and the stage that it has grown to."""

    model: Any
    variables: Any
    stage: int
    described: dict[str, Any]


def open_generator(run: pathlib.Path) -> Opened:
    """The averaged generator of the highest resolution that lies under a run's folder."""
    variables, described = load_generator(run)
    fields = {k: described[k] for k in ("resolution", "base_features", "max_features")} | described["fields"]
    model = create_model(described["model"], described["num_classes"], **fields)
    return Opened(model, variables, described["stage"], described)


def train_faces(
    config: Faces, generator_kind: str, discriminator_kind: str, loss: AdversarialLoss, **fields: Any
) -> dict[str, Any]:
    """Grows a generator and leaves grids with fixed latents, and `results.json` with a distance for each stage.

    The kinds are "progan" or "stylegan"; `fields` are the generator's.
    """
    counts = ("checkpoint_every", "resolution", "base_features", "max_features", "samples")
    demand_positive(batch=config.batch or None, **{name: getattr(config, name) for name in counts})
    loss = dataclasses.replace(loss, ema_half_life=config.ema_half_life)
    source_of = functools.cache(lambda size: pictures(config.data, size))
    source = source_of(config.resolution)
    classes = source.num_classes if config.conditional else 0
    if classes == 1:
        raise DataError(f"{config.data}: --conditional needs a folder for each class, and nothing but folders in it")
    shape = {"resolution": config.resolution, "num_classes": classes} | {
        k: getattr(config, k) for k in ("base_features", "max_features")
    }
    generator = create_model(f"{generator_kind}_generator", **shape, **fields)
    discriminator = create_model(f"{discriminator_kind}_discriminator", **shape)
    stages = schedule(
        config.start or 4,
        config.resolution,
        fade_kimg=config.fade_kimg,
        train_kimg=config.train_kimg,
        total_kimg=config.total_kimg,
        batches={} if config.batch else BATCHES,
        least_batch=config.batch or 32,
        base_rate=config.learning_rate,
    )
    count = min(config.samples, len(source)) // 64 * 64
    if not count:
        raise DataError(f"{config.data}: {len(source)} pictures; the distances need 64 of them, and --samples 64")
    true = reals(source, count, seed=1)
    results: dict[str, Any] = {}

    def fns_of(stage: Stage, state):
        return adversarial(
            generator,
            discriminator,
            loss=loss,
            optimizers=(adam(stage.learning_rate), adam(stage.learning_rate)),
            stage=stage.stage,
            fade_images=stage.fade_images,
            start=state,
        )

    def after(stage: Stage, state) -> None:
        variables = {"params": state.ema_params["generator"], **state.model_state["generator"]}
        run = sampler(generator, stage.stage)
        shown = np.arange(64) % max(classes, 8)
        labels = np.arange(count) % classes if classes else None
        grid = generate(run, variables, generator, shown % classes if classes else None, 64, seed=2)
        made = generate(run, variables, generator, labels, count, seed=3)
        distance = sliced_wasserstein(enlarged(made, config.resolution), true, seed=4)
        floor = sliced_wasserstein(reals(source, count, seed=5), true, seed=4)
        results[str(stage.resolution)] = {"swd": distance, "swd_of_reals": floor, "images": stage.steps * stage.batch}
        if classes and stage.resolution == config.resolution:
            results["conditioning"] = agreement(source, made, labels, config.out / "classifier")
        if jax.process_index() != 0:  # the first alone writes
            return
        save_grid(config.out / f"grid_{stage.resolution}.png", list(grid), columns=8)
        print(
            f"{stage.resolution}x{stage.resolution}: sliced Wasserstein distance x 1000 to reals at "
            f"{config.resolution}x{config.resolution} {distance}; of other reals {floor}",
            flush=True,
        )
        if "conditioning" in results:
            print(results["conditioning"], flush=True)
        (config.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")

    described = {"model": f"{generator_kind}_generator", **shape, "fields": fields, "classes": list(source.class_names)}
    described |= {"penalty": loss.penalty, "penalty_every": loss.penalty_every, "ema_half_life": loss.ema_half_life}
    run = Run(0, out=config.out, seed=config.seed, checkpoint_every=config.checkpoint_every)
    grow(stages, fns_of, source_of, run, config=described, after=after)
    return results
