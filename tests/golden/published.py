"""The published models themselves, as published and with few channels, in the values that our names have."""

import functools
import re

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torchvision_shim import torchvision

from jaxseg.weights import from_published, to_published

__all__ = ["features_of", "full", "gradients", "hooked", "load", "narrow", "run", "statistics"]

smp = pytest.importorskip("segmentation_models_pytorch")  # after the shim: it imports torchvision
segmentation = torchvision.models.segmentation


class NarrowResNet(torchvision.models.resnet.ResNet):
    """torchvision's ResNet, stage by stage of the widths that `planes` names."""

    def __init__(self, block, depths, planes, inplanes=64, **rest):
        self.planes, self.first_inplanes = dict(zip((64, 128, 256, 512), planes, strict=True)), inplanes
        super().__init__(block, depths, **rest)

    def _make_layer(self, block, planes, *args, **rest):
        if planes == 64:
            self.inplanes = self.first_inplanes
        return super()._make_layer(block, self.planes[planes], *args, **rest)


def _narrow_resnet():
    return NarrowResNet(
        torchvision.models.resnet.Bottleneck,
        [1, 1, 2, 2],
        (4, 8, 12, 16),
        replace_stride_with_dilation=[False, True, True],
    )


def _narrow_mobilenet():
    rows, last = torchvision.models.mobilenetv3._mobilenet_v3_conf("mobilenet_v3_large", width_mult=0.25, dilated=True)
    return torchvision.models.MobileNetV3(rows, last).features


def _layers(backbone, **names):
    return torchvision.models._utils.IntermediateLayerGetter(backbone, {v: k for k, v in names.items()})


def _narrow_fcn(classes):
    return segmentation.FCN(
        _layers(_narrow_resnet(), out="layer4", aux="layer3"),
        segmentation.fcn.FCNHead(64, classes),
        segmentation.fcn.FCNHead(48, classes),
    )


def _narrow_deeplab(classes):
    return segmentation.DeepLabV3(
        _layers(_narrow_resnet(), out="layer4", aux="layer3"),
        segmentation.deeplabv3.DeepLabHead(64, classes),
        segmentation.fcn.FCNHead(48, classes),
    )


def _narrow_mobile_deeplab(classes):
    backbone = _narrow_mobilenet()
    return segmentation.DeepLabV3(
        _layers(backbone, out="16", aux="4"),
        segmentation.deeplabv3.DeepLabHead(backbone[16].out_channels, classes),
        segmentation.fcn.FCNHead(backbone[4].out_channels, classes),
    )


def _narrow_lraspp(classes):
    backbone = _narrow_mobilenet()
    return segmentation.LRASPP(
        _layers(backbone, high="16", low="4"), backbone[4].out_channels, backbone[16].out_channels, classes
    )


class SemsegPSPNet(nn.Module):
    """hszhao/semseg's PSPNet, transcribed: it is on no package index. Its keys, less `module.`.

    `pool=nn.AdaptiveMaxPool2d` is the paper's other pooling, which semseg does not have.
    """

    def __init__(
        self, depths, classes, planes=(64, 128, 256, 512), stem=64, heads=(512, 256), pool=nn.AdaptiveAvgPool2d
    ):
        super().__init__()
        block = torchvision.models.resnet.Bottleneck
        resnet = NarrowResNet(block, depths, planes, 2 * stem, replace_stride_with_dilation=[False, True, True])
        for first, dilation in ((resnet.layer3[0], 2), (resnet.layer4[0], 4)):
            first.conv2.dilation = first.conv2.padding = (dilation, dilation)
        layers = []
        for into, out, stride in ((3, stem, 2), (stem, stem, 1), (stem, 2 * stem, 1)):
            layers += [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.layer0 = nn.Sequential(*layers, nn.MaxPool2d(3, 2, 1))
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(resnet, f"layer{i}") for i in (1, 2, 3, 4))
        deep, before = 4 * planes[3], 4 * planes[2]
        self.ppm = nn.Module()
        self.ppm.features = nn.ModuleList(
            nn.Sequential(
                pool(size),
                nn.Conv2d(deep, deep // 4, 1, bias=False),
                nn.BatchNorm2d(deep // 4),
                nn.ReLU(),
            )
            for size in (1, 2, 3, 6)
        )
        self.cls = segmentation.fcn.FCNHead(8 * deep, classes)
        self.cls[0] = nn.Conv2d(2 * deep, heads[0], 3, padding=1, bias=False)
        self.aux = segmentation.fcn.FCNHead(4 * before, classes)
        self.aux[0] = nn.Conv2d(before, heads[1], 3, padding=1, bias=False)
        for head, width in ((self.cls, heads[0]), (self.aux, heads[1])):
            head[1], head[4] = nn.BatchNorm2d(width), nn.Conv2d(width, classes, 1)

    def forward(self, image):
        def resized(x, size):
            return nn.functional.interpolate(x, size, mode="bilinear", align_corners=True)

        before = self.layer3(self.layer2(self.layer1(self.layer0(image))))
        deep = self.layer4(before)
        x = torch.cat([deep, *(resized(f(deep), deep.shape[2:]) for f in self.ppm.features)], 1)
        size = image.shape[2:]
        return {"out": resized(self.cls(x), size), "aux": resized(self.aux(before), size)}


class NarrowEncoder(smp.encoders.resnet.ResNetEncoder):
    def _make_layer(self, block, planes, *args, **rest):
        return super()._make_layer(block, {64: 4, 128: 8, 256: 12, 512: 16}[planes], *args, **rest)


smp.encoders.encoders["narrow"] = {
    "encoder": NarrowEncoder,
    "pretrained_settings": {},
    "params": {
        "out_channels": [3, 64, 4, 8, 12, 16],
        "block": torchvision.models.resnet.BasicBlock,
        "layers": [1, 1, 2, 2],
    },
}


class NarrowMobileEncoder(smp.encoders.mobilenet.MobileNetV2Encoder):
    """SMP's MobileNetV2 with a block a row, which it names by their numbers, but for two at stride 32."""

    def __init__(self, **rest):
        rows = [
            (1, 16, 1, 1),
            (6, 24, 1, 2),
            (6, 32, 1, 2),
            (6, 64, 1, 2),
            (6, 96, 1, 1),
            (6, 160, 2, 2),
            (6, 320, 1, 1),
        ]
        super().__init__(inverted_residual_setting=rows, width_mult=0.25, **rest)
        self._out_indexes = [1, 2, 3, 5, 9]

    def get_stages(self):
        return {16: [self.features[4:6]], 32: [self.features[6:]]}


smp.encoders.encoders["narrow_mobilenet_v2"] = {
    "encoder": NarrowMobileEncoder,
    "pretrained_settings": {},
    "params": {"out_channels": [3, 8, 8, 8, 24, 1280]},
}
smp.encoders.encoders["vgg_narrow"] = {
    "encoder": smp.encoders.vgg.VGGEncoder,
    "pretrained_settings": {},
    "params": {
        "out_channels": [4, 8, 8, 12, 16, 16],
        "config": [4, 4, "M", 8, 8, "M", 8, 8, 8, "M", 12, 12, 12, "M", 16, 16, 16, "M"],
        "batch_norm": True,
    },
}


def _narrow_pspnet(classes, **fields):
    return SemsegPSPNet([1, 1, 2, 2], classes, (4, 8, 12, 16), 4, (24, 12), **fields)


def _narrow_smp(model, encoder="narrow", **fields):
    return lambda classes: model(encoder, encoder_weights=None, classes=classes, **fields)


DECODER = {"decoder_channels": (12, 8, 8, 4, 4)}

NARROW = {
    "fcn_resnet50": _narrow_fcn,
    "fcn_resnet101": _narrow_fcn,
    "deeplabv3_resnet50": _narrow_deeplab,
    "deeplabv3_resnet101": _narrow_deeplab,
    "deeplabv3_mobilenet_v3_large": _narrow_mobile_deeplab,
    "lraspp_mobilenet_v3_large": _narrow_lraspp,
    **{f"pspnet_resnet{depth}": _narrow_pspnet for depth in (18, 34, 50, 101, 152)},
    **{f"deeplabv3plus_resnet{d}": _narrow_smp(smp.DeepLabV3Plus, decoder_channels=16) for d in (34, 50, 101)},
    "deeplabv3plus_mobilenet_v2": _narrow_smp(smp.DeepLabV3Plus, "narrow_mobilenet_v2", decoder_channels=16),
    "deeplabv3_mobilenet_v2": _narrow_smp(smp.DeepLabV3, "narrow_mobilenet_v2", decoder_channels=16),
    **{f"pspnet_smp_resnet{depth}": _narrow_smp(smp.PSPNet, psp_out_channels=24) for depth in (34, 50)},
    **{f"unet_resnet{depth}": _narrow_smp(smp.Unet, **DECODER) for depth in (18, 34, 50, 101, 152)},
    "unet_vgg16_bn": _narrow_smp(smp.Unet, "vgg_narrow", **DECODER),
    "unet_mobilenet_v2": _narrow_smp(smp.Unet, "narrow_mobilenet_v2", **DECODER),
    "pspnet_resnet50 with maxima": functools.partial(_narrow_pspnet, pool=nn.AdaptiveMaxPool2d),
}
DEPTHS = {"50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}
SMP = {
    "unet": smp.Unet,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "deeplabv3_smp": smp.DeepLabV3,
    "deeplabv3_mobilenet": smp.DeepLabV3,
    "pspnet_smp": smp.PSPNet,
}


def narrow(name, classes=5):
    return NARROW[name](classes)


def full(name, classes=21):
    """The model that a user of its publisher gets under that name."""
    for family, model in SMP.items():
        if name.startswith(f"{family}_") and "mobilenet_v3" not in name:
            encoder = name.removeprefix("deeplabv3_" if "mobilenet" in family else f"{family}_")
            return model(encoder, encoder_weights=None, classes=classes)
    if name.startswith("pspnet"):
        return SemsegPSPNet(DEPTHS[name.removeprefix("pspnet_resnet")], classes)
    aux = {} if name.startswith("lraspp") else {"aux_loss": True}
    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=classes, **aux)


def load(theirs, model, variables):
    """Fills a published model with our variables; its dropout does nothing from here on."""
    state = {name: torch.tensor(array) for name, array in to_published(model, variables).items()}
    theirs.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    for module in theirs.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return theirs


def run(theirs, images, dtype=torch.float32):
    """Logits, and auxiliary ones or None, `[N, H, W, K]`."""
    output = theirs(torch.tensor(np.asarray(images), dtype=dtype).permute(0, 3, 1, 2))
    if not isinstance(output, dict):
        output = {"out": output}
    return output["out"].movedim(1, -1), output["aux"].movedim(1, -1) if "aux" in output else None


def features_of(theirs):
    """The module that gives each named feature of the backbone, by our name of it; of SMP's VGGs none."""
    found = {}
    for name, _ in theirs.named_modules():
        if stage := re.fullmatch(r"(?:backbone\.|encoder\.|)layer([1-4])", name):
            found[f"stride{2 ** (int(stage[1]) + 1)}"] = name
        elif re.fullmatch(r"(?:backbone\.|encoder\.)relu|layer0\.8", name):
            found["stride2"] = name
        elif layer := re.fullmatch(r"(?:backbone|encoder\.features)\.(\d+)", name):
            found[f"features_{layer[1]}"] = name
    return {} if "encoder.features.0.weight" in theirs.state_dict() else found


def hooked(theirs, names):
    """What those modules give, `[N, H, W, C]` by name, filled by the next forward pass."""
    found, modules = {}, dict(theirs.named_modules())

    def keep(name, output):
        found[name] = output.detach().movedim(1, -1).numpy().copy()

    for name in names:
        modules[name].register_forward_hook(lambda _, __, output, name=name: keep(name, output))
    return found


def statistics(theirs, model):
    """Running means and variances, in the order of our tree's leaves."""
    state = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
    return jax.tree.leaves(from_published(state, model).variables["batch_stats"])


def gradients(theirs, model):
    """A tree of our parameters' gradients."""
    state = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}
    state |= {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    return from_published(state, model).variables["params"]
