"""The published models in PyTorch, transcribed from the papers and from the released definitions' numbers.

Modules bear our names, so that `load_named` finds the weights of every one. Images are `[N, C, H, W]`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from golden.named import value
from torch import nn

FIELDS = {"weight": "kernel", "bias": "bias"}
NORM_FIELDS = {
    "weight": "params/{}/scale",
    "bias": "params/{}/bias",
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
}


def _paths(model):
    """Our path of every parameter and buffer."""
    for name, module in model.named_modules():
        ours = name.replace(".", "/")
        if isinstance(module, nn.BatchNorm2d):
            for field, path in NORM_FIELDS.items():
                yield path.format(ours), getattr(module, field)
        else:
            for field, tensor in module.named_parameters(recurse=False):
                yield f"params/{ours}/{FIELDS[field]}", tensor


def to_flax(tensor):
    array = tensor.detach().numpy()
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def load_named(model):
    """Fills `model` with the values that its names have."""
    with torch.no_grad():
        for path, tensor in _paths(model):
            shape = to_flax(tensor).shape
            ours = value(path, shape)
            tensor.copy_(torch.tensor(ours.transpose(3, 2, 0, 1) if ours.ndim == 4 else ours.T))
    return model


def count(model):
    return sum(p.numel() for p in model.parameters())


def statistics(model):
    return {p: t.detach().numpy() for p, t in _paths(model) if p.startswith("batch_stats")}


def gradients(model):
    return {p: to_flax(t.grad) for p, t in _paths(model) if p.startswith("params")}


class VGG(nn.Module):
    def __init__(self, depths, widths=(64, 128, 256, 512, 512), norm=False, ceil_mode=False, first_padding=1):
        super().__init__()
        self.depths, self.norm, self.ceil_mode = depths, norm, ceil_mode
        channels = 3
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            for i in range(1, depth + 1):
                padding = first_padding if stage == i == 1 else 1
                setattr(self, f"conv{stage}_{i}", nn.Conv2d(channels, width, 3, padding=padding))
                if norm:
                    setattr(self, f"bn{stage}_{i}", nn.BatchNorm2d(width))
                channels = width

    def forward(self, x):
        out = {}
        for stage, depth in enumerate(self.depths, 1):
            for i in range(1, depth + 1):
                x = getattr(self, f"conv{stage}_{i}")(x)
                if self.norm:
                    x = getattr(self, f"bn{stage}_{i}")(x)
                x = out[f"relu{stage}_{i}"] = F.relu(x)
            out[f"size{stage}"] = x.shape[2:]
            x, out[f"where{stage}"] = F.max_pool2d(x, 2, 2, ceil_mode=self.ceil_mode, return_indices=True)
            out[f"pool{stage}"] = x
        return out


class VGGClassifier(nn.Module):
    def __init__(self, depths, widths, norm, fc, classes):
        super().__init__()
        self.encoder = VGG(depths, widths, norm)
        self.fc6, self.fc7 = nn.Linear(widths[-1] * 49, fc), nn.Linear(fc, fc)
        self.fc8 = nn.Linear(fc, classes)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.encoder(x)["pool5"], 7)
        x = x.permute(0, 2, 3, 1).flatten(1)  # our order of features; torchvision's is the name map's matter
        return self.fc8(F.relu(self.fc7(F.relu(self.fc6(x)))))


class Deconv(nn.Module):
    def __init__(self, classes, factor, fixed):
        super().__init__()
        self.factor, self.fixed = factor, fixed
        if fixed:
            line = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
            self.register_buffer("line", line)
        else:
            self.deconv = nn.ConvTranspose2d(classes, classes, 2 * factor, factor, bias=False)

    def forward(self, x):
        if self.fixed:
            kernel = torch.outer(self.line, self.line).expand(x.shape[1], 1, -1, -1)
            return F.conv_transpose2d(x, kernel, stride=self.factor, groups=x.shape[1])
        return self.deconv(x)


class FCN(nn.Module):
    """voc-fcn{32s,16s,8s} of the release: pad 100, offsets 19, 27, 31 of the output, 5, 9 of the skips."""

    def __init__(self, classes, stride, widths, fc, fixed=False, scales=(1.0, 1.0)):
        super().__init__()
        self.stride, self.scales = stride, scales
        self.encoder = VGG((2, 2, 3, 3, 3), widths, ceil_mode=True, first_padding=100)
        self.fc6, self.fc7 = nn.Conv2d(widths[4], fc, 7), nn.Conv2d(fc, fc, 1)
        self.score_fr = nn.Conv2d(fc, classes, 1)
        if stride <= 16:
            self.upscore2 = Deconv(classes, 2, fixed)
            self.score_pool4 = nn.Conv2d(widths[3], classes, 1)
        if stride == 8:
            self.upscore_pool4 = Deconv(classes, 2, fixed)
            self.score_pool3 = nn.Conv2d(widths[2], classes, 1)
        setattr(self, f"upscore{stride}", Deconv(classes, stride, fixed))

    def forward(self, image):
        features = self.encoder(image)
        x = self.score_fr(F.relu(self.fc7(F.relu(self.fc6(features["pool5"])))))
        if self.stride <= 16:
            x = self.upscore2(x)
            skip = self.score_pool4(features["pool4"] * self.scales[0])
            x = x + skip[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
        if self.stride == 8:
            x = self.upscore_pool4(x)
            skip = self.score_pool3(features["pool3"] * self.scales[1])
            x = x + skip[:, :, 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
        x = getattr(self, f"upscore{self.stride}")(x)
        o = {32: 19, 16: 27, 8: 31}[self.stride]
        return x[:, :, o : o + image.shape[2], o : o + image.shape[3]]


class FCN1x1(nn.Module):
    def __init__(self, classes, widths, fc):
        super().__init__()
        self.encoder = VGG((2, 2, 3, 3, 3), widths, ceil_mode=True)
        self.fc6, self.fc7 = nn.Conv2d(widths[4], fc, 1), nn.Conv2d(fc, fc, 1)
        self.score_fr = nn.Conv2d(fc, classes, 1)
        self.upscore32 = Deconv(classes, 32, False)

    def forward(self, image):
        x = self.encoder(image)["pool5"]
        x = self.upscore32(self.score_fr(F.relu(self.fc7(F.relu(self.fc6(x))))))
        return x[:, :, 16 : 16 + image.shape[2], 16 : 16 + image.shape[3]]


class ConvNormRelu(nn.Module):
    def __init__(self, into, out, window, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(into, out, window, stride, window // 2, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    def __init__(self, into, one, reduce3, three, reduce5, five, pool):
        super().__init__()
        self.branch1 = ConvNormRelu(into, one, 1)
        self.branch2_0, self.branch2_1 = ConvNormRelu(into, reduce3, 1), ConvNormRelu(reduce3, three, 3)
        self.branch3_0, self.branch3_1 = ConvNormRelu(into, reduce5, 1), ConvNormRelu(reduce5, five, 3)
        self.branch4_1 = ConvNormRelu(into, pool, 1)

    def forward(self, x):
        pooled = F.max_pool2d(x, 3, 1, 1)
        branches = self.branch1(x), self.branch2_1(self.branch2_0(x)), self.branch3_1(self.branch3_0(x))
        return torch.cat([*branches, self.branch4_1(pooled)], 1)


GOOGLENET = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


class GoogLeNet(nn.Module):
    """The paper's Table 1, with batch norm and 3x3 for 5x5 as torchvision has it, on images mapped to [-1, 1]."""

    def __init__(self, divisor=1):
        super().__init__()
        self.conv1 = ConvNormRelu(3, 64 // divisor, 7, 2)
        self.conv2 = ConvNormRelu(64 // divisor, 64 // divisor, 1)
        self.conv3 = ConvNormRelu(64 // divisor, 192 // divisor, 3)
        into = 192 // divisor
        for name, row in GOOGLENET.items():
            row = tuple(channels // divisor for channels in row)
            setattr(self, f"inception{name}", Inception(into, *row))
            into = row[0] + row[2] + row[4] + row[5]
        self.features = into

    def forward(self, x):
        mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
        x = ((x * std[:, None, None] + mean[:, None, None]) - 0.5) / 0.5
        x = F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.conv3(self.conv2(x)), 3, 2, ceil_mode=True)
        for name in GOOGLENET:
            if name in ("4a", "5a"):
                x = F.max_pool2d(x, 3 if name == "4a" else 2, 2, ceil_mode=True)
            x = getattr(self, f"inception{name}")(x)
        return x


class FCNGoogLeNet(nn.Module):
    def __init__(self, classes, divisor=1):
        super().__init__()
        self.backbone = GoogLeNet(divisor)
        self.score_fr = nn.Conv2d(self.backbone.features, classes, 1)
        self.upscore32 = Deconv(classes, 32, True)

    def forward(self, image):
        x = self.upscore32(self.score_fr(self.backbone(image)))
        return x[:, :, 10 : 10 + image.shape[2], 10 : 10 + image.shape[3]]


class DeepLabLargeFOV(nn.Module):
    """DeepLab-LargeFOV's released train.prototxt, layer by layer."""

    def __init__(self, classes, widths, fc):
        super().__init__()
        self.encoder = VGG((2, 2, 3, 3, 3), widths)
        for i in (1, 2, 3):
            conv = getattr(self.encoder, f"conv5_{i}")
            conv.dilation = conv.padding = (2, 2)
        self.fc6 = nn.Conv2d(widths[4], fc, 3, padding=12, dilation=12)
        self.fc7, self.fc8 = nn.Conv2d(fc, fc, 1), nn.Conv2d(fc, classes, 1)

    def forward(self, image):
        x = image
        for stage, depth in enumerate(self.encoder.depths, 1):
            for i in range(1, depth + 1):
                x = F.relu(getattr(self.encoder, f"conv{stage}_{i}")(x))
            x = F.max_pool2d(x, 3, 2 if stage < 4 else 1, 1, ceil_mode=True)
        x = F.avg_pool2d(x, 3, 1, 1)
        x = self.fc8(F.relu(self.fc7(F.relu(self.fc6(x)))))
        return F.interpolate(x, image.shape[2:], mode="bilinear", align_corners=True)


class SegNet(nn.Module):
    """Decoder layers one by one, as the released segnet_train.prototxt lists them."""

    def __init__(self, classes, widths, ceil_mode=True):
        super().__init__()
        self.encoder = VGG((2, 2, 3, 3, 3), widths, norm=True, ceil_mode=ceil_mode)
        w1, w2, w3, w4, w5 = widths
        layers = {
            "5_3": (w5, w5), "5_2": (w5, w5), "5_1": (w5, w4),
            "4_3": (w4, w4), "4_2": (w4, w4), "4_1": (w4, w3),
            "3_3": (w3, w3), "3_2": (w3, w3), "3_1": (w3, w2),
            "2_2": (w2, w2), "2_1": (w2, w1),
            "1_2": (w1, w1), "1_1": (w1, classes),
        }  # fmt: skip
        self.layers = list(layers)
        for name, (into, out) in layers.items():
            setattr(self, f"conv{name}_D", nn.Conv2d(into, out, 3, padding=1))
            if name != "1_1":
                setattr(self, f"bn{name}_D", nn.BatchNorm2d(out))

    def forward(self, image):
        features = self.encoder(image)
        x, stage_before = features["pool5"], None
        for name in self.layers:
            stage = name[0]
            if stage != stage_before:
                x = F.max_unpool2d(x, features[f"where{stage}"], 2, 2, output_size=features[f"size{stage}"])
            stage_before = stage
            x = getattr(self, f"conv{name}_D")(x)
            if name != "1_1":
                x = F.relu(getattr(self, f"bn{name}_D")(x))
        return x


class SegNetBasic(nn.Module):
    def __init__(self, classes, width, lrn=False):
        super().__init__()
        self.lrn = lrn
        for i in (1, 2, 3, 4):
            setattr(self, f"conv{i}", nn.Conv2d(3 if i == 1 else width, width, 7, padding=3, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(width))
            setattr(self, f"conv_decode{i}", nn.Conv2d(width, width, 7, padding=3, bias=False))
            setattr(self, f"bn_decode{i}", nn.BatchNorm2d(width))
        self.conv_classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        if self.lrn:
            x = F.local_response_norm(x, 5, 1e-4, 0.75, 1.0)
        sizes, places = [], []
        for i in (1, 2, 3, 4):
            sizes.append(x.shape[2:])
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
            x, where = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
            places.append(where)
        for i in (4, 3, 2, 1):
            x = F.max_unpool2d(x, places.pop(), 2, 2, output_size=sizes.pop())
            x = getattr(self, f"bn_decode{i}")(getattr(self, f"conv_decode{i}")(x))
        return self.conv_classifier(x)


class _Block(nn.Module):
    def __init__(self, into, out, norm, padding):
        super().__init__()
        self.norm = norm
        self.conv1 = nn.Conv2d(into, out, 3, padding=padding, bias=not norm)
        self.conv2 = nn.Conv2d(out, out, 3, padding=padding, bias=not norm)
        if norm:
            self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)

    def forward(self, x):
        x = self.conv1(x)
        x = F.relu(self.bn1(x) if self.norm else x)
        x = self.conv2(x)
        return F.relu(self.bn2(x) if self.norm else x)


class UNet(nn.Module):
    def __init__(self, classes, widths, valid=False):
        super().__init__()
        self.valid, self.levels = valid, len(widths)
        norm, padding = (False, 0) if valid else (True, 1)
        for level, width in enumerate(widths, 1):
            into = widths[level - 2] if level > 1 else 3
            setattr(self, f"down{level}", _Block(into, width, norm, padding))
            if level < len(widths):
                setattr(self, f"upconv{level}", nn.ConvTranspose2d(widths[level], width, 2, 2))
                setattr(self, f"up{level}", _Block(2 * width, width, norm, padding))
        self.logits = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        skips = []
        for level in range(1, self.levels + 1):
            x = getattr(self, f"down{level}")(x if level == 1 else F.max_pool2d(x, 2))
            skips.append(x)
        for level in range(self.levels - 1, 0, -1):
            x = getattr(self, f"upconv{level}")(x)
            skip = skips[level - 1]
            if self.valid:
                x = F.relu(x)
                top, left = ((s - t) // 2 for s, t in zip(skip.shape[2:], x.shape[2:], strict=True))
                skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
            x = getattr(self, f"up{level}")(torch.cat([skip, x], 1))
        return self.logits(x)


NARROW = (4, 8, 8, 12, 16)
FULL = (64, 128, 256, 512, 512)


def segmentation_models(classes, widths, fc, basic, unet, unet_small, fov=1024, divisor=1):
    """Our names and the models, at the widths asked for."""
    return {
        "fcn_googlenet": lambda: FCNGoogLeNet(classes, divisor),
        "deeplab_largefov_vgg16": lambda: DeepLabLargeFOV(classes, widths, fov),
        "fcn32s_vgg16": lambda: FCN(classes, 32, widths, fc),
        "fcn16s_vgg16": lambda: FCN(classes, 16, widths, fc),
        "fcn8s_vgg16": lambda: FCN(classes, 8, widths, fc),
        "fcn8s_vgg16_at_once": lambda: FCN(classes, 8, widths, fc, scales=(0.01, 0.0001)),
        "fcn_vgg16_1x1": lambda: FCN1x1(classes, widths, fc),
        "segnet_vgg16_bn": lambda: SegNet(classes, widths),
        "segnet_basic": lambda: SegNetBasic(classes, basic),
        "unet": lambda: UNet(classes, unet),
        "unet_small": lambda: UNet(classes, unet_small),
        "unet_valid": lambda: UNet(classes, unet, valid=True),
    }


def narrow(name):
    """The model of that name with few channels and 5 classes, in named weights."""
    models = segmentation_models(5, NARROW, 24, 8, (4, 6, 8, 10, 12), (4, 6, 8, 10, 12), 12, 8)
    return load_named(models[name]())


def full(name):
    """The model of that name as published, 21 classes, without storage for its weights."""
    widths = (64, 128, 256, 512, 1024)
    with torch.device("meta"):
        return segmentation_models(21, FULL, 4096, 64, widths, tuple(w // 4 for w in widths))[name]()


def run(model, images):
    """Logits `[N, H, W, K]` for images `[N, H, W, C]`, with gradients if the model is in train mode."""
    with torch.set_grad_enabled(model.training):
        x = torch.tensor(np.asarray(images), dtype=next(model.parameters()).dtype).permute(0, 3, 1, 2)
        return model(x).movedim(1, -1)
