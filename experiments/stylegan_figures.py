"""The figures of StyleGAN's paper (Karras et al. 2019), from a run of experiments/stylegan_faces.py.

    python experiments/stylegan_figures.py --run runs/stylegan --out figures
    python experiments/stylegan_figures.py --weights stylegan_ffhq1024.pth --out figures  # genforce's

Leaves mixing.png (Figure 3: sources across and down; coarse, middle, fine styles from the source above), noise.png
(Figure 5: in all layers, none, fine, coarse), noise_std.png (Figure 4: deviation over draws), truncation.png (Figure 8:
psi 1, 0.7, 0.5, 0, -0.5, -1) and interpolation.gif. The paper's layers, 0-3, 4-7 and 8-17 of 18, are here by share.
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from faces import open_generator

from jaxseg.cli.arguments import one_message
from jaxseg.models import create_model
from jaxseg.models.stylegan import StyleGANGenerator
from jaxseg.weights import from_published, published_arguments

PSIS = (1.0, 0.7, 0.5, 0.0, -0.5, -1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    out: pathlib.Path
    """Folder for the figures."""
    run: pathlib.Path | None = None
    """The folder of a run."""
    weights: pathlib.Path | None = None
    """Or a published generator in genforce's layout."""
    seed: int = 0
    """Of latents and noise."""
    draws: int = 100
    """Of noise, for its deviation."""
    frames: int = 60
    """Of the interpolation."""
    label: int = 0
    """Class, for a conditional generator."""


def opened(config: Config):
    """The generator, its variables and the stage that it has grown to."""
    if (config.run is None) == (config.weights is None):
        raise SystemExit("give --run, or --weights")
    if config.weights is not None:
        arguments, state = published_arguments("stylegan_generator", config.weights)
        model = create_model(**arguments)
        return model, from_published(state, model, where=str(config.weights)).variables, None
    run = open_generator(config.run)
    if not isinstance(run.model, StyleGANGenerator):
        raise SystemExit(f"{config.run} is a run of {run.described['model']}; these figures are StyleGAN's")
    return run.model, run.variables, run.stage


def tile(rows, path: pathlib.Path, least: int = 64) -> None:
    """Rows of images in [-1, 1], each enlarged to `least` pixels."""
    grid = np.concatenate([np.concatenate([np.asarray(x) for x in row], 1) for row in rows])
    factor = max(least // rows[0][0].shape[0], 1)
    pixels = np.clip(np.round((grid + 1) * 127.5), 0, 255).astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
    Image.fromarray(pixels).save(path)


def main(config: Config) -> None:
    if min(config.draws, config.frames) < 1:
        raise SystemExit(f"--draws and --frames are 1 or more, got {config.draws} and {config.frames}")
    config.out.mkdir(parents=True, exist_ok=True)
    model, variables, stage = opened(config)
    if model.num_classes and not 0 <= config.label < model.num_classes:
        raise SystemExit(f"--label is a class from 0 to {model.num_classes - 1}, got {config.label}")
    layers = model.layers if stage is None else 2 * (stage + 1)
    z = jnp.asarray(np.random.default_rng(config.seed).standard_normal((8, model.latent_features)), jnp.float32)
    labels = jnp.full(8, config.label, jnp.int32) if model.num_classes else None
    styles = model.apply(variables, z, labels, method="map")[:, None]
    styles = jnp.broadcast_to(styles, (8, model.layers, styles.shape[-1]))
    run = functools.partial(model.apply, method="synthesize", stage=stage, train=False)

    @jax.jit
    def synthesize(styles, strength=1.0, key=None):
        return run(variables, styles, noise_strength=strength, rngs=None if key is None else {"noise": key})

    coarse, middle = max(round(layers * 4 / 18), 1), max(round(layers * 8 / 18), 2)
    above, left = styles[:4], styles[4:]
    blank = -jnp.ones_like(synthesize(styles)[0])
    rows = [[blank, *synthesize(above)]]
    for first, last in ((0, coarse), (coarse, middle), (middle, model.layers)):
        within = (jnp.arange(model.layers) >= first) & (jnp.arange(model.layers) < last)
        for source in left[:2]:
            mixed = jnp.where(within[:, None], above, jnp.broadcast_to(source, above.shape))
            rows.append([synthesize(source[None])[0], *synthesize(mixed)])
    tile(rows, config.out / "mixing.png")

    fine = (jnp.arange(model.layers) >= middle).astype(jnp.float32)
    key = jax.random.key(config.seed)
    strengths = (jnp.ones(model.layers), jnp.zeros(model.layers), fine, 1 - fine)
    tile([list(synthesize(styles[:4], strength, key)) for strength in strengths], config.out / "noise.png")

    ones = jnp.ones(model.layers)
    several = [synthesize(styles[:4], ones, jax.random.fold_in(key, i)).mean(-1) for i in range(config.draws)]
    deviation = np.std(several, 0)
    shown = np.repeat((2 * deviation / max(deviation.max(), 1e-8) - 1)[..., None], 3, -1)
    tile([list(synthesize(styles[:4], ones, key)), list(shown)], config.out / "noise_std.png")

    truncate = functools.partial(model.apply, variables, layers=model.layers, method="truncate")
    tile([[synthesize(truncate(s[None], psi))[0] for psi in PSIS] for s in styles[:4]], config.out / "truncation.png")

    frames = []
    for i in range(config.frames):
        at = len(styles) * i / config.frames
        a, b = styles[int(at)], styles[(int(at) + 1) % len(styles)]
        image = synthesize((a + (at - int(at)) * (b - a))[None])[0]
        frames.append(Image.fromarray(np.clip(np.round((np.asarray(image) + 1) * 127.5), 0, 255).astype(np.uint8)))
    frames = [frame.resize((max(frame.width, 128),) * 2, Image.Resampling.NEAREST) for frame in frames]
    frames[0].save(config.out / "interpolation.gif", save_all=True, append_images=frames[1:], duration=60, loop=0)
    print(f"wrote {', '.join(sorted(p.name for p in config.out.iterdir()))} to {config.out}")


if __name__ == "__main__":
    with one_message():
        main(tyro.cli(Config, description=__doc__))
