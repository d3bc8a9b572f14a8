"""A small classifier of pictures by the names of their folders: it scores attributes of faces that a generator made.

    python experiments/face_classifier.py --data kaokore64 --out runs/classifier       # 16x16, a minute, 2 CPU cores

Trained by the seam of segmentation models: a label map of one class, of which the model's single pixel sees the middle.
Folders named as `female-noble` have two attributes. The faces' experiments train one themselves, beside their run.
"""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from jaxseg.cli.arguments import demand_positive, one_message
from jaxseg.data import PictureSource, flip, normalize, pictures
from jaxseg.fit import Run, evaluation_feed, fit, training_feed
from jaxseg.losses import cross_entropy
from jaxseg.models import SegmentationOutput
from jaxseg.train import adamw_cosine, supervised


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path
    """A folder for each class."""
    out: pathlib.Path
    """Folder of the run; it goes on from what it holds."""
    resolution: int = 16
    """Of the pictures."""
    steps: int = 600
    batch: int = 64


class FaceClassifier(nn.Module):
    """Three convolutions and a dense layer; logits are `[n, 1, 1, num_classes]`."""

    num_classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"], *, train: bool) -> SegmentationOutput:
        x = images
        for features in (32, 64, 64):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2 if features > 32 else 1)(x))
        return SegmentationOutput(nn.Dense(self.num_classes)(x.reshape(len(x), -1))[:, None, None], None)


@dataclasses.dataclass(frozen=True)
class Labelled(PictureSource):
    """The pictures of a source with their class on each pixel."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = super().__getitem__(index)
        return {"image": example["image"], "label": np.full((self.size, self.size), example["class"], np.int32)}


class Attributes(NamedTuple):
    """What folders' names say: attributes by the place that they have in the names."""

    names: tuple[str, ...]
    places: tuple[int, ...]
    member: np.ndarray  # bool [attributes, classes]

    def others(self, target: int) -> list[int]:
        """Attributes of other places: a face is female or male, and beside that noble or not."""
        return [i for i, place in enumerate(self.places) if place != self.places[target]]


def attributes_of(class_names: tuple[str, ...]) -> Attributes:
    parts = [name.split("-") for name in class_names]
    if len({len(p) for p in parts}) > 1:  # names of no common form: each class is an attribute
        parts = [[name] for name in class_names]
    places = [sorted(set(names)) for names in zip(*parts, strict=True)]
    # what all classes have tells none apart: its odds are infinite
    found = [(place, name) for place, names in enumerate(places) if len(names) > 1 for name in names]
    member = np.array([[p[place] == name for p in parts] for place, name in found])
    return Attributes(tuple(name for _, name in found), tuple(place for place, _ in found), member)


def log_odds(logits: Float[Array, "n classes"], attributes: Attributes) -> Float[Array, "n attributes"]:
    """log(p / (1 - p)) of each attribute, from logits of the classes that have it and of those that have not."""
    inside = jnp.asarray(attributes.member)[None]
    total = lambda mask: jax.nn.logsumexp(jnp.where(mask, logits[:, None], -jnp.inf), -1)  # noqa: E731
    return total(inside) - total(~inside)


class Trained(NamedTuple):
    """Class logits `[n, k]` of images in [-1, 1], and the share of held-out pictures whose class they tell."""

    logits: functools.partial
    accuracy: float


def _logits(model: nn.Module, params, images: Float[Array, "n h w 3"]) -> Float[Array, "n k"]:
    return model.apply({"params": params}, normalize((images + 1) / 2), train=False).logits[:, 0, 0]


def train_classifier(source: PictureSource, out: pathlib.Path, *, steps: int = 600, batch: int = 64) -> Trained:
    """A classifier of `source`, a fifth of which is held out, trained under `out`, or read from what lies there."""
    order = np.random.default_rng(0).permutation(len(source))

    def part(positions) -> Labelled:
        pick = lambda values: tuple(values[i] for i in positions)  # noqa: E731
        return Labelled(pick(source.paths), pick(source.classes), source.class_names, source.size)

    held_out, training = part(order[: len(order) // 5]), part(order[len(order) // 5 :])
    model = FaceClassifier(source.num_classes)
    fns = supervised(model, loss=cross_entropy, optimizer=adamw_cosine(1e-3, steps), augment=(flip,))
    size = (source.size, source.size)
    run = Run(steps, batch, out, checkpoint_every=steps)
    described = {"model": "face_classifier", "size": source.size, "classes": list(source.class_names)}
    feed, evaluation = training_feed(training, size, batch, run.seed), evaluation_feed(held_out, size, batch)
    result = fit(fns, feed, evaluation, run, config=described)
    params = jax.device_get(result.state.params)
    return Trained(functools.partial(_logits, model, params), result.scores["global_accuracy"])


def main(config: Config) -> Trained:
    demand_positive(resolution=config.resolution, steps=config.steps, batch=config.batch)
    source = pictures(config.data, config.resolution)
    trained = train_classifier(source, config.out, steps=config.steps, batch=config.batch)
    largest = np.bincount(source.classes).max() / len(source)
    print(f"accuracy on held-out pictures {trained.accuracy:.3f}; the largest class is {largest:.3f} of them")
    return trained


if __name__ == "__main__":
    with one_message():
        main(tyro.cli(Config, description=__doc__))
