"""The zoo in PyTorch, as the parity tests have it (tests/golden/reference.py), at the published widths.

The tests compare logits and gradients, so their models have no dropout; here it is put where ours has it.
"""

import pathlib
import sys

import torch

sys.path.append(str(pathlib.Path(__file__).parents[2] / "tests"))
from golden import reference

__all__ = ["torch_model"]

UNET = (64, 128, 256, 512, 1024)
# before the ReLU, which commutes with dropout
DROPOUT = {"fcn": ("fc6", "fc7"), "unet_valid": ("down4", "down5")}


def torch_model(name: str, num_classes: int, parameters: int) -> torch.nn.Module:
    """The model of that name in MODELS, from `[N, C, H, W]` images to `[N, K, H, W]` logits, in random weights.

    Raises ValueError for a name without a transcription, and for one that has not `parameters` parameters.
    """
    models = reference.segmentation_models(
        num_classes, reference.FULL, 4096, 64, UNET, tuple(width // 4 for width in UNET)
    )
    if name not in models:
        raise ValueError(f'no PyTorch transcription of "{name}"; there are {", ".join(models)}')
    model = models[name]()
    if reference.count(model) != parameters:
        raise ValueError(f"{name} has {parameters} parameters, its transcription {reference.count(model)}")
    for start, layers in DROPOUT.items():
        for layer in layers if name.startswith(start) else ():
            getattr(model, layer).register_forward_hook(
                lambda module, _, out: torch.nn.functional.dropout(out, 0.5, module.training)
            )
    return model
