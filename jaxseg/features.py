"""Features of published networks, by which generated images are scored, and a projector measures how near it is."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from jaxseg.backbones.vgg import RGB_MEAN, RGB_STD, vgg16
from jaxseg.ops.resize import resize_bilinear
from jaxseg.weights import WeightsMismatch, load_encoder, load_inception, read_weights

__all__ = ["InceptionFeatures", "inception_features", "perceptual_distance", "perceptual_features"]

LPIPS_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
INCEPTION_SIZE = 299


class InceptionFeatures(NamedTuple):
    """What FID, precision and recall are measured on, and what the Inception score is."""

    pool: Float[np.ndarray, "n 2048"]
    probabilities: Float[np.ndarray, "n k"]


def inception_features(
    path: str | pathlib.Path, *, batch: int = 32
) -> Callable[[UInt8[np.ndarray, "n h w 3"]], InceptionFeatures]:
    """Images to Inception-v3's features, with weights from a file (`jaxseg.weights.load_inception`).

    Images of any size are scaled to 299x299 as pytorch-fid does: bilinearly, without antialiasing. Probabilities
    are from the scores without their bias, as the published Inception score has it (Salimans et al. 2016). Raises
    ValueError for floats, whose range nothing says, and for no images.
    """
    model, variables = load_inception(path)

    @jax.jit
    def run(variables, images):
        x = resize_bilinear(images.astype(jnp.float32) / 255, (INCEPTION_SIZE, INCEPTION_SIZE))
        output = model.apply(variables, 2 * x - 1, train=False)
        return output.pool, jax.nn.softmax(output.logits - variables["params"]["fc"]["bias"])

    def features(images: Shaped[np.ndarray, "n h w 3"]) -> InceptionFeatures:
        if images.dtype != np.uint8 or not len(images):
            raise ValueError(
                f"Inception-v3's features are of one image or more in bytes, 0 to 255, got {images.dtype} "
                f"{images.shape}; round what lies in [0, 1] times 255"
            )
        parts = []
        for i in range(0, len(images), batch):
            part = images[i : i + batch]
            filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
            parts.append([np.asarray(x)[: len(part)] for x in run(variables, filled)])
        pool, probabilities = (np.concatenate(x) for x in zip(*parts, strict=True))
        return InceptionFeatures(pool, probabilities)

    return features


def perceptual_features(
    vgg: str | pathlib.Path, lpips: str | pathlib.Path | None = None
) -> Callable[[Float[Array, "n h w 3"]], tuple[Array, ...]]:
    """Images in [-1, 1] to VGG-16's features as LPIPS compares them (Zhang et al. 2018, eq. 1).

    `vgg` is a file of the ImageNet weights (`load_encoder`), `lpips` the published weights of channels (`vgg.pth` of
    github.com/richzhang/PerceptualSimilarity, v0.1); without it channels count alike. Features have unit length at
    each pixel, and are scaled so that LPIPS is the sum over layers of mean squared differences: what
    `jaxseg.control.project` minimises. Images are of 16 pixels or more, and scores are published for 64 and more.
    Raises ValueError for smaller ones, and for bytes.
    """
    model = vgg16(deepest=16)
    blank = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), blank)
    variables = load_encoder(vgg, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    weights: list[Any] = [1.0] * len(LPIPS_LAYERS) if lpips is None else _channel_weights(pathlib.Path(lpips), shapes)

    def features(images: Shaped[Array, "*_"]) -> tuple[Array, ...]:
        if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"VGG-16's features are of images (n, h, w, 3) in [-1, 1], got {images.dtype} {images.shape}; bytes "
                "become such by / 127.5 - 1"
            )
        if min(images.shape[1:3]) < 16:
            raise ValueError(f"VGG-16's features need h, w of at least 16, got {images.shape[1:3]}; enlarge the images")
        x = ((images + 1) / 2 - jnp.array(RGB_MEAN)) / jnp.array(RGB_STD)
        found: Any = model.apply(variables, x, train=False)
        return tuple(_unit(found[name]) * weight for name, weight in zip(LPIPS_LAYERS, weights, strict=True))

    return features


def _unit(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Unit length at each pixel; 0 where there is nothing, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-20))


def _channel_weights(path: pathlib.Path, shapes: Any) -> list[Array]:
    state = read_weights(path)
    weights = []
    for i, layer in enumerate(LPIPS_LAYERS):
        channels = shapes["params"][layer.replace("relu", "conv")]["kernel"].shape[-1]
        name = f"lin{i}.model.1.weight"
        if name not in state or state[name].size != channels:
            came = state[name].shape if name in state else f"only {', '.join(sorted(state)[:3])} ..."
            raise WeightsMismatch(f"{path} is not LPIPS' for VGG-16: {name} should have {channels} weights, got {came}")
        # the mean over channels that the squared difference takes is the sum with these
        weights.append(jnp.sqrt(jnp.asarray(state[name].reshape(-1), jnp.float32) * channels))
    return weights


def perceptual_distance(
    features: Callable[[Array], tuple[Array, ...]],
) -> Callable[[Float[Array, "n h w 3"], Float[Array, "n h w 3"]], Float[Array, "n"]]:
    """The distance between pairs of images in [-1, 1], by `perceptual_features`: LPIPS, with its weights."""

    def distance(a: Float[Array, "n h w 3"], b: Float[Array, "n h w 3"]) -> Float[Array, "n"]:
        pairs = zip(features(a), features(b), strict=True)
        return jnp.sum(jnp.stack([jnp.mean(jnp.square(x - y), (1, 2, 3)) for x, y in pairs]), 0)

    return distance
