"""What `jaxseg bench` measures beside detectors, generators and style transfer: torchvision's, and tests/golden's.

With jaxseg's own weights, so that the two find as many objects, and look at as many pixels.
"""

import copy
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch_device

from jaxseg.models.adain_transfer import AdaINTransfer
from jaxseg.models.faster_rcnn import FasterRCNN
from jaxseg.models.progan import GrowingDiscriminator, ProGANGenerator
from jaxseg.models.stylegan import StyleGANGenerator
from jaxseg.weights import to_genforce, to_published

sys.path.append(str(pathlib.Path(__file__).parents[2] / "tests"))
from golden import adain, generation

__all__ = ["network_calls"]

Calls = dict[str, Callable[[], Any]]


def _detector(ours: Any, num_classes: int, compiled: bool) -> Mapping[str, Calls]:
    from torchvision_shim import torchvision

    build = getattr(torchvision.models.detection, ours.name, None)
    if build is None:
        return {}
    (h, w), images = ours.setting.size, ours.inputs[0]
    limits = {"min_size": min(h, w), "max_size": max(h, w)}
    model = build(weights=None, weights_backbone=None, num_classes=num_classes, **limits)
    state = {k: torch.tensor(np.asarray(v)) for k, v in to_published(ours.model, ours.variables).items()}
    model.load_state_dict(state, strict=False)  # without num_batches_tracked
    pictures = [torch.tensor(np.asarray(x)).permute(2, 0, 1).clamp(0, 1) for x in images]

    if torch_device.on_gpu():
        model.to(memory_format=torch.channels_last)
    what = "torchvision" if torchvision.extension._has_ops() else "torchvision, operators in Python"
    found = {what: _detector_calls(model, pictures, ours)}
    if compiled:  # what has fixed shapes
        faster = copy.deepcopy(model)
        faster.backbone, faster.rpn.head = torch.compile(faster.backbone), torch.compile(faster.rpn.head)
        found[f"{what}, compiled"] = _detector_calls(faster, pictures, ours)
    return found


def _detector_calls(model: Any, pictures: list[torch.Tensor], ours: Any) -> Calls:
    def forward() -> None:
        model.eval()
        with torch.inference_mode(), torch_device.autocast(ours.setting.dtype):
            model(pictures)

    calls: Calls = {"forward": torch_device.finished(forward)}
    if ours.batch:
        calls["train"] = torch_device.finished(_training(model, ours.batch, ours.setting.dtype))
    return calls


def _training(model: Any, batch: Mapping[str, Any], dtype: str) -> Callable[[], None]:
    """The losses of the same objects, their gradients, SGD."""
    pictures = [torch.tensor(x / 255).permute(2, 0, 1).float() for x in np.asarray(batch["image"])]
    targets = []
    for ids, label in zip(np.asarray(batch["instances"]), np.asarray(batch["label"]), strict=True):
        masks = ids == np.unique(ids[ids > 0])[:, None, None]
        boxes = [[c.min(), r.min(), c.max() + 1, r.max() + 1] for r, c in map(np.nonzero, masks)]
        labels = torch.tensor([int(label[mask][0]) for mask in masks])
        targets.append(
            {
                "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
                "labels": labels,
                "masks": torch.tensor(masks.astype(np.uint8)),
            }
        )
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch_device.autocast(dtype):
            losses = model(pictures, targets)
        sum(losses.values()).backward()
        optimizer.step()

    return train


def network_calls(ours: Any, num_classes: int, *, compiled: bool) -> Mapping[str, Calls]:
    """`{peer: {task: call}}` for a model that scores no pixels; none where nobody published one that is here.

    With `compiled` also by torch.compile; of a detector the backbone and the RPN's head, whose shapes are fixed.
    """
    model, arrays = ours.model, [np.asarray(x, np.float32) for x in ours.inputs]
    if isinstance(model, FasterRCNN):
        return _detector(ours, num_classes, compiled)
    if isinstance(model, AdaINTransfer):
        networks = adain.reference(ours.variables)
        pictures = [torch_device.images_first(x) for x in arrays[:2]]
        return _eager_and_compiled(lambda: adain.transfer(networks, *pictures), ours.setting.dtype, compiled)
    if not isinstance(model, StyleGANGenerator | ProGANGenerator | GrowingDiscriminator):
        return {}
    weights = {k: tensor.detach() for k, tensor in generation.tensors(to_genforce(model, ours.variables)).items()}
    first = torch_device.images_first(arrays[0]) if arrays[0].ndim == 4 else torch.tensor(arrays[0])
    if isinstance(model, GrowingDiscriminator):
        blurs = model.blur
        forward = lambda: generation.discriminate(weights, first, blur=blurs)  # noqa: E731
    elif isinstance(model, StyleGANGenerator):
        forward = lambda: generation.stylegan_generate(weights, first, model.resolution)  # noqa: E731
    else:
        forward = lambda: generation.progan_generate(weights, first, model.resolution)  # noqa: E731
    return _eager_and_compiled(forward, ours.setting.dtype, compiled)


def _eager_and_compiled(call: Callable[[], Any], dtype: str, compiled: bool) -> Mapping[str, Calls]:
    def forward(call: Callable[[], Any]) -> Calls:
        @torch.no_grad()
        def run() -> Any:
            with torch_device.autocast(dtype):
                return call()

        return {"forward": torch_device.finished(run)}

    return {"torch eager": forward(call)} | ({"torch compiled": forward(torch.compile(call))} if compiled else {})
