"""Directions and projection, where the answer is known."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.control import edit, follow_gradient, linear_direction, orthogonal_to, project
from jaxseg.models import create_model

RNG = np.random.default_rng(0)
TRUE = np.array([3.0, -1.0, 0, 2, 0, 0]) / np.sqrt(14)


def test_a_gradient_is_followed_while_the_rest_is_held():
    weights = jnp.asarray(RNG.standard_normal((6, 3)), jnp.float32)
    logits = lambda x: jnp.sin(x @ weights) + x @ weights  # noqa: E731
    x = jnp.asarray(RNG.standard_normal((4, 6)), jnp.float32)
    run = jax.jit(functools.partial(follow_gradient, logits, target=1), static_argnames=("penalty", "steps"))
    held, free = run(x, penalty=10.0, steps=50), run(x, penalty=0.0, steps=50)
    assert (logits(held)[:, 1] > logits(x)[:, 1]).all()
    moved = [np.abs(np.asarray(logits(y) - logits(x)))[:, [0, 2]].max() for y in (held, free)]
    assert moved[0] < 0.3 * moved[1]
    np.testing.assert_allclose(np.linalg.norm(run(x, penalty=0.0, steps=1) - x, axis=1), 0.1, rtol=1e-4)
    with pytest.raises(ValueError, match="one of 3 attributes, 0 to 2, got 3"):
        follow_gradient(logits, x, 3)


def test_orthogonal_to_keeps_the_others():
    others = [RNG.standard_normal(6) for _ in range(2)] + [np.zeros(6)]
    kept = orthogonal_to(TRUE, others)
    np.testing.assert_allclose([kept @ other for other in others], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(kept), 1)
    assert kept @ TRUE > 0
    np.testing.assert_allclose(orthogonal_to(2 * TRUE, []), TRUE / np.linalg.norm(TRUE))
    with pytest.raises(ValueError, match="nothing is left"):
        orthogonal_to(TRUE, [TRUE * 2, others[0]])
    for held in ([], others):
        with pytest.raises(ValueError, match="a direction is not zero"):
            orthogonal_to(np.zeros(6), held)
    far_longer = orthogonal_to(TRUE, [1e8 * others[0], others[1]])
    np.testing.assert_allclose(far_longer, kept, atol=1e-9)
    for vector, held in ((TRUE, [others[0], np.ones(4)]), (TRUE[:4], others), (TRUE[None], [])):
        with pytest.raises(ValueError, match=rf"and others of its length, got {re.escape(str(vector.shape))}"):
            orthogonal_to(vector, held)
    for vector, held in ((TRUE * np.nan, others), (TRUE, [others[0], np.full(6, np.inf)]), (TRUE * np.nan, [])):
        with pytest.raises(ValueError, match="directions are finite"):
            orthogonal_to(vector, held)


def test_edits_are_a_strip():
    x = jnp.ones((2, 6))
    strip = edit(x, TRUE, (-3, 0, 3))
    assert strip.shape == (3, 2, 6)
    np.testing.assert_allclose(strip[2, 1] - strip[0, 1], 6 * TRUE, rtol=1e-5)
    np.testing.assert_array_equal(strip[1], x)
    np.testing.assert_array_equal(edit(x, TRUE, 3.0), strip[2:])
    with pytest.raises(ValueError, match=r"layers flattened; got \(1, 4, 6\) and \(6,\)"):
        edit(jnp.zeros((1, 4, 6)), TRUE)


@pytest.mark.slow
def test_a_projector_finds_the_w_of_an_image():
    model = create_model(
        "stylegan_generator",
        resolution=8,
        base_features=64,
        max_features=8,
        w_features=6,
        latent_features=6,
        mapping_layers=2,
    )
    variables = model.init(jax.random.key(0), jnp.zeros((1, 6)), train=False)
    synthesize = functools.partial(model.apply, variables, method="synthesize", train=False)
    w = jax.random.normal(jax.random.key(1), (2, 6))

    @jax.jit
    def find(w):
        return project(synthesize, synthesize(w), w + 0.3 * jax.random.normal(jax.random.key(2), w.shape), steps=300)

    found, losses = find(w)
    assert losses[-1] < 1e-3 * losses[0]
    np.testing.assert_allclose(synthesize(found), synthesize(w), atol=0.1)
    with pytest.raises(ValueError, match=r"are \(2, 1, 1, 3\), and those of `start` \(2, 8, 8, 3\)"):
        project(synthesize, jnp.zeros((2, 1, 1, 3)), w)
    plus = jnp.broadcast_to(w[:, None], (2, model.layers, 6))
    assert jax.eval_shape(lambda p: project(synthesize, synthesize(w), p, steps=2), plus)[0].shape == plus.shape


def test_what_cannot_be_projected_is_named():
    synthesize = lambda w: jnp.tanh(w).reshape(-1, 1, 1, 3)  # noqa: E731
    w, images = jnp.zeros((2, 3)), jnp.zeros((2, 1, 1, 3))
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"project takes 1 step or more, got {steps}"):
            project(synthesize, images, w, steps=steps)
    with pytest.raises(ValueError, match=r"floats of the range of those of `start`, got uint8; .* / 127\.5 - 1"):
        project(synthesize, images.astype(jnp.uint8), w, steps=1)


@pytest.mark.parity
def test_the_svm_finds_the_plane():
    pytest.importorskip("sklearn")
    x = RNG.standard_normal((4000, 6))
    direction = linear_direction(x, x @ TRUE + 0.1 * RNG.standard_normal(4000), seed=0)
    assert direction.accuracy == 1
    assert direction.vector @ TRUE > 0.99
    with pytest.raises(ValueError, match="is 2 at either end"):
        linear_direction(x[:100], x[:100] @ TRUE, seed=0)
    with pytest.raises(ValueError, match=r"at most 0\.5, got 0\.8"):
        linear_direction(x, x @ TRUE, share=0.8, seed=0)
    with pytest.raises(ValueError, match="finite latents and scores"):
        linear_direction(x, np.where(np.arange(4000) < 9, np.nan, x @ TRUE), seed=0)
    with pytest.raises(ValueError, match="all scores are equal"):
        linear_direction(x, np.ones(4000), seed=0)
    with pytest.raises(ValueError, match=r"80 of 4000 latents at either end, and the score 0\.0 is at both"):
        linear_direction(x, np.float32(np.arange(4000) < 79), seed=0)
    with pytest.raises(ValueError, match="the latents at one end are those at the other"):
        linear_direction(np.zeros((4000, 6)), x @ TRUE, seed=0)
