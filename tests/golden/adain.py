"""AdaIN style transfer in PyTorch, from the paper and pytorch-AdaIN's definition of its networks."""

import torch
from torch import nn

from jaxseg.weights.adain import to_pytorch_adain

__all__ = ["coral", "decoder", "encoder", "moments", "reference", "transfer"]

FULL = (64, 128, 256, 512)


def _conv(c, features):
    return [nn.ReflectionPad2d(1), nn.Conv2d(c, features, 3), nn.ReLU()]


def encoder(depths=(2, 2, 4, 1), widths=FULL):
    """To relu4_1, as vgg_normalised.pth counts its layers."""
    layers, c = [nn.Conv2d(3, 3, 1)], 3
    for stage, (depth, features) in enumerate(zip(depths, widths, strict=True)):
        if stage:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        for _ in range(depth):
            layers += _conv(c, features)
            c = features
    return nn.Sequential(*layers)


def decoder(depths=(2, 2, 4, 1), widths=FULL):
    narrower = (3, *widths)
    layers, c = [], widths[-1]
    for stage in reversed(range(len(depths))):
        for i in reversed(range(depths[stage])):
            features = narrower[stage] if i == 0 else widths[stage]
            layers += _conv(c, features)
            c = features
        if stage:
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
    return nn.Sequential(*layers[:-1])  # no ReLU at the end


def moments(x):
    var = x.flatten(2).var(2) + 1e-5
    return x.flatten(2).mean(2)[..., None, None], var.sqrt()[..., None, None]


def transfer(networks, content, style, alpha=1.0):
    encode, decode = networks
    features, (mean, std) = encode(content), moments(encode(style))
    own_mean, own_std = moments(features)
    target = (features - own_mean) / own_std * std + mean
    return decode(alpha * target + (1 - alpha) * features)


def coral(source, target):
    """`source` `[3, n]` with the colours of `target` `[3, m]`."""

    def prepare(x):
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        x = (x - mean) / std
        u, d, v = torch.linalg.svd(x @ x.T + torch.eye(3))
        return x, mean, std, u @ d.sqrt().diag() @ v

    x, _, _, root = prepare(source)
    _, mean, std, target_root = prepare(target)
    return target_root @ torch.linalg.inv(root) @ x * std + mean


def reference(variables, **sizes):
    """Both networks with the values of our variables."""
    networks = encoder(**sizes), decoder(**sizes)
    for network, part in zip(networks, ("encoder", "decoder"), strict=True):
        network.load_state_dict({k: torch.tensor(v) for k, v in to_pytorch_adain(variables, part).items()})
    return networks
