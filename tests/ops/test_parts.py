"""Sums over parts against the sum at once, and what of it is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.parts import sum_over_parts

RAN = []


def squares(shared, x, targets, valid):
    """A loss of two leaves, that says when it is run."""
    jax.debug.callback(lambda: RAN.append(1))
    error = jnp.tanh(x["a"] @ shared["w"] + shared["b"]).sum(-1) * x["b"] - targets
    return jnp.sum(jnp.where(valid, error**2, 0))


def case(n, k, positives):
    keys = jax.random.split(jax.random.key(0), 5)
    shared = {"w": jax.random.normal(keys[0], (3, 4)), "b": jax.random.normal(keys[1], (4,))}
    x = {"a": jax.random.normal(keys[2], (n, k, 3)), "b": jax.random.normal(keys[3], (n, k))}
    return shared, x, jax.random.normal(keys[4], (n, k)), jnp.arange(k) < jnp.asarray(positives)[:, None]


@pytest.mark.parametrize(
    ("n", "k", "positives", "parts"), [(2, 12, (5, 1), 2), (1, 10, (10,), 3), (2, 8, (0, 0), 0), (3, 3, (1, 3, 0), 1)]
)
def test_the_sum_and_its_gradients_are_those_of_the_whole(n, k, positives, parts):
    shared, x, targets, valid = case(n, k, positives)
    plain = jax.value_and_grad(lambda s, x: 0.5 * squares(s, x, targets, valid), (0, 1))
    in_parts = jax.jit(jax.value_and_grad(lambda s, x: 0.5 * sum_over_parts(squares, s, x, targets, valid, 4), (0, 1)))
    expected = plain(shared, x)
    jax.effects_barrier()
    RAN.clear()
    found = in_parts(shared, x)
    jax.effects_barrier()
    assert len(RAN) == parts  # once each: the gradient is found with the value
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # sums of two dozen terms of the size of the largest, some of which cancel
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-6 * max(1, np.abs(b).max()))
    value = jax.jit(lambda: sum_over_parts(squares, shared, x, targets, valid, 4))()
    np.testing.assert_allclose(0.5 * value, expected[0], rtol=2e-5)


def test_half_precision_keeps_its_dtype():
    shared, x, targets, valid = case(1, 8, (3,))
    x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), x)

    def loss(shared, x):
        return sum_over_parts(lambda *a: squares(*a).astype(jnp.float32), shared, x, targets, valid, 4)

    of_shared, of_x = jax.grad(loss, (0, 1))(shared, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(of_x)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(of_shared)} == {jnp.dtype(jnp.float32)}
    assert np.all(np.asarray(of_x["a"][:, 3:], np.float32) == 0)
