"""A grid of contents x styles x strengths, by a run of experiments/style_transfer.py.

    python experiments/style_grid.py --run runs/style --contents coffee.png chelsea.png \
        --styles hubble_deep_field.jpg ihc.png retina.jpg --out grid.png    # pictures that come with scikit-image

A row for each content and alpha, a column for each style; the middle square of each picture is seen.
"""

import dataclasses
import pathlib
import sys

import jax.numpy as jnp
import tyro

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from style_transfer import save_grid

from jaxseg.cli.arguments import demand_positive, one_message
from jaxseg.data import PictureSource
from jaxseg.models.adain_transfer import ENCODERS, AdaINTransfer
from jaxseg.runs import load_variables


@dataclasses.dataclass(frozen=True)
class Config:
    run: pathlib.Path
    """The folder of a run."""
    contents: tuple[pathlib.Path, ...]
    """Photographs."""
    styles: tuple[pathlib.Path, ...]
    """Paintings."""
    out: pathlib.Path = pathlib.Path("grid.png")
    """The figure."""
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Strengths, from 0, the content, to 1, the style."""
    size: int = 96
    """Pixels of a picture's side."""


def main(config: Config) -> None:
    demand_positive(size=config.size)
    if not (config.contents and config.styles and config.alphas):
        raise SystemExit("name one or more of each of --contents, --styles and --alphas")
    if not all(0 <= alpha <= 1 for alpha in config.alphas):
        raise SystemExit(f"--alphas lie between 0 (content) and 1 (style), got {config.alphas}")
    variables, trained = load_variables(config.run)
    if trained.get("model") != "adain_transfer":
        raise SystemExit(f"{config.run} is a run of {trained.get('model')}, not of adain_transfer")
    model = AdaINTransfer(vgg=ENCODERS[trained["encoder"]])

    def squares(paths: tuple[pathlib.Path, ...]):
        source = PictureSource(paths, (0,) * len(paths), ("",), config.size)
        return [jnp.float32(source[i]["image"]) / 255 for i in range(len(source))]

    config.out.parent.mkdir(parents=True, exist_ok=True)
    save_grid(config.out, model, variables, squares(config.contents), squares(config.styles), config.alphas)


if __name__ == "__main__":
    with one_message():
        main(tyro.cli(Config, description=__doc__))
