"""Makes vgg.npz: slices of the reference VGGs' features and class scores. Needs the parity extra.

PYTHONPATH=tests python tests/golden/make_vgg.py
"""

import pathlib

import numpy as np
import torch
from golden import reference
from golden.named import image

MODELS = {
    "vgg11": ((1, 1, 2, 2, 2), False),
    "vgg16_bn": ((2, 2, 3, 3, 3), True),
    "vgg19": ((2, 2, 4, 4, 4), False),
}

if __name__ == "__main__":
    slices = {}
    for name, (depths, norm) in MODELS.items():
        model = reference.VGGClassifier(depths, reference.NARROW, norm, 20, 9)
        model = reference.load_named(model).eval()
        with torch.no_grad():
            x = torch.tensor(np.asarray(image(2, 45, 66))).permute(0, 3, 1, 2)
            slices[name] = model(x).numpy()
            for feature, tensor in model.encoder(x).items():
                if feature.startswith(("relu", "pool")):
                    slices[f"{name} {feature}"] = tensor.movedim(1, -1).numpy()[1, -1, :4]
    np.savez_compressed(pathlib.Path(__file__).with_name("vgg.npz"), **slices)
