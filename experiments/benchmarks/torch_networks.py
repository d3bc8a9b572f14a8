"""What `jaxseg bench` measures beside detectors, generators and style transfer: torchvision's, and tests/golden's.

With jaxseg's own weights, so that the two find as many objects, and look at as many pixels.
"""

import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from jaxseg.models.adain_transfer import AdaINTransfer
from jaxseg.models.faster_rcnn import FasterRCNN
from jaxseg.models.progan import GrowingDiscriminator, ProGANGenerator
from jaxseg.models.stylegan import StyleGANGenerator
from jaxseg.weights import to_genforce, to_published

sys.path.append(str(pathlib.Path(__file__).parents[2] / "tests"))
from golden import adain, generation

__all__ = ["network_calls"]

Calls = dict[str, Callable[[], Any]]


def _detector(ours: Any, num_classes: int) -> Mapping[str, Calls]:
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

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model(pictures)

    calls: Calls = {"forward": forward}
    if ours.batch:
        calls["train"] = _training(model, ours.batch)
    what = "torchvision" if torchvision.extension._has_ops() else "torchvision, operators in Python"
    return {what: calls}


def _training(model: Any, batch: Mapping[str, Any]) -> Callable[[], None]:
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
        sum(model(pictures, targets).values()).backward()
        optimizer.step()

    return train


def network_calls(ours: Any, num_classes: int) -> Mapping[str, Calls]:
    """`{peer: {task: call}}` for a model that scores no pixels; none where nobody published one that is here."""
    model, arrays = ours.model, [np.asarray(x, np.float32) for x in ours.inputs]
    if isinstance(model, FasterRCNN):
        return _detector(ours, num_classes)
    if isinstance(model, AdaINTransfer):
        networks = adain.reference(ours.variables)
        pictures = [torch.tensor(x).permute(0, 3, 1, 2).contiguous() for x in arrays[:2]]
        return {"torch eager": {"forward": torch.inference_mode()(lambda: adain.transfer(networks, *pictures))}}
    if not isinstance(model, StyleGANGenerator | ProGANGenerator | GrowingDiscriminator):
        return {}
    weights = generation.tensors(to_genforce(model, ours.variables))
    first = torch.tensor(arrays[0])
    if isinstance(model, GrowingDiscriminator):
        first, blurs = first.permute(0, 3, 1, 2).contiguous(), model.blur
        forward = lambda: generation.discriminate(weights, first, blur=blurs)  # noqa: E731
    elif isinstance(model, StyleGANGenerator):
        forward = lambda: generation.stylegan_generate(weights, first, model.resolution)  # noqa: E731
    else:
        forward = lambda: generation.progan_generate(weights, first, model.resolution)  # noqa: E731
    return {"torch eager": {"forward": torch.inference_mode()(forward)}}
