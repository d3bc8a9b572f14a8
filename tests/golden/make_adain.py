"""Makes adain.npz: a slice of the full-width transfer in named weights. Needs the parity extra.

PYTHONPATH=.:tests python tests/golden/make_adain.py
"""

import pathlib

import numpy as np
import torch
from golden import adain
from models.test_adain_transfer import CONTENT, STYLE, full

if __name__ == "__main__":
    _, variables = full()
    content, style = (torch.tensor(np.asarray(x)).permute(0, 3, 1, 2) for x in (CONTENT(), STYLE()))
    with torch.no_grad():
        networks = adain.reference(variables)
        features = networks[0](content).permute(0, 2, 3, 1)
        image = adain.transfer(networks, content, style, 0.8).permute(0, 2, 3, 1)
    np.savez_compressed(
        pathlib.Path(__file__).with_name("adain.npz"), relu4_1=features[0, ::3, ::3, ::8], image=image[0, ::5, ::7]
    )
