"""Adversarial training of networks that grow, as `TrainFns`: one stage of growth at a time."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxseg.losses.adversarial import (
    class_loss,
    drift,
    gradient_penalty,
    logistic,
    non_saturating,
    r1_penalty,
    wasserstein,
)
from jaxseg.ops.batch import batch_mean, batch_sum, example_index
from jaxseg.ops.generation import average_pool
from jaxseg.ops.resize import resize_nearest
from jaxseg.train import TrainFns, TrainState, draw_variables

__all__ = ["PROGAN_LOSS", "STYLEGAN_LOSS", "AdversarialLoss", "adversarial", "grown"]


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
    """What the two networks minimise, and how the generator is averaged. ValueError for what no loss has."""

    kind: Literal["r1", "wgan-gp"]
    """Non-saturating with R1, or Wasserstein with gradient penalty and drift."""
    penalty: float
    """R1's gamma, or the gradient penalty's lambda."""
    penalty_every: int = 1
    """Steps between penalties, each then that many times as large (lazy regularisation). For accelerators: XLA's
    convolutions within a branch are so slow on a CPU that a penalty every fourth step takes three times as long as
    one every step."""
    drift: float = 0.0
    """Weight of the drift term."""
    auxiliary: float = 1.0
    """Weight of the auxiliary classifier's term, where the discriminator has one."""
    ema_half_life: float | None = None
    """Images after which the average has half forgotten; None for a decay of 0.999 a step."""
    mirror: bool = True
    """Whether reals are mirrored every second time."""

    def __post_init__(self) -> None:
        if self.kind not in ("r1", "wgan-gp"):
            raise ValueError(f'a loss is of the kind "r1" or "wgan-gp", got "{self.kind}"')
        if self.penalty_every < 1:
            raise ValueError(f"penalty_every is at least 1 step, got {self.penalty_every}; penalty=0 leaves it out")
        if self.ema_half_life is not None and not self.ema_half_life > 0:
            raise ValueError(f"ema_half_life is a number of images above 0, or None, got {self.ema_half_life}")
        for name in ("penalty", "drift", "auxiliary"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is a weight of 0 or more, got {getattr(self, name)}")


PROGAN_LOSS = AdversarialLoss("wgan-gp", 10.0, drift=0.001)
STYLEGAN_LOSS = AdversarialLoss("r1", 10.0, ema_half_life=10_000.0)


def _keys(key: jax.Array, n: int) -> jax.Array:
    """A key an example of the global batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, example_index(n))


def _reals(key: jax.Array, images: Array, fade: Array | None, mirror: bool) -> Float[Array, "n h w 3"]:
    """Reals in [-1, 1], mirrored at random, and as blurred as the generator's at this point of the fade."""
    if not jnp.issubdtype(images.dtype, jnp.integer):
        raise ValueError(f"a batch's images are bytes, 0 to 255, got {images.dtype}; multiply those in [0, 1] by 255")
    x = jnp.asarray(images, jnp.float32) / 127.5 - 1
    if mirror:
        turned = jax.vmap(jax.random.bernoulli)(_keys(key, x.shape[0]))
        x = jnp.where(turned[:, None, None, None], x[:, :, ::-1], x)
    if fade is None:
        return x
    return fade * x + (1 - fade) * resize_nearest(average_pool(x), (x.shape[1], x.shape[2]))


def grown(state: PyTree) -> PyTree:
    """The state to begin the next stage with: the same networks, step zero; Adam's moments are drawn anew."""
    return state.replace(step=np.int32(0), opt_state=None)


def adversarial(
    generator: nn.Module,
    discriminator: nn.Module,
    *,
    loss: AdversarialLoss,
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    stage: int,
    fade_images: int = 0,
    start: TrainState | None = None,
) -> TrainFns:
    """One stage of a generator and a discriminator that grow (Karras et al. 2018, section 2).

    A batch holds reals `image`, uint8 `[N, r, r, 3]` of the stage's resolution, and for conditional networks
    `class`, int32 `[N]`. The new resolution fades in over the first `fade_images` images, in networks and
    reals alike, as a function of the state's step: a stage is one compiled program, and resumes anywhere.
    `optimizers` are the generator's and the discriminator's. `start` is the state of the stage before, by
    `grown`; without it the networks are drawn.

    The state is one TrainState whose `params`, `model_state` and `opt_state` hold "generator" and
    "discriminator"; `ema_params` holds "generator". Each step updates the discriminator, then the generator.
    """
    sizes = [model.resolution for model in (generator, discriminator)]  # type: ignore[attr-defined]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"generator and discriminator grow to {sizes[0]} and {sizes[1]} pixels; give both one resolution"
        )
    if stage < 0 or 4 << stage > sizes[0]:
        raise ValueError(
            f"stage {stage} is none of networks that grow from 4 to {sizes[0]} pixels; the last is "
            f"{sizes[0].bit_length() - 3}"
        )
    if fade_images < 0:
        raise ValueError(f"fade_images is a number of images, 0 for none, got {fade_images}")
    resolution = 4 << stage
    doublings = (discriminator.resolution // resolution).bit_length() - 1  # type: ignore[attr-defined]
    latent_features: int = generator.latent_features  # type: ignore[attr-defined]
    conditional = bool(generator.num_classes)  # type: ignore[attr-defined]
    condition = discriminator.condition  # type: ignore[attr-defined]
    if generator.num_classes != discriminator.num_classes:  # type: ignore[attr-defined]
        raise ValueError(
            f"generator and discriminator know {generator.num_classes} and {discriminator.num_classes} classes; "  # type: ignore[attr-defined]
            "create both with one num_classes, 0 for none"
        )
    labelled = conditional and condition != "auxiliary"

    def labels_of(batch: PyTree) -> Any:
        if not conditional:
            return None
        if "class" not in batch:
            raise ValueError(
                f"conditional networks train on batches with `class`, int [n], got {sorted(batch)}; sort the pictures "
                "into a folder for each class, or create the networks with num_classes=0"
            )
        labels = jnp.asarray(batch["class"])
        if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"a batch's `class` is int [n], got {labels.dtype} {labels.shape}")
        return labels

    def latents(key: jax.Array, n: int) -> Float[Array, "n z"]:
        return jax.vmap(lambda k: jax.random.normal(k, (latent_features,)))(_keys(key, n))

    def generate(
        variables: PyTree, key: jax.Array, labels: Array | None, n: int, fade: Array | None
    ) -> tuple[Array, PyTree]:
        z_key, noise_key, mixing_key = jax.random.split(key, 3)
        return generator.apply(
            variables,
            latents(z_key, n),
            *((labels,) if conditional else ()),
            stage=stage,
            fade=fade,
            train=True,
            rngs={"noise": noise_key, "mixing": mixing_key},
            mutable=["w_average"],
        )

    def judge(params: PyTree, images: Array, labels: Array | None, fade: Array | None) -> Any:
        extra = (labels,) if labelled else ()
        return discriminator.apply({"params": params}, images, *extra, stage=stage, fade=fade, train=True)

    def init(key: jax.Array, batch: PyTree) -> TrainState:
        shape = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
        params: Any
        ema_params: Any
        model_state: Any
        if start is None:
            parts: dict[str, dict[str, Any]] = {}
            for i, (name, model) in enumerate((("generator", generator), ("discriminator", discriminator))):
                blank = [jnp.zeros(x.shape, x.dtype) for x in model.inputs(shape)]  # type: ignore[attr-defined]
                draw = lambda k, m=model, b=blank: m.init(k, *b, train=False)  # noqa: E731
                parts[name] = dict(draw_variables(draw, jax.random.fold_in(key, i)))
            params = {name: part.pop("params") for name, part in parts.items()}
            ema_params, model_state = {"generator": jax.tree.map(jnp.copy, params["generator"])}, parts
        else:
            params, ema_params, model_state = start.params, start.ema_params, start.model_state
        opt_state = {
            name: optimizer.init(params[name])
            for name, optimizer in zip(("generator", "discriminator"), optimizers, strict=True)
        }
        return TrainState(jnp.int32(0), params, model_state, opt_state, ema_params)

    def update(state: TrainState, batch: PyTree, key: jax.Array) -> tuple[TrainState, PyTree]:
        n = batch["image"].shape[0]
        images_a_step = batch_sum(jnp.float32(n))
        fade = jnp.minimum(state.step * images_a_step / fade_images, 1.0) if fade_images else None
        real_key, d_key, g_key, penalty_key = jax.random.split(key, 4)
        reals = _reals(real_key, jnp.asarray(batch["image"]), fade, loss.mirror)
        labels = labels_of(batch)
        frozen = state.model_state["generator"]

        def penalty(params: PyTree, fakes: Array) -> Array:
            score = lambda x: judge(params, x, labels, fade).score  # noqa: E731
            if loss.kind == "r1":
                return loss.penalty / 2 * r1_penalty(score, reals, doublings=doublings)
            return loss.penalty * gradient_penalty(score, reals, fakes, penalty_key, doublings=doublings)

        def lazily(params: PyTree, fakes: Array) -> Array:
            if loss.penalty_every == 1:
                return penalty(params, fakes)
            due = state.step % loss.penalty_every == 0
            return loss.penalty_every * jax.lax.cond(due, penalty, lambda *_: jnp.zeros(()), params, fakes)

        def discriminator_loss(params: PyTree) -> tuple[Array, Mapping[str, Array]]:
            fakes, _ = generate({"params": state.params["generator"], **frozen}, d_key, labels, n, fade)
            fakes = jax.lax.stop_gradient(fakes)
            real, fake = judge(params, reals, labels, fade), judge(params, fakes, labels, fade)
            value = (logistic if loss.kind == "r1" else wasserstein)(real.score, fake.score)
            if loss.drift:
                value += loss.drift * drift(real.score)
            if real.class_logits is not None:
                both = class_loss(real.class_logits, labels) + class_loss(fake.class_logits, labels)
                value += loss.auxiliary * both
            extra = lazily(params, fakes)
            scores = {k: batch_mean(x.score.mean()) for k, x in (("score_real", real), ("score_fake", fake))}
            return value + extra, {"loss": value, "penalty": extra, **scores}

        def generator_loss(params: PyTree, critic: PyTree) -> tuple[Array, PyTree]:
            fakes, changed = generate({"params": params, **frozen}, g_key, labels, n, fade)
            output = judge(critic, fakes, labels, fade)
            value = non_saturating(output.score) if loss.kind == "r1" else -batch_mean(output.score.mean())
            if output.class_logits is not None:
                value += loss.auxiliary * class_loss(output.class_logits, labels)
            return value, changed

        params, opt_state = dict(state.params), dict(state.opt_state)

        def step(name: str, optimizer: optax.GradientTransformation, gradient: PyTree) -> None:
            updates, opt_state[name] = optimizer.update(batch_mean(gradient), opt_state[name], params[name])
            params[name] = optax.apply_updates(params[name], updates)

        gradient, metrics = jax.grad(discriminator_loss, has_aux=True)(params["discriminator"])
        step("discriminator", optimizers[1], gradient)
        (value, changed), gradient = jax.value_and_grad(generator_loss, has_aux=True)(
            params["generator"], params["discriminator"]
        )
        step("generator", optimizers[0], gradient)
        decay = 0.999 if loss.ema_half_life is None else 0.5 ** (images_a_step / loss.ema_half_life)
        averages: Any = state.ema_params
        ema = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, averages["generator"], params["generator"])
        model_state = {**state.model_state, "generator": {**frozen, **changed}}
        metrics = {**metrics, "generator_loss": value, "fade": jnp.float32(1) if fade is None else fade}
        return TrainState(state.step + 1, params, model_state, opt_state, {"generator": ema}), metrics

    def evaluate(state: TrainState, batch: PyTree) -> PyTree:
        reals = jnp.asarray(batch["image"], jnp.float32) / 127.5 - 1
        scores = judge(state.params["discriminator"], reals, labels_of(batch), None).score
        counted = jnp.asarray(batch["index"] >= 0, jnp.float32) if "index" in batch else jnp.ones(scores.shape)
        return batch_sum({"score_real": (scores * counted).sum(), "examples": counted.sum()})

    def summarize(sums: Mapping[str, Any]) -> dict[str, float]:
        return {"score_real": float(sums["score_real"] / sums["examples"])}

    return TrainFns(init, update, evaluate, summarize)
