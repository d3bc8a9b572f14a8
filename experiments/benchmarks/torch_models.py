"""The zoo in PyTorch, as the parity tests have it: torchvision's and SMP's own, and tests/golden's transcriptions.

The tests compare logits and gradients, so the transcriptions have no dropout; here it is put where ours has it.
`jaxseg bench` measures these beside its own.
"""

import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

sys.path += [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2] / "tests")]
import torch_device
import torch_kernels
import torch_networks
from golden import published, reference

__all__ = ["peers", "torch_calls", "torch_model"]

UNET = (64, 128, 256, 512, 1024)
# before the ReLU, which commutes with dropout
DROPOUT = {"fcn": ("fc6", "fc7"), "deeplab_largefov": ("fc6", "fc7"), "unet_valid": ("down4", "down5")}


def torch_model(name: str, num_classes: int, parameters: int) -> torch.nn.Module | None:
    """The semantic model of that name in MODELS, from `[N, C, H, W]` images to logits, in random weights, if any.

    Logits are `[N, K, H, W]`, or a dict of `out` and `aux` as torchvision's. Raises ValueError for one that has
    not `parameters` parameters.
    """
    models = reference.segmentation_models(
        num_classes, reference.FULL, 4096, 64, UNET, tuple(width // 4 for width in UNET)
    )
    if name in ("pspnet_resnet18", "pspnet_resnet34"):  # which semseg has not
        return None
    model = models[name]() if name in models else published.full(name, num_classes)
    if reference.count(model) != parameters:
        raise ValueError(f"{name} has {parameters} parameters, its peer {reference.count(model)}")
    for start, layers in DROPOUT.items():
        for layer in layers if name in models and name.startswith(start) and hasattr(model, layers[0]) else ():
            getattr(model, layer).register_forward_hook(
                lambda module, _, out: torch.nn.functional.dropout(out, 0.5, module.training)
            )
    return model


def torch_calls(model: torch.nn.Module, images: Any, labels: Any, dtype: str) -> dict[str, Callable[[], None]]:
    """The forward pass and the training step on images `[N, H, W, 3]` and labels, each run to its end."""
    images = torch_device.images_first(np.asarray(images))
    labels = torch.tensor(np.asarray(labels)).long()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    autocast = torch_device.autocast(dtype)

    def forward() -> None:
        model.eval()
        with torch.inference_mode(), autocast:
            model(images)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            output = model(images)
        output = output if isinstance(output, dict) else {"out": output}
        loss = sum(
            weight * torch.nn.functional.cross_entropy(output[name].float(), labels)
            for name, weight in (("out", 1.0), ("aux", 0.4))
            if name in output
        )
        loss.backward()
        optimizer.step()

    return {"forward": torch_device.finished(forward), "train": torch_device.finished(train)}


def peers(num_classes: int, dtype: str, *, threads: int, compiled: bool) -> Callable[[Any], Mapping[str, Mapping]]:
    """What `jaxseg.bench.measure` takes: PyTorch's calls for a model's programs, eager and by torch.compile.

    Raises ImportError where JAX computes on a GPU and PyTorch cannot.
    """
    torch.set_num_threads(threads)
    torch_device.beside_jax()

    def calls(ours: Any) -> Mapping[str, Mapping[str, Callable[[], None]]]:
        if not ours.parameters:
            return torch_kernels.kernel_calls(ours.name, ours.inputs, dtype)
        if ours.labels is None:
            return torch_networks.network_calls(ours, num_classes, compiled=compiled)
        model, images = torch_model(ours.name, num_classes, ours.parameters), ours.inputs[0]
        if model is None:
            return {}
        if torch_device.on_gpu():
            model.to(memory_format=torch.channels_last)
        found = {"torch eager": torch_calls(model, images, ours.labels, dtype)}
        if compiled:
            calls = torch_calls(torch.compile(model), images, ours.labels, dtype)
            try:
                for task in ours.setting.tasks:
                    calls[task]()
                found["torch compiled"] = calls
            except Exception as error:  # the compiler raises its own, a missing C++ compiler among them
                print(f"no torch.compile: {type(error).__name__}: {str(error).strip().splitlines()[0][:100]}")
        return found

    return calls
