"""ProGAN and StyleGAN in PyTorch, from the papers, by genforce's names of parameters: functions of a state_dict.

As genforce has them: nearest-neighbour doubling before a convolution, and in StyleGAN from 128x128 on a transposed
convolution instead; blurring by a convolution of each channel, whose gradient is again one. genforce.npz holds
genforce's own numbers, which tests hold against the same of ours.
"""

import math

import torch
from torch.nn import functional

__all__ = ["blurred", "discriminate", "progan_generate", "stylegan_generate", "tensors"]

FUSED_FROM = 128


def tensors(state):
    """A state_dict of arrays as tensors, the parameters of which have gradients."""
    fixed = ("noise", "w_avg", "lod", "kernel")
    return {k: torch.tensor(v).requires_grad_(not k.endswith(fixed)) for k, v in state.items()}


class Blur(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kernel):
        ctx.save_for_backward(kernel)
        return functional.conv2d(x, kernel, padding=1, groups=x.shape[1])

    @staticmethod
    def backward(ctx, gradient):
        return Blur.apply(gradient, ctx.saved_tensors[0]), None  # the kernel is its own mirror image


def blurred(x):
    line = torch.tensor([1.0, 2.0, 1.0])
    return Blur.apply(x, (torch.outer(line, line) / 16).expand(x.shape[1], 1, 3, 3).contiguous().to(x.dtype))


def lrelu(x):
    return functional.leaky_relu(x, 0.2)


def weight(p, name, gain=2**0.5):
    w = p[f"{name}.weight"]
    return w * (gain / math.sqrt(w[0].numel()))


def conv(p, name, x, gain=2**0.5, bias=True):
    w = weight(p, name, gain)
    return functional.conv2d(x, w, p[f"{name}.bias"] if bias else None, padding=w.shape[-1] // 2)


def summed(w):
    """A kernel's sum over the four places of a pixel and its copies."""
    w = functional.pad(w, (1, 1, 1, 1))
    return w[:, :, 1:, 1:] + w[:, :, :-1, 1:] + w[:, :, 1:, :-1] + w[:, :, :-1, :-1]


def doubled(x):
    return functional.interpolate(x, scale_factor=2, mode="nearest")


def doubled_conv(p, name, x):
    if 2 * x.shape[-1] < FUSED_FROM:
        return conv(p, name, doubled(x), bias=False)
    return functional.conv_transpose2d(x, summed(weight(p, name)).transpose(0, 1), stride=2, padding=1)


def pixel_norm(x):
    return x / torch.sqrt(x.square().mean(1, keepdim=True) + 1e-8)


def stylegan_generate(p, z, resolution):
    w = pixel_norm(z)
    for i in range(8):
        name = f"mapping.dense{i}"
        scaled = weight(p, name) * 0.01
        w = lrelu(functional.linear(w, scaled, p[f"{name}.bias"] * 0.01))
    x = p["synthesis.layer0.const"].expand(len(z), -1, -1, -1)
    for n in range(2 * (resolution.bit_length() - 2)):
        name = f"synthesis.layer{n}"
        if n and n % 2 == 0:
            x = blurred(doubled_conv(p, name, x))
        elif n:
            x = conv(p, name, x, bias=False)
        x = x + p[f"{name}.apply_noise.noise"] * p[f"{name}.apply_noise.weight"][:, None, None]
        x = lrelu(x + p[f"{name}.bias"][:, None, None])
        x = x - x.mean((2, 3), keepdim=True)
        x = x / torch.sqrt(x.square().mean((2, 3), keepdim=True) + 1e-8)
        style = functional.linear(w, weight(p, f"{name}.style", 1.0), p[f"{name}.style.bias"])
        scale, shift = style.view(len(z), 2, -1, 1, 1).unbind(1)
        x = x * (scale + 1) + shift
    return conv(p, f"synthesis.output{n // 2}", x, 1.0)


def progan_generate(p, z, resolution):
    x = pixel_norm(z)[:, :, None, None]
    first = p["layer0.weight"]
    x = functional.conv2d(x, first * (2**0.5 / math.sqrt(first[0].numel())), p["layer0.bias"], padding=3)
    blocks = resolution.bit_length() - 2
    for block in range(blocks):
        if block:
            x = conv(p, f"layer{2 * block}", doubled(x))
        x = pixel_norm(lrelu(x))
        x = pixel_norm(lrelu(conv(p, f"layer{2 * block + 1}", x)))
    return conv(p, f"output{blocks - 1}", x, 1.0)


def deviation(x, group=4):
    size = min(group, len(x))
    y = x.view(size, -1, *x.shape[1:])
    y = torch.sqrt((y - y.mean(0)).square().mean(0) + 1e-8).mean((1, 2, 3), keepdim=True)
    return torch.cat([x, y.repeat(size, 1, *x.shape[2:])], 1)


def discriminate(p, images, *, blur):
    """Scores `[n, 1]`; with `blur` StyleGAN's, which pools before the activation, else ProGAN's."""
    x = lrelu(conv(p, "input0", images))
    n = 0
    while x.shape[-1] > 4:
        x = lrelu(conv(p, f"layer{n}", x))
        x = blurred(x) if blur else x
        name = f"layer{n + 1}"
        if blur and x.shape[-1] >= FUSED_FROM:
            x = lrelu(functional.conv2d(x, summed(weight(p, name)) * 0.25, p[f"{name}.bias"], stride=2, padding=1))
        elif blur:
            x = lrelu(functional.avg_pool2d(conv(p, name, x), 2))
        else:
            x = functional.avg_pool2d(lrelu(conv(p, name, x)), 2)
        n += 2
    x = lrelu(conv(p, f"layer{n}", deviation(x))).flatten(1)
    x = lrelu(functional.linear(x, weight(p, f"layer{n + 1}"), p[f"layer{n + 1}.bias"]))
    return functional.linear(x, weight(p, f"layer{n + 2}", 1.0), p[f"layer{n + 2}.bias"])
