"""Style transfer's losses against NumPy, in both weightings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import image

from jaxseg.losses import OFFICIAL_WEIGHTS, PORT_WEIGHTS, content_loss, style_loss

OUTPUT = {"a": image(2, 4, 5, 3), "b": image(2, 2, 3, 6)}
STYLE = {"a": image(2, 7, 3, 3) * 2, "b": image(2, 5, 5, 6) + 1}


def by_hand(reduce):
    total = 0.0
    for layer in OUTPUT:
        x, y = (np.asarray(f[layer], np.float64).reshape(2, -1, f[layer].shape[-1]) for f in (OUTPUT, STYLE))
        total += reduce((x.mean(1) - y.mean(1)) ** 2, 1).mean()
        deviations = (np.sqrt(f.var(1, ddof=1) + 1e-5) for f in (x, y))
        total += reduce((next(deviations) - next(deviations)) ** 2, 1).mean()
    return total


def test_both_weightings():
    assert (OFFICIAL_WEIGHTS.style, PORT_WEIGHTS.style) == (1e-2, 10)
    for weights, reduce in ((PORT_WEIGHTS, np.mean), (OFFICIAL_WEIGHTS, np.sum)):
        ours = style_loss(OUTPUT, STYLE, ("a", "b"), reduction=weights.reduction)
        np.testing.assert_allclose(ours, by_hand(reduce), rtol=1e-5)


def test_content_loss_is_the_mean_square():
    a, b = OUTPUT["a"], OUTPUT["a"] * 2 + 1
    np.testing.assert_allclose(content_loss(a, b), np.mean(np.square(np.asarray(a) - np.asarray(b))), rtol=1e-6)


def test_constant_channels_have_finite_gradients():
    constant = {"a": jnp.ones((1, 3, 3, 2))}
    gradient = jax.grad(lambda x: style_loss({"a": x}, constant, ("a",)))(jnp.zeros((1, 3, 3, 2)))
    assert np.isfinite(gradient).all()
    assert style_loss(constant, constant, ("a",)) == 0


def test_an_unknown_layer_is_an_error():
    with pytest.raises(KeyError, match="relu"):
        style_loss(OUTPUT, STYLE, ("relu9_9",))
