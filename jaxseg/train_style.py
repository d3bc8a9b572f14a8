"""Training a style transfer's decoder, as `TrainFns`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxseg.losses.style import PORT_WEIGHTS, StyleWeights, content_loss, style_loss
from jaxseg.ops.batch import batch_mean, batch_sum, example_index
from jaxseg.train import TrainFns, TrainState, draw_variables

__all__ = ["adam_hyperbolic", "style_transfer"]

STYLE_FEATURES = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


def adam_hyperbolic(peak: float = 1e-4, decay: float = 5e-5, warm_up: int = 0) -> optax.GradientTransformation:
    """Adam at peak / (1 + decay step), both implementations' rate.

    Over the first `warm_up` steps the rate rises from zero: Adam's first steps are as large as the rate allows
    whatever the gradient, and at ten times the published one they throw a fresh decoder far off. Raises ValueError
    for rates that are not above zero, or grow.
    """
    if not 0 < peak < math.inf or not 0 <= decay < math.inf or warm_up < 0:
        raise ValueError(
            f"a rate is above 0, its decay and its warm-up 0 or more, got peak={peak}, decay={decay}, warm_up={warm_up}"
        )
    return optax.adam(lambda step: jnp.minimum((step + 1) / (warm_up + 1), 1) * peak / (1 + decay * step))


def _crops(key: jax.Array, images: Array, size: int) -> Float[Array, "n size size 3"]:
    """Random squares of images in [0, 1], the same for an example wherever it lies."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index(images.shape[0]))
    images = jnp.asarray(images, jnp.float32) / 255
    if min(images.shape[1:3]) < size:
        raise ValueError(f"no square of crop={size} lies in pictures of {images.shape[1:3]}; take a smaller crop")

    def crop(key: jax.Array, image: Array) -> Array:
        highest = jnp.array([side - size + 1 for side in image.shape[:2]])
        top, left = jax.random.randint(key, (2,), 0, highest)
        return jax.lax.dynamic_slice(image, (top, left, 0), (size, size, image.shape[-1]))

    return jax.vmap(crop)(keys, images)


def style_transfer(
    model: nn.Module,
    *,
    optimizer: optax.GradientTransformation,
    pretrained: Callable[[PyTree], PyTree],
    crop: int,
    weights: StyleWeights = PORT_WEIGHTS,
) -> TrainFns:
    """Training of an `AdaINTransfer`'s decoder (Huang and Belongie 2017, section 5).

    A batch holds content photographs `image` and paintings `style`, uint8 `[N, H, W, 3]`, of which random
    squares of `crop` pixels are seen. `pretrained` puts the encoder's weights into fresh variables. The
    encoder stays as it is; `opt_state` is the decoder's alone.
    """
    apply: Callable[..., Any] = model.apply

    def losses(params: PyTree, content: Array, style: Array) -> tuple[Array, Array]:
        variables = {"params": params}
        style_features = apply(variables, style, method="encode")
        content_features = apply(variables, content, method="encode")["relu4_1"]
        target = apply(variables, content_features, style_features["relu4_1"], method="stylize")
        output = apply(variables, target, method="decode")
        features = apply(variables, output, method="encode")
        return (
            content_loss(features["relu4_1"], jax.lax.stop_gradient(target)),
            style_loss(features, style_features, STYLE_FEATURES, reduction=weights.reduction),
        )

    def init(key: jax.Array, batch: PyTree) -> TrainState:
        blank = jnp.zeros((1, crop, crop, 3))
        variables = pretrained(draw_variables(lambda k: model.init(k, blank, blank, train=False), key))
        params = variables["params"]
        return TrainState(jnp.int32(0), params, {}, optimizer.init(params["decoder"]), None)

    def update(state: TrainState, batch: PyTree, key: jax.Array) -> tuple[TrainState, PyTree]:
        content_key, style_key = jax.random.split(key)
        content, style = _crops(content_key, batch["image"], crop), _crops(style_key, batch["style"], crop)

        def loss_of(decoder: PyTree) -> tuple[Array, tuple[Array, Array]]:
            parts = losses({**state.params, "decoder": decoder}, content, style)
            return parts[0] + weights.style * parts[1], parts

        (value, (of_content, of_style)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params["decoder"])
        grads = batch_mean(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params["decoder"])
        params = {**state.params, "decoder": optax.apply_updates(state.params["decoder"], updates)}
        metrics = {
            "loss": value,
            "content_loss": of_content,
            "style_loss": of_style,
            "grad_norm": optax.global_norm(grads),
        }
        return TrainState(state.step + 1, params, {}, opt_state, None), metrics

    def evaluate(state: TrainState, batch: PyTree) -> PyTree:
        content, style = (jnp.asarray(batch[k], jnp.float32) / 255 for k in ("image", "style"))
        of_content, of_style = losses(state.params, content, style)
        n = content.shape[0]  # the losses are means over the global batch: each device adds its share
        return batch_sum({"content_loss": of_content * n, "style_loss": of_style * n, "examples": jnp.float32(n)})

    def summarize(sums: Mapping[str, Any]) -> dict[str, float]:
        of_content, of_style = (float(sums[k] / sums["examples"]) for k in ("content_loss", "style_loss"))
        return {"loss": of_content + weights.style * of_style, "content_loss": of_content, "style_loss": of_style}

    return TrainFns(init, update, evaluate, summarize)
