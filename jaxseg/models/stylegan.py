"""StyleGAN's generator: a mapping network, and a synthesis network that its styles and noise drive."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxseg.layers import EqualizedConv, EqualizedDense
from jaxseg.models.progan import (
    Fade,
    Labels,
    check_latents,
    check_resolution,
    check_sizes,
    faded,
    latent_inputs,
    leaky_relu,
    one_hot,
    stage_of,
    width,
)
from jaxseg.ops.adain import instance_norm
from jaxseg.ops.batch import batch_mean, example_index
from jaxseg.ops.generation import blur, pixel_norm

__all__ = ["StyleGANGenerator", "mix_styles"]


def _per_example(key: jax.Array, n: int) -> jax.Array:
    """A key for each example of the global batch, the same wherever it lies."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, example_index(n))


def mix_styles(
    first: Float[Array, "n layers w"],
    second: Float[Array, "n layers w"],
    crossover: Int[Array, "n"] | Sequence[int] | int,
) -> Float[Array, "n layers w"]:
    """Each image's styles from `first` for layers before its `crossover`, or one for all, from `second` after.

    Raises ValueError where the three are not of as many images and layers: one w for all would be broadcast unasked.
    """
    crossover = jnp.asarray(crossover)
    crossover = crossover if crossover.ndim else jnp.full(first.shape[:1], crossover)
    if first.ndim != 3 or first.shape != second.shape or crossover.shape != first.shape[:1]:
        raise ValueError(
            f"mix_styles takes two w of one shape [n, layers, w] and crossover [n], got {first.shape}, {second.shape} "
            f"and {crossover.shape}; `truncate` of the generator gives such w"
        )
    before = jnp.arange(first.shape[1])[None] < crossover[:, None]
    return jnp.where(before[..., None], first, second)


class Mapping(nn.Module):
    """Latents to w: pixel norm, then dense layers whose learning rate is a hundredth of the rest's."""

    features: int
    layers: int
    num_classes: int
    lr_multiplier: float

    @nn.compact
    def __call__(self, latents: Float[Array, "n z"], labels: Labels) -> Float[Array, "n w"]:
        classes = one_hot(labels, self.num_classes, latents.shape[0], "StyleGANGenerator")
        x = latents.astype(jnp.float32)
        if self.num_classes:
            normal = nn.initializers.normal(1.0)
            embedding = self.param("label_embedding", normal, (self.num_classes, x.shape[1]), jnp.float32)
            x = jnp.concatenate([x, classes @ embedding], 1)
        x = pixel_norm(x)
        for i in range(self.layers):
            x = leaky_relu(EqualizedDense(self.features, lr_multiplier=self.lr_multiplier, name=f"dense_{i}")(x))
        return x


class StyledLayer(nn.Module):
    """What follows a convolution: noise, bias, leaky ReLU, instance norm, and the style's scale and shift."""

    noisy: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], w: Float[Array, "n s"], strength: float | Array, train: bool
    ) -> Float[Array, "n h w c"]:
        n, h, wd, c = x.shape
        if self.noisy:
            own = self.variable(
                "noise", "map", lambda: jax.random.normal(self.make_rng("params"), (1, h, wd, 1), jnp.float32)
            )
            noise = own.value
            if (train or self.has_rng("noise")) and not self.is_initializing():
                keys = _per_example(self.make_rng("noise"), n)
                noise = jax.vmap(lambda key: jax.random.normal(key, (h, wd, 1)))(keys)
            per_channel = self.param("noise_strength", nn.initializers.zeros, (c,), jnp.float32)
            x = x + (noise * per_channel * strength).astype(self.dtype)
        x = leaky_relu(x + self.param("bias", nn.initializers.zeros, (c,), jnp.float32).astype(self.dtype))
        style = EqualizedDense(2 * c, gain=1.0, name="style")(w)[:, None, None]
        x = instance_norm(x.astype(jnp.float32)) * (style[..., :c] + 1) + style[..., c:]
        return x.astype(self.dtype)


class Synthesis(nn.Module):
    """w for each layer to an image."""

    resolution: int
    base_features: int
    max_features: int
    constant_input: bool
    noisy: bool
    dtype: Any

    @nn.compact
    def __call__(
        self,
        w: Float[Array, "n layers w"],
        stage: int,
        fade: Fade,
        noise_strength: Float[Array, "layers"],
        train: bool,
    ) -> Float[Array, "n r r 3"]:
        images: list[Array] = []
        n = w.shape[0]
        x = jnp.zeros(())
        for step in range(stage + 1):
            size = 4 << step
            features = width(size, self.base_features, self.max_features)
            for half in (0, 1):
                layer = 2 * step + half
                if layer == 0 and self.constant_input:
                    const = self.param("const", nn.initializers.ones, (1, 4, 4, features), jnp.float32)
                    x = jnp.broadcast_to(const, (n, 4, 4, features)).astype(self.dtype)
                elif layer == 0:
                    dense = EqualizedDense(
                        16 * features, gain=2**0.5 / 4, use_bias=False, dtype=self.dtype, name="dense"
                    )
                    x = dense(w[:, 0]).reshape(n, 4, 4, features)
                else:
                    resample: Literal["doubling"] | None = None if half else "doubling"
                    conv = EqualizedConv(features, 3, 2**0.5, False, resample, self.dtype, name=f"conv_{size}_{half}")
                    x = conv(x) if half else blur(conv(x))
                styled = StyledLayer(self.noisy, self.dtype, name=f"layer_{size}_{half}")
                x = styled(x, w[:, layer], noise_strength[layer], train)
            if step in (stage, stage - 1) or self.is_initializing():
                images.append(EqualizedConv(3, 1, gain=1.0, name=f"to_rgb_{size}")(x))
        return faded(images, fade)


class StyleGANGenerator(nn.Module):
    """StyleGAN's generator (Karras et al. 2019, Figure 1b).

    Latents `[n, latent_features]`, and int labels `[n]` where `num_classes` is not 0, to images `[n, r, r, 3]`,
    float32, of [-1, 1] in the main. `stage` (static) and `fade` (traced) as in `ProGANGenerator`.

    `map` gives w `[n, w_features]`, and `synthesize` takes it, or one for each layer `[n, layers, w_features]`.
    With `train`, w's moving average in the collection `w_average` is updated, and styles of two latents are
    mixed with probability `mixing`, at a layer drawn for each image, by the key `rngs["mixing"]`. Noise comes
    from `rngs["noise"]`, a draw for each image, or without that key and `train` from fixed maps in the
    collection `noise`; `noise_strength` scales it, for all layers or for each.

    `constant_input=False`, `noise=False` and `mixing=0` give the paper's configurations C to E.
    """

    resolution: int = 1024
    num_classes: int = 0
    latent_features: int = 512
    w_features: int = 512
    mapping_layers: int = 8
    mapping_lr_multiplier: float = 0.01
    base_features: int = 16384
    max_features: int = 512
    constant_input: bool = True
    noise: bool = True
    mixing: float = 0.9
    w_average_decay: float = 0.995
    dtype: Any = jnp.float32

    def setup(self) -> None:
        check_sizes(self, "latent_features", "w_features", "base_features", "max_features")
        self.stages = check_resolution(self.resolution, "StyleGANGenerator")
        self.mapping = Mapping(self.w_features, self.mapping_layers, self.num_classes, self.mapping_lr_multiplier)
        self.synthesis = Synthesis(
            self.resolution,
            self.base_features,
            self.max_features,
            self.constant_input,
            self.noise,
            self.dtype,
        )
        self.w_average = self.variable("w_average", "mean", jnp.zeros, (self.w_features,), jnp.float32)

    @property
    def layers(self) -> int:
        """Layers that take a style: two for each resolution."""
        check_resolution(self.resolution, "StyleGANGenerator")
        return 2 * (self.resolution.bit_length() - 2)

    def map(self, latents: Float[Array, "n z"], labels: Labels = None) -> Float[Array, "n w"]:
        """Latents to w."""
        check_latents(latents, self.latent_features, "StyleGANGenerator")
        return self.mapping(latents, labels)

    def _of_each_layer(self, w: Array, what: str) -> Float[Array, "n layers w"]:
        if w.shape[1:] not in ((self.w_features,), (self.layers, self.w_features)):
            raise ValueError(
                f"{what} takes w of shape (n, {self.w_features}) or (n, {self.layers}, {self.w_features}), "
                f"got {tuple(w.shape)}"
            )
        return w if w.ndim == 3 else jnp.broadcast_to(w[:, None], (w.shape[0], self.layers, w.shape[1]))

    def truncate(
        self,
        w: Float[Array, "n w"] | Float[Array, "n layers w"],
        psi: float | Float[Array, "*_"],
        layers: int = 8,
    ) -> Float[Array, "n layers w"]:
        """The first `layers` styles moved to the average w: psi 1 leaves them, 0 is the average (appendix B)."""
        w = self._of_each_layer(w, "truncate")
        if jnp.ndim(psi):
            raise ValueError(f"psi is one number, got {jnp.shape(psi)}; jax.vmap takes one for each image")
        toward = self.w_average.value + psi * (w - self.w_average.value)
        return jnp.where(jnp.arange(w.shape[1])[:, None] < layers, toward, w)

    def synthesize(
        self,
        w: Float[Array, "n w"] | Float[Array, "n layers w"],
        *,
        stage: int | None = None,
        fade: Fade = None,
        noise_strength: float | Float[Array, "layers"] = 1.0,
        train: bool,
    ) -> Float[Array, "n r r 3"]:
        """w, the same for all layers or one for each, to images."""
        asked = stage_of(stage, self.stages, "StyleGANGenerator")
        stage = self.stages if self.is_initializing() else asked
        w = self._of_each_layer(w, "synthesize")
        strength = jnp.asarray(noise_strength, jnp.float32)
        if strength.shape not in ((), (1,), (self.layers,)):
            raise ValueError(
                f"noise_strength is one number, or one for each of {self.layers} layers, got {strength.shape}"
            )
        strength = jnp.broadcast_to(strength, (self.layers,))
        return self.synthesis(w, stage, fade, strength, train)

    def _mixed(self, w: Array, labels: Labels, stage: int) -> Array:
        """Styles of a second latent from a layer on, for the share `mixing` of the images."""
        keys = _per_example(self.make_rng("mixing"), w.shape[0])
        draws = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        latents = jax.vmap(lambda key: jax.random.normal(key, (self.latent_features,)))(draws[:, 0])
        layers = 2 * (stage + 1)
        crossover = jax.vmap(lambda key: jax.random.randint(key, (), 1, layers))(draws[:, 1])
        mixes = jax.vmap(lambda key: jax.random.bernoulli(key, self.mixing))(draws[:, 2])
        second = jnp.broadcast_to(self.map(latents, labels)[:, None], w.shape)
        return mix_styles(w, second, jnp.where(mixes, crossover, w.shape[1]))

    def __call__(
        self,
        latents: Float[Array, "n z"],
        labels: Labels = None,
        *,
        stage: int | None = None,
        fade: Fade = None,
        truncation_psi: float | Float[Array, "*_"] | None = None,
        truncation_layers: int = 8,
        noise_strength: float | Float[Array, "layers"] = 1.0,
        train: bool,
    ) -> Float[Array, "n r r 3"]:
        w = self.map(latents, labels)
        training = train and not self.is_initializing()
        if training and self.is_mutable_collection("w_average"):
            mean = batch_mean(jax.lax.stop_gradient(w).mean(0))
            self.w_average.value = mean + self.w_average_decay * (self.w_average.value - mean)
        styles = self._of_each_layer(w, "synthesize")
        if training and self.mixing:
            styles = self._mixed(styles, labels, stage_of(stage, self.stages, "StyleGANGenerator"))
        if truncation_psi is not None:
            styles = self.truncate(styles, truncation_psi, truncation_layers)
        return self.synthesize(styles, stage=stage, fade=fade, noise_strength=noise_strength, train=train)

    def inputs(self, images: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What `__call__` takes."""
        return latent_inputs(self.latent_features, self.num_classes, images.shape[0])
