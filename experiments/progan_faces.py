"""ProGAN (Karras et al. 2018) on faces, grown from 4x4.

    python experiments/progan_faces.py --data kaokore64 --out runs/progan                # to 16x16, 2 CPU cores
    python experiments/progan_faces.py --data kaokore64 --conditional --out runs/progan_classes
    python experiments/progan_faces.py --data kaokore64 --resolution 64 --fade-kimg 600 --train-kimg 600 \
        --batch 0 --base-features 16384 --max-features 512 --learning-rate 0.001 --ema-half-life 10000   # a GPU

The run leaves a grid with fixed latents for each resolution, and the sliced Wasserstein distance after each.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from faces import Faces, train_faces

from jaxseg.cli.arguments import demand_positive, run_experiment
from jaxseg.train_adversarial import PROGAN_LOSS


@dataclasses.dataclass(frozen=True)
class Config(Faces):
    latent_features: int = 128
    """Of z; published 512."""


def main(config: Config) -> dict:
    demand_positive(latent_features=config.latent_features)
    return train_faces(config, "progan", "progan", PROGAN_LOSS, latent_features=config.latent_features)


if __name__ == "__main__":
    run_experiment(main, Config, __doc__)
