"""The zoo in PyTorch, as the parity tests have it: torchvision's and SMP's own, and tests/golden's transcriptions.

The tests compare logits and gradients, so the transcriptions have no dropout; here it is put where ours has it.
"""

import pathlib
import sys

import torch

sys.path.append(str(pathlib.Path(__file__).parents[2] / "tests"))
from golden import published, reference

__all__ = ["torch_model"]

UNET = (64, 128, 256, 512, 1024)
# before the ReLU, which commutes with dropout
DROPOUT = {"fcn": ("fc6", "fc7"), "deeplab_largefov": ("fc6", "fc7"), "unet_valid": ("down4", "down5")}


def torch_model(name: str, num_classes: int, parameters: int) -> torch.nn.Module:
    """The model of that name in MODELS, from `[N, C, H, W]` images to logits, in random weights.

    Logits are `[N, K, H, W]`, or a dict of `out` and `aux` as torchvision's. Raises ValueError for one that has
    not `parameters` parameters.
    """
    models = reference.segmentation_models(
        num_classes, reference.FULL, 4096, 64, UNET, tuple(width // 4 for width in UNET)
    )
    model = models[name]() if name in models else published.full(name, num_classes)
    if reference.count(model) != parameters:
        raise ValueError(f"{name} has {parameters} parameters, its peer {reference.count(model)}")
    for start, layers in DROPOUT.items():
        for layer in layers if name in models and name.startswith(start) and hasattr(model, layers[0]) else ():
            getattr(model, layer).register_forward_hook(
                lambda module, _, out: torch.nn.functional.dropout(out, 0.5, module.training)
            )
    return model
