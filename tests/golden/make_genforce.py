"""Makes genforce.npz: what genforce's networks, with few channels, make of named weights. Needs the parity extra.

PYTHONPATH=.:tests python tests/golden/make_genforce.py CHECKOUT     # of github.com/genforce/genforce, MIT
"""

import importlib
import pathlib
import sys
import types

import numpy as np
import torch
from models.test_generation import CASES, case, images_of, labels_of, latents

from jaxseg.weights import to_genforce

CLASSES = {
    "stylegan_generator": "StyleGANGenerator",
    "stylegan_discriminator": "StyleGANDiscriminator",
    "progan_generator": "PGGANGenerator",
    "progan_discriminator": "PGGANDiscriminator",
}


def network(name, model, variables):
    module = importlib.import_module("genforce_models." + name.replace("progan", "pggan"))
    options = {"fmaps_base": model.base_features, "fmaps_max": model.max_features, "label_size": model.num_classes}
    built = getattr(module, CLASSES[name])(model.resolution, **options).eval()
    built.load_state_dict({k: torch.tensor(v) for k, v in to_genforce(model, variables).items()}, strict=True)
    return built


def outputs(name, resolution, classes):
    model, variables = case(name, resolution, classes)
    built = network(name, model, variables)
    label = torch.eye(classes)[torch.tensor(np.asarray(labels_of(classes)))] if classes else None
    options = {} if name == "progan_discriminator" else {"label": label}
    if name.endswith("generator"):
        z = torch.tensor(np.asarray(latents()))
        truncation = {"trunc_psi": 0.7, "trunc_layers": 8} if name.startswith("style") else {}
        with torch.no_grad():
            yield "image", built(z, **options, **truncation)["image"]
            yield "faded", built(z, **options, lod=0.7)["image"]
        return
    x = torch.tensor(np.asarray(images_of(resolution))).permute(0, 3, 1, 2).requires_grad_()
    y = built(x, **options)
    (gradient,) = torch.autograd.grad(y[:, 0].sum(), x, create_graph=True)
    penalty = gradient.square().sum((1, 2, 3)).mean()
    penalty.backward()
    yield "score", y.detach()
    yield "gradient", gradient.detach()
    yield "penalty", penalty.detach()[None]
    yield "penalty gradient", dict(built.named_parameters())["layer1.weight"].grad[:, :4, 1, 1]


if __name__ == "__main__":
    package = types.ModuleType("genforce_models")
    package.__path__ = [str(pathlib.Path(sys.argv[1]) / "models")]
    sys.modules["genforce_models"] = package
    slices = {}
    for name, resolution, classes in CASES:
        for what, tensor in outputs(name, resolution, classes):
            array = tensor.permute(0, 2, 3, 1)[:2, ::3, ::5] if tensor.ndim == 4 else tensor
            slices[f"{name} {resolution} {classes} {what}"] = array.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name("genforce.npz"), **slices)
