"""Controllable generation with a generator trained without labels: directions in latent space, and projection.

A label-free generator is controlled by moving its noise vector, or w; a conditional one takes a class vector.
Latents are rows `[n, d]`: z, w, or w+ with its layers flattened.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

__all__ = ["Direction", "edit", "follow_gradient", "linear_direction", "orthogonal_to", "project"]


class Direction(NamedTuple):
    """A unit vector, and the share of held-out latents on the side of its plane that their scores say."""

    vector: Float[np.ndarray, "d"]
    accuracy: float


def linear_direction(
    latents: Float[np.ndarray, "n d"], scores: Float[np.ndarray, "n"], *, share: float = 0.02, seed: int
) -> Direction:
    """The unit normal of a linear SVM between the latents with the highest and lowest attribute scores.

    InterFaceGAN (Shen et al. 2020, section 3.2): `share` of the latents at either end, of which 70 % train the
    SVM. Needs scikit-learn. Raises ValueError where that leaves fewer than 10 at an end, or a score that is at
    both, or latents that are all equal.
    """
    from sklearn.svm import LinearSVC

    latents, scores = np.asarray(latents, np.float64), np.asarray(scores, np.float64)
    if not 0 < share <= 0.5:
        raise ValueError(f"share is that of either end, above 0 and at most 0.5, got {share}")
    count = int(len(latents) * share)
    if latents.ndim != 2 or scores.shape != (len(latents),):
        raise ValueError(f"linear_direction takes latents (n, d) and scores (n,), got {latents.shape}, {scores.shape}")
    if count < 10:
        raise ValueError(f"{share:.1%} of {len(latents)} latents is {count} at either end; draw more, or raise `share`")
    if not (np.isfinite(latents).all() and np.isfinite(scores).all()):
        raise ValueError("linear_direction takes finite latents and scores; leave out the rows that are not")
    if np.ptp(scores) == 0:
        raise ValueError("all scores are equal: the attribute tells nothing apart")
    order = np.random.default_rng(seed).permutation(count)
    by_score = np.argsort(scores, kind="stable")
    if scores[by_score[count - 1]] == scores[by_score[-count]]:
        raise ValueError(
            f"{count} of {len(scores)} latents at either end, and the score {scores[by_score[-count]]} is at both; "
            "draw more, or lower `share`"
        )
    train, held_out = order[: int(0.7 * count)], order[int(0.7 * count) :]
    low, high = latents[by_score[:count]], latents[by_score[-count:]]
    sides = np.repeat([0, 1], len(train))
    machine = LinearSVC(max_iter=10_000, random_state=seed).fit(np.concatenate([low[train], high[train]]), sides)
    accuracy = np.mean([*(machine.predict(low[held_out]) == 0), *(machine.predict(high[held_out]) == 1)])
    vector = machine.coef_[0]
    if not vector.any():
        raise ValueError("the latents at one end are those at the other: no plane parts them")
    return Direction(vector / np.linalg.norm(vector), float(accuracy))


def orthogonal_to(vector: Float[np.ndarray, "*_"], others: Sequence[Float[np.ndarray, "*_"]]) -> Float[np.ndarray, "d"]:
    """The unit vector nearest to `vector` along which the attributes of `others` stay (the same, section 3.3).

    Raises ValueError where `vector` is zero, or lies in the span of the others, or they are not of one length.
    """
    if np.ndim(vector) != 1 or any(np.shape(other) != np.shape(vector) for other in others):
        shapes = ", ".join(str(np.shape(x)) for x in (vector, *others))
        raise ValueError(f"orthogonal_to takes a vector (d,) and others of its length, got {shapes}")
    if not all(np.isfinite(x).all() for x in (vector, *others)):
        raise ValueError("directions are finite; leave out those that are not")
    if not np.any(vector):
        raise ValueError("a direction is not zero: there is no unit vector along it")
    if not len(others):
        return vector / np.linalg.norm(vector)
    # of length one, so that a short one is not lost beside a long one
    units = [np.asarray(other) / (np.linalg.norm(other) or 1) for other in others]
    basis = np.linalg.svd(np.stack(units), full_matrices=False)
    span = basis.Vh[1e-6 * basis.S[0] < basis.S]
    rest = vector - span.T @ (span @ vector)
    if np.linalg.norm(rest) < 1e-6 * np.linalg.norm(vector):
        raise ValueError("the direction lies in the span of those that should stay: nothing is left of it")
    return rest / np.linalg.norm(rest)


def edit(
    latents: Float[Array, "*_"],
    vector: Float[np.ndarray, "d"],
    steps: Sequence[float | int] | float = (-3, -1.5, 0, 1.5, 3),
) -> Float[Array, "s n d"]:
    """The latents `[n, d]` moved along `vector`, for each of `steps`: the columns of a strip."""
    if latents.ndim != 2 or np.shape(vector) != latents.shape[1:]:
        raise ValueError(
            f"edit takes latents (n, d) and a vector (d,), w+ with its layers flattened; got {latents.shape} and "
            f"{np.shape(vector)}"
        )
    return latents[None] + jnp.asarray(steps, jnp.float32).reshape(-1, 1, 1) * jnp.asarray(vector, jnp.float32)


def follow_gradient(
    logits: Callable[[Array], Float[Array, "n k"]],
    latents: Float[Array, "n d"],
    target: int,
    *,
    steps: int | Array = 50,
    rate: float = 0.1,
    penalty: float = 1.0,
) -> Float[Array, "n d"]:
    """Latents moved up the gradient of one attribute's logit while the others are held.

    `logits` maps latents to attribute logits, through generator and classifier. Each step ascends
    logit[target] - penalty * sum over the others of (logit - its value at the start)^2, along the normalised
    gradient of each latent, `rate` long.
    """
    start = logits(latents)
    if not 0 <= target < start.shape[-1]:
        raise ValueError(f"target is one of {start.shape[-1]} attributes, 0 to {start.shape[-1] - 1}, got {target}")
    others = jnp.arange(start.shape[-1]) != target

    def gain(x: Array) -> Array:
        now = logits(x)
        return jnp.sum(now[:, target]) - penalty * jnp.sum(jnp.square(now - start) * others)

    def step(_: Any, x: Array) -> Array:
        gradient = jax.grad(gain)(x)
        norm = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
        return x + rate * gradient / jnp.maximum(norm, 1e-12)

    return jax.lax.fori_loop(0, steps, step, latents)


def project(
    synthesize: Callable[[Array], Array],
    images: Shaped[Array, "n h w c"],
    start: Any,
    *,
    features: Callable[[Array], Any] = lambda images: images,
    steps: int = 300,
    rate: float = 0.05,
) -> tuple[Any, Float[Array, "steps"]]:
    """The latents whose images are nearest to `images`, from `start`, and the loss of each step.

    `start` and `synthesize`'s argument are w `[n, w]` or w+ `[n, layers, w]`. The loss is the mean squared
    difference of each of `features` (of images by default, or of a perceptual network), each mean over its
    own size; Adam, whose rate falls to zero along a cosine. Raises ValueError for images of another shape or range
    than `synthesize` makes, and for no steps.
    """
    if steps < 1:
        raise ValueError(f"project takes 1 step or more, got {steps}")
    made = jax.eval_shape(synthesize, start)
    if made.shape != images.shape:
        raise ValueError(f"the images to project are {images.shape}, and those of `start` {made.shape}; resize them")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"the images to project are floats of the range of those of `start`, got {images.dtype}; the generators' "
            "is [-1, 1]: bytes / 127.5 - 1"
        )
    wanted = features(images)

    def loss(x: Any) -> Array:
        pairs = zip(jax.tree.leaves(features(synthesize(x))), jax.tree.leaves(wanted), strict=True)
        return jnp.sum(jnp.stack([jnp.mean(jnp.square(a - b)) for a, b in pairs]))

    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry: tuple[Any, Any], _: Any) -> tuple[tuple[Any, Any], Array]:
        x, state = carry
        value, gradient = jax.value_and_grad(loss)(x)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(x, updates), state), value

    (found, _), losses = jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)
    return found, losses
