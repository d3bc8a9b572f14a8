"""StyleGAN (Karras et al. 2019) on faces, grown from 8x8.

    python experiments/stylegan_faces.py --data kaokore64 --out runs/stylegan            # to 16x16, 2 CPU cores
    python experiments/stylegan_faces.py --data kaokore64 --conditional --out runs/stylegan_classes
    python experiments/stylegan_faces.py --data kaokore64 --resolution 64 --fade-kimg 600 --train-kimg 600 \
        --total-kimg 5000 --batch 0 --base-features 16384 --max-features 512 --learning-rate 0.001 \
        --ema-half-life 10000   # a GPU

The run leaves a grid with fixed latents for each resolution, and the sliced Wasserstein distance after each.
"""

import dataclasses
import pathlib
import sys
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from faces import Faces, train_faces

from jaxseg.cli.arguments import demand_positive, run_experiment
from jaxseg.models.configurations import CONFIGURATIONS
from jaxseg.train_adversarial import PROGAN_LOSS, STYLEGAN_LOSS


@dataclasses.dataclass(frozen=True)
class Config(Faces):
    start: int | None = None
    """Of the first stage; by default the configuration's."""
    configuration: Literal["A", "B", "C", "D", "E", "F"] = "F"
    """The row of the paper's Table 1: from ProGAN, A, which starts at 4, to StyleGAN, F."""
    w_features: int = 128
    """Of w and of the mapping network, which C to F have; published 512."""
    latent_features: int = 128
    """Of z; published 512."""
    gamma: float | None = None
    """R1's weight at the last resolution; by default the published run's there, whose 10 is that of 1024x1024."""
    penalty_every: int = 1
    """Steps between R1 penalties; on a CPU more is slower, since convolutions within a branch are."""


def main(config: Config) -> dict:
    counts = ("w_features", "latent_features", "penalty_every")
    demand_positive(**{name: getattr(config, name) for name in counts})
    row = CONFIGURATIONS[config.configuration]
    config = dataclasses.replace(config, start=row.start if config.start is None else config.start)
    gamma = 10 * (config.resolution / 1024) ** 2 if config.gamma is None else config.gamma
    r1 = dataclasses.replace(STYLEGAN_LOSS, penalty=gamma, penalty_every=config.penalty_every)
    if row.loss == "wgan-gp" and (config.gamma is not None or config.penalty_every != 1):
        raise ValueError(f"--gamma and --penalty-every are R1's, and configuration {config.configuration} has WGAN-GP")
    loss = PROGAN_LOSS if row.loss == "wgan-gp" else r1
    if config.configuration in "AB" and config.w_features != Config.w_features:
        raise ValueError(f"--w-features is a mapping network's, and configuration {config.configuration} has none")
    fields = {**getattr(row.generator, "keywords", {}), "latent_features": config.latent_features}
    if config.configuration in "AB":
        return train_faces(config, "progan", "progan" if config.configuration == "A" else "stylegan", loss, **fields)
    return train_faces(config, "stylegan", "stylegan", loss, w_features=config.w_features, **fields)


if __name__ == "__main__":
    run_experiment(main, Config, __doc__)
