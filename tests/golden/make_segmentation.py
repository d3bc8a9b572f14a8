"""Makes segmentation.npz: slices of the reference models' logits. Needs the parity extra.

PYTHONPATH=tests python tests/golden/make_segmentation.py
"""

import pathlib

import numpy as np
import torch
from golden import reference
from golden.named import image

# of the images: norms need more than a few pixels, the plain U-Nets take multiples of 16, the valid one 188 + 16 k
SIZES = {"fcn_googlenet": (97, 131), "unet": (48, 32), "unet_small": (48, 32), "unet_valid": (188, 204)}
TRAIN = ("fcn_googlenet", "segnet_vgg16_bn", "segnet_basic", "unet")  # the models with batch norm

if __name__ == "__main__":
    slices = {}
    torch.set_num_threads(2)
    for name in reference.segmentation_models(5, reference.NARROW, 24, 8, (4,), (4,)):
        images = image(2, *SIZES.get(name, (37, 53)))
        model = reference.narrow(name)
        logits = reference.run(model.eval(), images).numpy()
        slices[name] = logits[:, ::5, ::7]
        print(f"{name}: {logits.shape}, standard deviation {logits.std():.2f}")
        if name in TRAIN:
            slices[f"{name} train"] = reference.run(model.train(), images).detach().numpy()[:, ::5, ::7]
            for path, statistic in reference.statistics(model).items():
                slices[f"{name} {path}"] = statistic[:3]
    np.savez_compressed(pathlib.Path(__file__).with_name("segmentation.npz"), **slices)
