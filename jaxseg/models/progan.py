"""ProGAN's generator, and the growing discriminator that StyleGAN shares."""

import functools
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxseg.layers import EqualizedConv, EqualizedDense
from jaxseg.ops.generation import average_pool, blur, minibatch_stddev, pixel_norm
from jaxseg.ops.resize import resize_nearest

__all__ = [
    "DiscriminatorOutput",
    "GrowingDiscriminator",
    "ProGANGenerator",
    "check_resolution",
    "check_sizes",
    "one_hot",
    "progan_discriminator",
    "stage_of",
    "stylegan_discriminator",
    "width",
]

Labels = Int[Array, "_"] | Int[np.ndarray, "_"] | None
Fade = float | Float[Array, ""] | None


@flax.struct.dataclass
class DiscriminatorOutput:
    """Float32 scores `[n]`, high for reals, and logits `[n, k]` of the auxiliary classifier, if there is one."""

    score: Any
    class_logits: Any = None


def check_resolution(resolution: int, what: str) -> int:
    """The number of doublings from 4x4 to `resolution`; ValueError where that is not a power of two from 8."""
    stages = resolution.bit_length() - 3
    if resolution < 8 or resolution != 4 << stages:
        good = 1 << max(resolution - 1, 4).bit_length()
        raise ValueError(f"{what} grows by doublings from 4x4: resolution {resolution} is none; use {max(good, 8)}")
    return stages


def check_sizes(model: Any, *names: str) -> None:
    """ValueError where one of the fields is below 1, or `num_classes` below 0."""
    for name, least in (("num_classes", 0), *((name, 1) for name in names)):
        if (size := getattr(model, name)) < least:
            raise ValueError(f"{type(model).__name__} has {name}={size}: give it {least} or more")


def stage_of(stage: int | None, stages: int, what: str) -> int:
    """`stage`, by default the last; ValueError for one that the model has not."""
    if stage is None:
        return stages
    if not 0 <= stage <= stages:
        raise ValueError(f"{what} has stages 0 (4x4) to {stages} ({4 << stages}x{4 << stages}), got {stage}")
    return stage


def width(resolution: int, base: int, most: int) -> int:
    """Channels at a resolution: min(base / resolution, most)."""
    return max(min(base // resolution, most), 1)


def leaky_relu(x: Array) -> Array:
    return nn.leaky_relu(x, 0.2)


def double(x: Array) -> Array:
    return resize_nearest(x, (2 * x.shape[1], 2 * x.shape[2]))


def one_hot(labels: Labels, num_classes: int, n: Any, what: str) -> Float[Array, "n k"]:
    """Class vectors; ValueError where labels are missing, or given to an unconditional model, or of no class.

    Where they are traced, and so not known, those of no class have vectors of NaN.
    """
    if num_classes and labels is None:
        raise ValueError(f"this {what} is conditional on {num_classes} classes: give labels, int [{n}]")
    if not num_classes and labels is not None:
        raise ValueError(f"this {what} is unconditional and takes no labels; create it with num_classes")
    if labels is None:
        return jnp.zeros((n, 0))
    labels = jnp.asarray(labels)
    if labels.shape != (n,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{what} needs integer labels of shape ({n},), got {labels.dtype} {labels.shape}")
    known = np.zeros(0, int) if isinstance(labels, jax.core.Tracer) else np.asarray(labels)
    if ((known < 0) | (known >= num_classes)).any():
        raise ValueError(f"{what} has classes 0 to {num_classes - 1}, got labels {known.min()} to {known.max()}")
    of_a_class = (labels >= 0) & (labels < num_classes)
    return jnp.where(of_a_class[:, None], jax.nn.one_hot(labels, num_classes), jnp.nan)


def check_latents(latents: Array, features: int, what: str) -> None:
    if latents.ndim != 2 or latents.shape[1] != features:
        raise ValueError(f"{what} takes latents of shape (n, {features}), got {tuple(latents.shape)}")


class ProGANGenerator(nn.Module):
    """ProGAN's generator (Karras et al. 2018, Table 2): nearest-neighbour doubling, pixel norm, RGB at each size.

    Latents `[n, latent_features]`, and int labels `[n]` where `num_classes` is not 0, to images `[n, r, r, 3]`,
    float32, of [-1, 1] in the main. Growth: `stage` is static and counts doublings from 4x4 (default: all), so
    r = 4 * 2^stage; `fade` is traced, from 0, the doubled image of the stage before, to 1. Parameters exist for
    `resolution` from the start, whatever the stage. `blur` filters after each doubling (configuration B of
    Karras et al. 2019, Table 1). The class vector is normalised with the latent, which `norm_before_class`
    normalises by itself before, as genforce does. Raises ValueError for latents, labels, stages and resolutions
    that do not fit.
    """

    resolution: int = 1024
    num_classes: int = 0
    latent_features: int = 512
    base_features: int = 16384
    max_features: int = 512
    blur: bool = False
    norm_before_class: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "n z"],
        labels: Labels = None,
        *,
        stage: int | None = None,
        fade: Fade = None,
        train: bool,
    ) -> Float[Array, "n r r 3"]:
        check_sizes(self, "latent_features", "base_features", "max_features")
        stages = check_resolution(self.resolution, "ProGANGenerator")
        asked = stage_of(stage, stages, "ProGANGenerator")
        stage = stages if self.is_initializing() else asked  # every parameter exists from the start
        check_latents(latents, self.latent_features, "ProGANGenerator")
        n = latents.shape[0]
        x, classes = latents.astype(jnp.float32), one_hot(labels, self.num_classes, n, "ProGANGenerator")
        x = pixel_norm(jnp.concatenate([pixel_norm(x) if self.norm_before_class else x, classes], 1))
        images: list[Array] = []
        for step in range(stage + 1):
            size = 4 << step
            features = width(size, self.base_features, self.max_features)
            conv = functools.partial(EqualizedConv, features, dtype=self.dtype)
            if step == 0:
                dense = EqualizedDense(16 * features, gain=2**0.5 / 4, use_bias=False, dtype=self.dtype, name="dense")
                bias = self.param("dense_bias", nn.initializers.zeros, (features,), jnp.float32)
                x = dense(x).reshape(n, 4, 4, features) + bias.astype(self.dtype)
            else:
                x = conv(use_bias=not self.blur, resample="doubling", name=f"conv_{size}_0")(x)
                if self.blur:
                    bias = self.param(f"conv_{size}_0_bias", nn.initializers.zeros, (features,), jnp.float32)
                    x = blur(x) + bias.astype(self.dtype)
            x = pixel_norm(leaky_relu(x))
            x = pixel_norm(leaky_relu(conv(name=f"conv_{size}_1")(x)))
            if step in (stage, stage - 1) or self.is_initializing():
                images.append(EqualizedConv(3, 1, gain=1.0, name=f"to_rgb_{size}")(x))
        return faded(images, fade)

    def inputs(self, images: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What `__call__` takes."""
        return latent_inputs(self.latent_features, self.num_classes, images.shape[0])


def latent_inputs(features: int, num_classes: int, n: Any = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of latents, and of labels for a conditional generator."""
    latents = jax.ShapeDtypeStruct((n, features), jnp.float32)
    return (latents, jax.ShapeDtypeStruct((n,), jnp.int32)) if num_classes else (latents,)


def faded(images: list[Array], fade: Fade) -> Float[Array, "n r r 3"]:
    """The last image, or, with `fade`, a mix with the one before, doubled; float32."""
    image = images[-1].astype(jnp.float32)
    if fade is None or len(images) == 1:
        return image
    return fade * image + (1 - fade) * double(images[-2].astype(jnp.float32))


class GrowingDiscriminator(nn.Module):
    """The discriminator of ProGAN and StyleGAN (Karras et al. 2018, Table 2; Karras et al. 2019, appendix C).

    Images `[n, r, r, 3]` of the size of the stage, r = 4 * 2^stage, to a `DiscriminatorOutput`. `stage` and
    `fade` as in the generator: at fade 0 the images are seen at half the size. `blur` filters before each
    halving, and `pool_first` puts the activation after it, both as StyleGAN does.

    Of `num_classes` classes: `condition` "score" picks the label's score of one each (StyleGAN), "auxiliary"
    adds a classifier (AC-GAN, as ProGAN), whose labels are the loss's business, and "planes" puts the class
    vector on each pixel of the image. Raises ValueError for sizes, labels and batches that do not fit.
    """

    resolution: int = 1024
    num_classes: int = 0
    condition: Literal["score", "auxiliary", "planes"] = "score"
    base_features: int = 16384
    max_features: int = 512
    blur: bool = False
    pool_first: bool = False
    group_size: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n h w 3"],
        labels: Labels = None,
        *,
        stage: int | None = None,
        fade: Fade = None,
        train: bool,
    ) -> DiscriminatorOutput:
        check_sizes(self, "base_features", "max_features")
        stages = check_resolution(self.resolution, "GrowingDiscriminator")
        asked = stage_of(stage, stages, "GrowingDiscriminator")
        stage = stages if self.is_initializing() else asked  # every parameter exists from the start
        n, size = images.shape[0], 4 << stage
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"stage {stage} sees images ({size}, {size}, 3), got {images.shape[1:]}; resize them")
        demanded = 0 if self.condition == "auxiliary" else self.num_classes
        classes = one_hot(None if self.condition == "auxiliary" else labels, demanded, n, "GrowingDiscriminator")
        x: Any = None
        narrower = images
        for step in range(stage, -1, -1):
            size = 4 << step
            features, next_features = (width(s, self.base_features, self.max_features) for s in (size, size // 2))
            conv = functools.partial(EqualizedConv, dtype=self.dtype)
            if x is None or (step == stage - 1 and fade is not None) or self.is_initializing():
                seen = narrower
                if self.condition == "planes":
                    planes = jnp.broadcast_to(classes[:, None, None], (n, size, size, classes.shape[-1]))
                    seen = jnp.concatenate([seen, planes], -1)
                rgb = leaky_relu(conv(features, 1, name=f"from_rgb_{size}")(seen))
                x = rgb if x is None else (fade * x + (1 - fade) * rgb).astype(self.dtype) if fade is not None else x
            if step:
                x = leaky_relu(conv(features, name=f"conv_{size}_0")(x))
                resample: Literal["halving"] | None = "halving" if self.pool_first else None
                x = conv(next_features, resample=resample, name=f"conv_{size}_1")(blur(x) if self.blur else x)
                x = leaky_relu(x) if self.pool_first else average_pool(leaky_relu(x))
            else:
                x = minibatch_stddev(x, self.group_size) if self.group_size > 1 else x
                x = leaky_relu(conv(features, name="conv_4")(x))
                # channels first, as the published weights count the 4x4 positions
                x = x.transpose(0, 3, 1, 2).reshape(n, -1)
                x = leaky_relu(EqualizedDense(next_features, dtype=self.dtype, name="dense_0")(x))
            narrower = average_pool(narrower) if step else narrower
        outputs = {"score": max(demanded, 1), "planes": 1, "auxiliary": 1 + self.num_classes}[self.condition]
        y = EqualizedDense(outputs, gain=1.0, name="dense_1")(x)
        if self.condition == "auxiliary" and self.num_classes:
            return DiscriminatorOutput(y[:, 0], y[:, 1:])
        if self.condition == "score" and self.num_classes:
            return DiscriminatorOutput(jnp.sum(y * classes, 1))
        return DiscriminatorOutput(y[:, 0])

    def inputs(self, images: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What `__call__` takes."""
        own = jax.ShapeDtypeStruct((images.shape[0], self.resolution, self.resolution, 3), jnp.float32)
        labels = jax.ShapeDtypeStruct((images.shape[0],), jnp.int32)
        return (own, labels) if self.num_classes and self.condition != "auxiliary" else (own,)


progan_discriminator = functools.partial(GrowingDiscriminator, condition="auxiliary")
stylegan_discriminator = functools.partial(GrowingDiscriminator, condition="score", blur=True, pool_first=True)
