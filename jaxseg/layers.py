"""Layers that three or more models share.

A model takes its norm as a constructor and calls it as `norm(dtype=dtype, name=name)(x, train=train)`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.ops.batch import batch_mean, batch_sum, example_index
from jaxseg.ops.conv import conv, conv_transpose
from jaxseg.ops.depthwise import depthwise_conv
from jaxseg.ops.doubling import conv_after_doubling, conv_before_halving
from jaxseg.ops.tracing import are_blank

__all__ = [
    "NORMS",
    "BatchNorm",
    "Conv",
    "ConvNormAct",
    "ConvTranspose",
    "Dropout",
    "EqualizedConv",
    "EqualizedDense",
    "FCNHead",
    "FrozenBatchNorm",
    "GroupNorm",
    "at_least_float32",
    "divisible_by_8",
]


def _he(mode: Literal["fan_in", "fan_out"]) -> Callable[..., Array]:
    drawn = jax.jit(nn.initializers.variance_scaling(2.0, mode, "normal"), inline=True, static_argnums=(1, 2))

    def initializer(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jnp.zeros(shape, dtype) if are_blank() else drawn(key, tuple(shape), dtype)  # a trace for each shape

    return initializer


he_fan_in = _he("fan_in")  # He et al. 2015
he_fan_out = _he("fan_out")  # torchvision's kaiming_normal_
Conv = functools.partial(nn.Conv, conv_general_dilated=conv)  # every convolution of the zoo without a form of its own


def at_least_float32(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`x` in float32, or in float64 where that is computed in, which the parity tests do."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def divisible_by_8(channels: int | float) -> int:
    """The nearest multiple of 8, at least 8 and nine tenths of `channels`: MobileNets' rounding."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


@functools.partial(jax.jit, inline=True, static_argnums=(5, 6, 7))  # as in `jaxseg.ops.tracing`
def _normalized(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float, dtype: Any, chooser: Callable
) -> Array:
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return (x * factor + (bias - mean * factor)).astype(dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch (Ioffe and Szegedy 2015).

    Statistics, and the running averages `batch_stats/{mean,var}`, are float32 where the compute dtype is less.
    As in Caffe and PyTorch the running variance is the unbiased one. `x` is `[..., C]`. Raises ValueError, as PyTorch
    does, where one value a channel is all there is to train on: less its mean it is 0, whatever the image.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"], *, train: bool) -> Float[Array, "*n c"]:
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if train:
            x32 = at_least_float32(x)
            axes = tuple(range(x.ndim - 1))
            mean = batch_mean(x32.mean(axes))
            var = batch_mean(jnp.square(x32 - mean).mean(axes))
            if not self.is_initializing():
                count = batch_sum(x.size // x.shape[-1])  # of a Python number a static one
                if count == 1:
                    raise ValueError(
                        f"{'/'.join(self.path)} has one value a channel to train on, of one image at one place: "
                        "train on 2 images or more at once, or with another norm"
                    )
                n = jnp.float32(count)
                unbiased = var * (n / jnp.maximum(n - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        dtype = self.dtype or x.dtype
        return _normalized(x, mean, var, scale, bias, self.epsilon, dtype, jax.lax.platform_dependent)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by the statistics and the scale it was given, none of which ever changes.

    For batches of one or two large images (Lin et al. 2017, section 5.1). All four arrays are state,
    `batch_stats/{scale,bias,mean,var}`, so that no optimizer sees them; `train` makes no difference.
    """

    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"], *, train: bool) -> Float[Array, "*n c"]:
        start = {"scale": jnp.ones, "bias": jnp.zeros, "mean": jnp.zeros, "var": jnp.ones}
        kept = {k: self.variable("batch_stats", k, f, x.shape[-1:], jnp.float32).value for k, f in start.items()}
        mean, var, scale, bias = (kept[k] for k in ("mean", "var", "scale", "bias"))
        return _normalized(x, mean, var, scale, bias, self.epsilon, self.dtype or x.dtype, jax.lax.platform_dependent)


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018, equation 2): each example by the statistics of its groups of channels.

    Groups are of neighbouring channels and `groups` in number, or, where the channels do not divide by that, the
    greatest common divisor: 24 channels have 8 groups of 3. Statistics, of all of an example's places, are float32
    where the compute dtype is less. Nothing is kept from batch to batch, and `train` makes no difference.
    `x` is `[n, ..., C]`.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n *s c"], *, train: bool) -> Float[Array, "n *s c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        groups = math.gcd(self.groups, channels)
        grouped = at_least_float32(x).reshape(*x.shape[:-1], groups, channels // groups)
        axes = (*range(1, x.ndim - 1), x.ndim)  # the places, and the channels of a group
        mean = grouped.mean(axes, keepdims=True)
        var = jnp.square(grouped - mean).mean(axes, keepdims=True)
        normal = ((grouped - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        return (normal * scale + bias).astype(self.dtype or x.dtype)


NORMS: dict[str, Callable[..., nn.Module]] = {"batch": BatchNorm, "frozen": FrozenBatchNorm, "group": GroupNorm}


class Dropout(nn.Module):
    """Dropout whose masks belong to the examples, so that any sharding of a batch draws the same ones.

    Example i of the global batch draws from `fold_in(key, i)`. `shared_axes` are axes of `x [N, ...]` that
    share one draw: (1, 2) drops whole channels.
    """

    rate: float
    shared_axes: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "n *s"], *, train: bool) -> Float[Array, "n *s"]:
        if not train or self.rate == 0:
            return x
        shape = tuple(1 if a in self.shared_axes else d for a, d in enumerate(x.shape))[1:]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), example_index(x.shape[0]))
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, shape))(keys)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))


class ConvTranspose(nn.Module):
    """`nn.ConvTranspose(transpose_kernel=True)`, which is PyTorch's ConvTranspose2d, in the form each platform likes.

    The same parameters: `kernel [kh, kw, features, c]` and `bias [features]`; `padding` as `conv_transpose` has it.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: Sequence[tuple[int, int]]
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 features"]:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, self.features, x.shape[-1]), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv_transpose(x, kernel, self.strides, self.padding)
        return y if bias is None else y + bias


class ConvNormAct(nn.Module):
    """A convolution that keeps h, w but for its `stride`, a norm, or without one a bias, and an activation, if any.

    `depthwise` convolves each channel by itself; `features` is then the number there is.
    """

    features: int
    window: int = 3
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    activation: Callable[[Array], Array] | None = nn.relu
    norm: Callable[..., nn.Module] | None = BatchNorm
    kernel_init: Callable[..., Array] = he_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 c2"]:
        pad = (self.window - 1) // 2 * self.dilation
        x = Conv(
            self.features,
            (self.window, self.window),
            self.stride,
            padding=[(pad, pad)] * 2,
            kernel_dilation=self.dilation,
            feature_group_count=self.features if self.depthwise else 1,
            use_bias=self.norm is None,
            kernel_init=self.kernel_init,
            conv_general_dilated=depthwise_conv if self.depthwise else conv,
            dtype=self.dtype,
            name="conv",
        )(x)
        if self.norm is not None:
            x = self.norm(dtype=self.dtype, name="bn")(x, train=train)
        return x if self.activation is None else self.activation(x)


class FCNHead(nn.Module):
    """A 3x3 convolution, norm, ReLU, dropout and class scores, as in torchvision's FCN and in PSPNet.

    `shared_axes` (1, 2) drops whole channels, as PSPNet does.
    """

    num_classes: int
    features: int
    dropout: float = 0.1
    shared_axes: tuple[int, ...] = ()
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w k"]:
        x = ConvNormAct(self.features, norm=self.norm, dtype=self.dtype, name="block")(x, train=train)
        x = Dropout(self.dropout, self.shared_axes)(x, train=train)
        return Conv(self.num_classes, (1, 1), dtype=self.dtype, name="logits")(x)


def _equalized(layer: nn.Module, shape: tuple[int, ...], fan_in: int, gain: float, multiplier: float) -> Array:
    """The kernel at run time: N(0, 1) parameters times gain / sqrt(fan_in), the equalized learning rate."""
    start = lambda key, shape, dtype: jax.random.normal(key, shape, dtype) / multiplier  # noqa: E731
    kernel = jnp.asarray(layer.param("kernel", start, shape, jnp.float32))  # a checkpoint's may be NumPy's
    return kernel * (gain / fan_in**0.5 * multiplier)


def _product_in_blocks(x: Float[Array, "n c"], kernel: Float[Array, "c f"]) -> Float[Array, "n f"]:
    """`x @ kernel` by eight sums of an eighth of the products, where eight divides them.

    The CPU sums in order of the index, and all of an image's styles hang on eight such layers one after the other:
    blocks leave a generated image 0.4 of the rounding.
    """
    n, c = x.shape
    blocks = 8 if c % 8 == 0 else 1
    return jnp.einsum("nbc,bcf->bnf", x.reshape(n, blocks, c // blocks), kernel.reshape(blocks, c // blocks, -1)).sum(0)


class EqualizedDense(nn.Module):
    """A dense layer with equalized learning rate (Karras et al. 2018, section 4.1).

    Kernels start from N(0, 1) / `lr_multiplier` and are scaled by gain / sqrt(fan_in) times that where they
    are used; biases, which start from zero, by `lr_multiplier`: so Adam's rate is that times the optimizer's.
    """

    features: int
    gain: float = 2**0.5
    lr_multiplier: float = 1.0
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n c"]) -> Float[Array, "n features"]:
        kernel = _equalized(self, (x.shape[-1], self.features), x.shape[-1], self.gain, self.lr_multiplier)
        x = _product_in_blocks(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            x = x + (bias * self.lr_multiplier).astype(self.dtype)
        return x


class EqualizedConv(nn.Module):
    """A convolution with equalized learning rate (Karras et al. 2018, section 4.1).

    It keeps height and width, but for `resample`: after a "doubling" of the image by copies, or before its "halving"
    by means, of a 3x3 window.
    """

    features: int
    window: int = 3
    gain: float = 2**0.5
    use_bias: bool = True
    resample: Literal["doubling", "halving"] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 features"]:
        shape = (self.window, self.window, x.shape[-1], self.features)
        kernel = _equalized(self, shape, self.window**2 * x.shape[-1], self.gain, 1.0)
        x = x.astype(self.dtype)
        if self.resample is not None:
            x = {"doubling": conv_after_doubling, "halving": conv_before_halving}[self.resample](x, kernel)
        else:
            x = conv(x, kernel.astype(self.dtype), (1, 1), "SAME")
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return x
