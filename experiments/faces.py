"""What the two experiments on faces share: reals, grids, distances, and the classifier that checks conditioning."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from jaxseg.data import PictureSource, pictures
from jaxseg.fit import Run
from jaxseg.grow import BATCHES, Stage, adam, grow, schedule
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
    start: int = 4
    """Of the first stage."""
    fade_kimg: float = 6.0
    """Thousands of images over which a resolution fades in; published 600."""
    train_kimg: float = 10.0
    """Thousands of images after it; published 600."""
    total_kimg: float | None = None
    """Thousands of images in all, for the last stage to go on to."""
    batch: int = 32
    """Images a step, at all resolutions; 0 for the published ones (512 at 4x4 ... 32 from 64x64)."""
    base_features: int = 1024
    """Channels times resolution; published 16384."""
    max_features: int = 64
    """Most channels; published 512."""
    learning_rate: float = 0.002
    """Below 128x128; published 0.001."""
    ema_half_life: float = 1000.0
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


def reals(source: PictureSource, count: int, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(source))[:count]
    return np.stack([source[int(i)]["image"] for i in order])


class FaceClassifier(nn.Module):
    """Three convolutions and a mean: enough to say whose face it is at 16x16."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        x = images.astype(jnp.float32) / 127.5 - 1
        for features in (32, 64, 64):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2 if features > 32 else 1)(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def agreement(source: PictureSource, made: np.ndarray, asked: np.ndarray, steps: int = 600) -> dict[str, float]:
    """How often a classifier of the reals gives made images the class that was asked for, and held-out reals theirs."""
    order = np.random.default_rng(0).permutation(len(source))
    images, classes = np.stack([source[int(i)]["image"] for i in order]), np.array(source.classes)[order]
    held_out = len(order) // 5
    model, optimizer = FaceClassifier(source.num_classes), optax.adam(1e-3)
    params = model.init(jax.random.key(0), jnp.zeros((1, *made.shape[1:])))

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(1)
    for _ in range(steps):
        pick = rng.integers(held_out, len(order), 64)
        params, state = step(params, state, images[pick], classes[pick])
    predict = jax.jit(lambda x: model.apply(params, x).argmax(-1))
    share = lambda x, y: float(np.mean(np.asarray(predict(x)) == y))  # noqa: E731
    largest = np.bincount(classes).max() / len(classes)
    return {
        "agreement_of_made": share(made, asked),
        "accuracy_on_reals": share(images[:held_out], classes[:held_out]),
        "chance_of_made": 1 / source.num_classes,
        "share_of_largest_class": float(largest),
    }


def train_faces(config: Faces, kind: str, loss: AdversarialLoss, **fields: Any) -> dict[str, Any]:
    """Grows a generator and leaves grids with fixed latents, and `results.json` with a distance for each stage."""
    loss = dataclasses.replace(loss, ema_half_life=config.ema_half_life)
    source_of = functools.cache(lambda size: pictures(config.data, size))
    source = source_of(config.resolution)
    classes = source.num_classes if config.conditional else 0
    shape = {"resolution": config.resolution, "num_classes": classes} | {
        k: getattr(config, k) for k in ("base_features", "max_features")
    }
    generator = create_model(f"{kind}_generator", **shape, **fields)
    discriminator = create_model(f"{kind}_discriminator", **shape)
    stages = schedule(
        config.start,
        config.resolution,
        fade_kimg=config.fade_kimg,
        train_kimg=config.train_kimg,
        total_kimg=config.total_kimg,
        batches={} if config.batch else BATCHES,
        least_batch=config.batch or 32,
        base_rate=config.learning_rate,
    )
    count = min(config.samples, len(source)) // 64 * 64
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
        save_grid(config.out / f"grid_{stage.resolution}.png", list(grid), columns=8)
        made = generate(run, variables, generator, labels, count, seed=3)
        distance = sliced_wasserstein(enlarged(made, config.resolution), true, seed=4)
        floor = sliced_wasserstein(reals(source, count, seed=5), true, seed=4)
        results[str(stage.resolution)] = {"swd": distance, "swd_of_reals": floor, "images": stage.steps * stage.batch}
        print(
            f"{stage.resolution}x{stage.resolution}: sliced Wasserstein distance x 1000 to reals at "
            f"{config.resolution}x{config.resolution} {distance}; of other reals {floor}",
            flush=True,
        )
        if classes and stage.resolution == config.resolution:
            results["conditioning"] = agreement(source, made, labels)
            print(results["conditioning"], flush=True)
        (config.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")

    described = {"model": f"{kind}_generator", **shape, "fields": fields, "classes": list(source.class_names)}
    described |= {"penalty_every": loss.penalty_every, "ema_half_life": loss.ema_half_life}
    run = Run(0, out=config.out, seed=config.seed, checkpoint_every=config.checkpoint_every)
    grow(stages, fns_of, source_of, run, config=described, after=after)
    return results
