"""Scores of a generator's images against reals: the distances that papers print.

    python experiments/score_faces.py --run runs/stylegan --data kaokore64
    python experiments/score_faces.py --run runs/stylegan --data kaokore64 --samples 50000 \
        --inception pt_inception-2015-12-05-6726825d.pth --vgg vgg16-397923af.pth --lpips vgg.pth

The sliced Wasserstein distance needs no weights. With `--inception` also FID, the Inception score, precision and recall
on the same features; with `--vgg` the perceptual path length in w, full and at the ends (LPIPS with `--lpips`). Images
are not truncated. FID falls with the number of samples: published ones have 50,000.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from faces import drawn, generate, open_generator, reals, sampler

from jaxseg.cli.arguments import demand_positive, one_message
from jaxseg.data import pictures
from jaxseg.features import inception_features, perceptual_distance, perceptual_features
from jaxseg.metrics.generation import frechet_distance, inception_score, perceptual_path_length, precision_recall
from jaxseg.metrics.swd import sliced_wasserstein
from jaxseg.models.stylegan import StyleGANGenerator
from jaxseg.ops.resize import resize_nearest


@dataclasses.dataclass(frozen=True)
class Config:
    run: pathlib.Path
    """A run of experiments/stylegan_faces.py or progan_faces.py."""
    data: pathlib.Path
    """The reals; a conditional generator is asked for their classes, as often as they have them."""
    samples: int = 1024
    """Images, and reals where there are as many."""
    inception: pathlib.Path | None = None
    """pytorch-fid's Inception-v3, or torchvision's."""
    vgg: pathlib.Path | None = None
    """ImageNet's VGG-16."""
    lpips: pathlib.Path | None = None
    """LPIPS' weights of VGG-16's channels."""
    paths: int = 256
    """Pairs of latents for the path length; published 100,000."""
    epsilon: float = 1e-2
    """The path length's step; published 1e-4, where float32's rounding of a short run's images is as large."""
    seed: int = 0


def path_measure(config: Config, run):
    """What paths are measured by."""
    if not isinstance(run.model, StyleGANGenerator):
        raise SystemExit(f"{config.run} is a run of {run.described['model']}: the path length is in StyleGAN's w")
    if run.model.num_classes:
        raise SystemExit(f"{config.run} is conditional: no path in its w stays with a class")
    return perceptual_distance(perceptual_features(config.vgg, config.lpips))


def path_lengths(config: Config, run, measure) -> dict[str, float]:
    """In w, of whole paths and at their ends."""
    synthesize = functools.partial(run.model.apply, run.variables, method="synthesize", stage=run.stage, train=False)

    def images(w):
        x = synthesize(w)
        factor = max(64 // x.shape[1], 1)
        return resize_nearest(x, (factor * x.shape[1],) * 2)

    def chunks(f, *arrays):
        return np.concatenate([f(*(x[i : i + 32] for x in arrays)) for i in range(0, len(arrays[0]), 32)])

    make, compare = jax.jit(images), jax.jit(measure)
    rng = np.random.default_rng(config.seed)
    z = rng.standard_normal((2 * config.paths, run.model.latent_features), np.float32)
    w = np.asarray(run.model.apply(run.variables, jnp.asarray(z), method="map"))
    at = {"ppl_full": rng.random(config.paths), "ppl_end": np.zeros(config.paths)}
    return {
        name: perceptual_path_length(
            lambda w: chunks(make, jnp.asarray(w, jnp.float32)),
            lambda a, b: chunks(compare, a, b),
            w[: config.paths],
            w[config.paths :],
            positions,
            epsilon=config.epsilon,
        )
        for name, positions in at.items()
    }


def main(config: Config) -> dict[str, Any]:
    demand_positive(samples=config.samples, paths=config.paths)
    if config.lpips is not None and config.vgg is None:
        raise SystemExit("--lpips are weights of the channels of VGG-16: give --vgg too")
    # these say what is absent before anything is made
    features = None if config.inception is None else inception_features(config.inception)
    run = open_generator(config.run)
    measure = None if config.vgg is None else path_measure(config, run)
    source = pictures(config.data, 4 << run.stage)
    count = min(config.samples, len(source))
    classes = run.model.num_classes
    if classes and list(source.class_names) != run.described["classes"]:
        raise SystemExit(
            f"{config.run} knows the classes {', '.join(run.described['classes'])}, and {config.data} has "
            f"{', '.join(source.class_names)}: name the folder that it was trained on"
        )
    labels = np.array(source.classes)[drawn(source, count, config.seed)] if classes else None
    made = generate(sampler(run.model, run.stage), run.variables, run.model, labels, count, config.seed)
    true = reals(source, count, config.seed)
    scores: dict[str, Any] = {"images": count, "swd": sliced_wasserstein(made, true, seed=config.seed)}
    if features is not None:
        ours, theirs = features(made), features(true)
        mean, deviation = inception_score(ours.probabilities)
        scores |= {"fid": frechet_distance(ours.pool, theirs.pool), "inception_score": mean, "over_splits": deviation}
        scores |= precision_recall(ours.pool, theirs.pool)._asdict()
    if measure is not None:
        scores |= path_lengths(config, run, measure)
    print(json.dumps(scores, indent=1))
    return scores


if __name__ == "__main__":
    with one_message():
        main(tyro.cli(Config, description=__doc__))
