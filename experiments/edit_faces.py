"""Edits of faces that a generator makes which never saw a label: attributes moved in its latent space.

    python experiments/edit_faces.py --run runs/stylegan --data kaokore64 --out edits                  # a minute
    python experiments/edit_faces.py --run runs/stylegan --data kaokore64 --attribute noble --space z --out edits_z
    python experiments/edit_faces.py --run runs/stylegan --data kaokore64 --vgg vgg16_imagenet_conv.npz --out edits

Needs scikit-learn (the parity extra). A classifier of the reals scores what is made. Leaves strips with the
attribute's score (log-odds) under each image: svm.png moves along a linear SVM's normal, conditional.png along what of
it leaves the other attributes (InterFaceGAN, Shen et al. 2020), gradient.png up the classifier's gradient with a
penalty on the others; projection.png, real faces, what the projector finds for them in w and w+ (of ProGAN in z), and
that, edited; and scores.json, how far the attribute and the others moved.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image, ImageDraw

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from face_classifier import Attributes, attributes_of, log_odds, train_classifier
from faces import Opened, open_generator, reals

from jaxseg.cli.arguments import demand_positive, one_message
from jaxseg.control import edit, follow_gradient, linear_direction, orthogonal_to, project
from jaxseg.data import pictures
from jaxseg.features import perceptual_features
from jaxseg.models.stylegan import StyleGANGenerator, mix_styles
from jaxseg.ops.resize import resize_nearest

TILE = 72  # pixels of an image in a strip


@dataclasses.dataclass(frozen=True)
class Config:
    run: pathlib.Path
    """A run of experiments/stylegan_faces.py or progan_faces.py, without --conditional."""
    data: pathlib.Path
    """The faces, in folders named after their attributes."""
    out: pathlib.Path
    """Folder for the figures."""
    attribute: str = "female"
    """The one to move."""
    space: Literal["z", "w", "w+"] = "w"
    """Where latents move; ProGAN has z alone."""
    vgg: pathlib.Path | None = None
    """ImageNet's VGG-16, for a projector that sees as people do; without it the projector compares pixels."""
    samples: int = 4000
    """Images that the SVM's latents are chosen from."""
    share: float = 0.05
    """Of them at either end of the scores; published 0.02 of 500,000."""
    steps: tuple[float, ...] = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    """Of the strips, in standard deviations of the latents along the direction."""
    ascents: tuple[int, ...] = (0, 10, 20, 40)
    """Steps up the gradient."""
    rows: int = 4
    """Faces in each figure."""
    projector_steps: int = 300
    classifier_steps: int = 600
    seed: int = 0
    """Of latents."""


class Space(NamedTuple):
    """A latent space: z, w, or w+ with its layers flattened."""

    draw: Callable[[jax.Array, int], Any]  # (key, n) -> latents [n, d]
    synthesize: Callable[[Any], Any]  # latents -> images in [-1, 1]


def space_of(run: Opened, name: str) -> Space:
    model, variables, stage, _ = run
    apply = functools.partial(model.apply, variables, stage=stage, train=False)
    normal = lambda key, n: jax.random.normal(key, (n, model.latent_features))  # noqa: E731
    if name == "z":
        return Space(normal, apply)
    if not isinstance(model, StyleGANGenerator):
        raise SystemExit(f"{run.described['model']} has no {name}: use --space z")
    to_w = functools.partial(model.apply, variables, method="map")
    if name == "w":
        return Space(lambda key, n: to_w(normal(key, n)), functools.partial(apply, method="synthesize"))

    def mixed(key: jax.Array, n: int):
        """Styles of two latents, as training mixes them, so that layers differ."""
        keys = jax.random.split(key, 3)
        a, b = (jnp.repeat(to_w(normal(k, n))[:, None], model.layers, 1) for k in keys[:2])
        return mix_styles(a, b, jax.random.randint(keys[2], (n,), 1, 2 * (stage + 1))).reshape(n, -1)

    return Space(mixed, lambda x: apply(x.reshape(len(x), model.layers, -1), method="synthesize"))


def save_strips(path: pathlib.Path, images: np.ndarray, scores: np.ndarray | None, titles: list[str]) -> None:
    """Images `[rows, columns, h, w, 3]` in [-1, 1], the score `[rows, columns]` under each, titles above columns."""
    rows, columns, size = images.shape[:3]
    tile, line = max(TILE // size, 1) * size, 14
    sheet = Image.new("RGB", (columns * (tile + 2), line + rows * (tile + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for j, title in enumerate(titles):
        draw.text((j * (tile + 2) + 2, 1), title, fill="black")
    for i, j in np.ndindex(rows, columns):
        pixels = np.clip(np.round((images[i, j] + 1) * 127.5), 0, 255).astype(np.uint8)
        corner = (j * (tile + 2), line + i * (tile + line))
        sheet.paste(Image.fromarray(pixels).resize((tile, tile), Image.Resampling.NEAREST), corner)
        if scores is not None and np.isfinite(scores[i, j]):
            draw.text((corner[0] + 2, corner[1] + tile), f"{scores[i, j]:+.1f}", fill="black")
    sheet.save(path)


class Editor:
    """What the figures share: the space, its scores, and the directions in it."""

    def __init__(self, config: Config, run: Opened, logits: Callable, attributes: Attributes):
        self.config, self.space, self.attributes = config, space_of(run, config.space), attributes
        self.target = attributes.names.index(config.attribute)
        self.others = attributes.others(self.target)
        self.score = jax.jit(lambda x: log_odds(logits(self.space.synthesize(x)), attributes))
        self.synthesize = jax.jit(self.space.synthesize)
        keys = [jax.random.fold_in(jax.random.key(config.seed), i) for i in range(-(-config.samples // 100))]
        draw = jax.jit(lambda key: self.space.draw(key, 100))
        latents = np.concatenate([np.asarray(draw(key)) for key in keys])
        scores = np.concatenate([np.asarray(self.score(latents[i : i + 100])) for i in range(0, len(latents), 100)])
        self.latents, self.shown = latents, jnp.asarray(latents[: config.rows])
        wanted = [self.target, *self.others]
        found = {i: linear_direction(latents, scores[:, i], share=config.share, seed=config.seed) for i in wanted}
        self.accuracy = {attributes.names[i]: round(d.accuracy, 3) for i, d in found.items()}
        self.direction = found[self.target].vector
        held = [found[i].vector for i in self.others]
        self.conditional = orthogonal_to(self.direction, held) if held else self.direction

    def moved(self, vector: np.ndarray):
        """Latents `[steps, rows, d]` along a direction."""
        deviation = float(np.std(self.latents @ vector))
        return edit(self.shown, vector, [step * deviation for step in self.config.steps])

    def followed(self):
        """Latents `[ascents, rows, d]` up the gradient."""
        wanted = jnp.array([self.target, *self.others])
        climb = jax.jit(lambda x, steps: follow_gradient(lambda y: self.score(y)[:, wanted], x, 0, steps=steps))
        return jnp.stack([climb(self.shown, steps) for steps in self.config.ascents])

    def strip(self, path: pathlib.Path, latents, titles: list[str]) -> dict[str, float]:
        """Draws latents `[columns, rows, d]`, and says how far scores moved from the first column to the last."""
        images = np.stack([self.synthesize(x) for x in latents], 1)
        scores = np.stack([self.score(x) for x in latents], 1)
        save_strips(path, images, scores[..., self.target], titles)
        change = scores[:, -1] - scores[:, 0]
        others = float(np.abs(change[:, self.others]).mean()) if self.others else 0.0
        return {"attribute": float(change[:, self.target].mean()), "others": others}


def projections(
    editor: Editor, run: Opened, logits: Callable, wanted: np.ndarray, perceptual: Callable | None
) -> dict[str, float]:
    """Finds latents of real faces, draws them, and edits the last; the mean squared difference of each."""
    config, attributes = editor.config, editor.attributes

    def features(images):
        if perceptual is None:
            return (images,)
        factor = max(64 // images.shape[1], 1)
        return (images, *perceptual(resize_nearest(images, (factor * images.shape[1],) * 2)))

    images = jnp.asarray(wanted, jnp.float32) / 127.5 - 1
    columns, titles, differences = [images], ["real"], {}
    for name in ("w", "w+") if isinstance(run.model, StyleGANGenerator) else ("z",):
        space = space_of(run, name)
        mean = space.draw(jax.random.key(config.seed), 1000).mean(0)
        start = jnp.broadcast_to(mean, (len(images), len(mean)))
        find = jax.jit(functools.partial(project, space.synthesize, features=features, steps=config.projector_steps))
        found, _ = find(images, start)
        columns.append(space.synthesize(found))
        titles.append(f"found in {name}")
        differences[name] = float(jnp.mean(jnp.square(columns[-1] - images)))
        if name == config.space:
            vector, deviation = editor.direction, float(np.std(editor.latents @ editor.direction))
            for step in (config.steps[0], config.steps[-1]):
                columns.append(space.synthesize(edit(found, vector, [step * deviation])[0]))
                titles.append(f"{config.attribute} {step:+g}")
    scores = np.stack([log_odds(logits(x), attributes)[:, editor.target] for x in columns], 1)
    save_strips(config.out / "projection.png", np.stack(columns, 1), scores, titles)
    return differences


def main(config: Config) -> dict[str, Any]:
    counts = ("samples", "rows", "projector_steps", "classifier_steps")
    demand_positive(**{name: getattr(config, name) for name in counts})
    if not config.steps or not config.ascents or min(config.ascents) < 0:
        raise SystemExit(
            f"--steps and --ascents are a column each or more, and no ascent is below 0: got {config.steps} and "
            f"{config.ascents}"
        )
    config.out.mkdir(parents=True, exist_ok=True)
    run = open_generator(config.run)
    if run.model.num_classes:
        raise SystemExit(
            f"{config.run} is conditional: ask it for a class; these edits are of a generator without labels"
        )
    space_of(run, config.space)  # says at once what a generator has not
    source = pictures(config.data, 4 << run.stage)
    attributes = attributes_of(source.class_names)
    if config.attribute not in attributes.names:
        raise SystemExit(f"--attribute {config.attribute}: {config.data} has {', '.join(attributes.names) or 'none'}")
    perceptual = None if config.vgg is None else perceptual_features(config.vgg)  # says what is absent at once
    classifier = train_classifier(source, config.out / "classifier", steps=config.classifier_steps)
    editor = Editor(config, run, classifier.logits, attributes)
    steps = [f"{step:+g}" for step in config.steps]
    results: dict[str, Any] = {
        "attribute": config.attribute,
        "others": [attributes.names[i] for i in editor.others],
        "space": config.space,
        "classifier_accuracy": classifier.accuracy,
        "svm_accuracy": editor.accuracy,
        "svm": editor.strip(config.out / "svm.png", editor.moved(editor.direction), steps),
        "conditional": editor.strip(config.out / "conditional.png", editor.moved(editor.conditional), steps),
        "gradient": editor.strip(config.out / "gradient.png", editor.followed(), [str(n) for n in config.ascents]),
        "projector": projections(editor, run, classifier.logits, reals(source, config.rows, config.seed), perceptual),
    }
    (config.out / "scores.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    with one_message():
        main(tyro.cli(Config, description=__doc__))
