"""Every detector beside torchvision's own code, with the same weights: `detect` of photographs against its lists."""

import functools
import zlib

import numpy as np
import pytest

import jaxseg
from jaxseg.models import DETECTORS
from jaxseg.predict import detect
from jaxseg.weights import from_published, to_published

pytestmark = pytest.mark.parity

# the others are on VGG-16, C4 or ResNet-101, which are not torchvision's
PUBLISHED = [name for name in DETECTORS if "fpn" in name and "resnet101" not in name]
# torchvision's own fields, so small that a test can wait for them
FIELDS = {
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 50,
    "box_detections_per_img": 12,
    "min_size": 96,
    "max_size": 160,
}
# spreads of the outputs of heads that make well-separated scores and boxes unlike the anchors; rounding moves an edge
# by its share of the delta, times anchors of up to 512 pixels
SPREADS = {
    "cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.1,
    "cls_score": 3.0,
    "box_predictor.bbox_pred": 0.5,
    "mask_fcn": 2.0,
}


def photograph(h, w):
    rng = np.random.default_rng(1000 * h + w)
    blocks = rng.uniform(size=(h // 8 + 1, w // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:h, :w]
    return (0.7 * blocks + 0.3 * rng.uniform(size=(h, w, 3))).astype(np.float32)


def theirs(name, num_classes=91):
    """torchvision's model in weights named by its own names, its heads scaled to SPREADS."""
    from torchvision_shim import torch, torchvision

    detection = torchvision.models.detection
    build = getattr(detection, name)
    model = build(weights=None, weights_backbone=None, num_classes=num_classes, **FIELDS).eval()
    frozen_eps = {"fasterrcnn_resnet50_fpn": 0.0, "maskrcnn_resnet50_fpn": 0.0}  # as its pretrained v1 have it
    with torch.no_grad():
        for key, value in model.state_dict().items():
            noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(value.shape), np.float32)
            if key.endswith("num_batches_tracked"):
                continue
            if key.endswith("running_var"):
                noise = np.exp(0.3 * noise)
            elif value.ndim > 1:
                noise *= (2 / np.prod(value.shape[1:])) ** 0.5
            elif key.endswith("weight"):
                noise = (1 + 0.2 * noise) * (0.3 if "bn3" in key else 1.0)  # so that residues stay small
            else:
                noise *= 0.2
            value.copy_(torch.from_numpy(noise))
        for module in model.modules():  # here too: deep sums amplify rounding, PyTorch's own included, a hundredfold
            if type(module).__name__ == "InvertedResidual":
                module.block[-1][1].weight *= 0.3
                module.block[-1][1].bias *= 0.3
        hooks = []
        for key, module in model.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = frozen_eps.get(name, module.eps)
            spread = next((s for part, s in SPREADS.items() if part in key), None)
            if spread is not None and hasattr(module, "weight"):

                def scale(module, inputs, output, spread=spread, done=[]):  # noqa: B006, the state is the point
                    if done:
                        return None
                    done.append(True)
                    axes = [axis for axis in range(output.ndim) if axis != 1]
                    mean = output.mean(axes, keepdim=True)  # so that no class wins everywhere
                    factor = spread / float((output - mean).std())
                    module.weight *= factor
                    module.bias.copy_((module.bias - mean.flatten()) * factor)
                    return module(*inputs)

                hooks.append(module.register_forward_hook(scale))
        run(model, [photograph(96, 128)])
        for hook in hooks:
            hook.remove()
    return model


def run(model, images):
    from torchvision_shim import torch

    with torch.no_grad():
        return model([torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1))) for x in images])


@functools.cache
def both(name):
    model = jaxseg.create_model(name, num_classes=91, **FIELDS)
    reference = theirs(name)
    state = {k: v.numpy().copy() for k, v in reference.state_dict().items()}
    return model, from_published(state, model).variables, reference, state


@pytest.mark.parametrize("name", PUBLISHED)
def test_detections_are_torchvisions(name):
    """A batch of different sizes on one canvas, and another size alone; of the same heads on other bodies the batch."""
    model, variables, reference, state = both(name)
    again = to_published(model, variables)
    assert set(again) == {k for k in state if not k.endswith("num_batches_tracked")}
    assert all(np.array_equal(v, state[k]) for k, v in again.items())
    batches = ([(150, 120), (96, 131), (64, 64)], [(110, 150)])
    for sizes in batches[:1] if name == "fasterrcnn_mobilenet_v3_large_fpn" else batches:
        images = [photograph(*size) for size in sizes]
        for ours, expected in zip(detect(model, variables, images), run(reference, images), strict=True):
            found = int(ours.valid.sum())
            assert found == len(expected["boxes"]) > 5
            assert ours.valid[:found].all()
            assert len(set(expected["labels"].tolist())) > 1
            np.testing.assert_array_equal(ours.classes[:found], expected["labels"])
            np.testing.assert_allclose(ours.boxes[:found], expected["boxes"], atol=0.01)
            np.testing.assert_allclose(ours.scores[:found], expected["scores"], atol=1e-4)
            if "masks" in expected:
                masks = expected["masks"]
                assert (masks > 0.9).any()
                assert ((masks > 0.02) & (masks < 0.5)).any()
                np.testing.assert_allclose(ours.masks[:found], masks[:, 0], atol=1e-3)
