"""AdaIN against NumPy, in both conventions, and where variances vanish."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import image

from jaxseg.ops.adain import (
    OFFICIAL,
    PORT,
    adaptive_instance_norm,
    blend_statistics,
    channel_statistics,
    instance_norm,
)
from jaxseg.ops.color import match_colors

CONTENT, STYLE = image(2, 5, 7, 6) * 3 + 1, image(2, 4, 3, 6) * 0.5 - 2


def by_hand(content, style, content_std, style_std):
    out = np.empty_like(content)
    for n, c in np.ndindex(content.shape[0], content.shape[-1]):
        x, y = content[n, ..., c].astype(np.float64), style[n, ..., c].astype(np.float64)
        out[n, ..., c] = (x - x.mean()) / content_std(x) * style_std(y) + y.mean()
    return out


@pytest.mark.parametrize(
    ("convention", "content_std", "style_std"),
    [
        (PORT, lambda x: np.sqrt(x.var(ddof=1) + 1e-5), lambda x: np.sqrt(x.var(ddof=1) + 1e-5)),
        (OFFICIAL, lambda x: np.sqrt(x.var() + 1e-5), lambda x: x.std(ddof=1)),
    ],
)
def test_the_published_conventions(convention, content_std, style_std):
    expected = by_hand(np.asarray(CONTENT), np.asarray(STYLE), content_std, style_std)
    np.testing.assert_allclose(adaptive_instance_norm(CONTENT, STYLE, convention), expected, atol=1e-5)


def test_the_default_is_the_ports_and_the_conventions_differ():
    port, official = (np.asarray(adaptive_instance_norm(CONTENT, STYLE, c)) for c in (PORT, OFFICIAL))
    np.testing.assert_array_equal(adaptive_instance_norm(CONTENT, STYLE), port)
    assert np.abs(port - official).max() > 1e-2


@pytest.mark.parametrize("convention", [PORT, OFFICIAL])
@pytest.mark.parametrize(
    ("content", "style"),
    [
        (CONTENT, STYLE[:, :1, :1]),  # one pixel
        (CONTENT, jnp.full_like(STYLE, 3)),
        (jnp.full_like(CONTENT, 2), STYLE),
        (jnp.zeros_like(CONTENT[:, :1, :1]), jnp.zeros_like(STYLE[:, :1, :1])),
    ],
)
def test_no_variance_is_no_nan(convention, content, style):
    def scalar(content, style):
        return jnp.sum(jnp.sin(adaptive_instance_norm(content, style, convention)))

    out = adaptive_instance_norm(content, style, convention)
    assert np.isfinite(out).all()
    assert all(np.isfinite(gradient).all() for gradient in jax.grad(scalar, (0, 1))(content, style))
    if not np.ptp(np.asarray(content)):
        np.testing.assert_allclose(out, jnp.broadcast_to(style.mean((1, 2), keepdims=True), out.shape), atol=1e-5)


def test_instance_norm_of_constants_is_zero():
    assert (instance_norm(jnp.full((1, 3, 3, 2), 7.0), epsilon=0.0) == 0).all()


def test_blended_statistics_are_the_weighted_sum_of_transfers():
    styles = [STYLE, STYLE * 2 + 1, STYLE[:, ::-1] ** 2]
    weights = np.array([1.0, 2.0, 5.0])
    each = [np.asarray(adaptive_instance_norm(CONTENT, style)) for style in styles]
    expected = sum(w * x for w, x in zip(weights / 8, each, strict=True))
    blended = blend_statistics([channel_statistics(style) for style in styles], weights)
    np.testing.assert_allclose(adaptive_instance_norm(CONTENT, blended), expected, atol=1e-5)
    with pytest.raises(ValueError, match="one weight a style, got 2 for 3"):
        blend_statistics([channel_statistics(style) for style in styles], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"a sum above zero, got \[0\.0, 0\.0, 0\.0\]"):
        blend_statistics([channel_statistics(style) for style in styles], [0.0, 0.0, 0.0])


def test_a_mask_is_the_region_cut_out():
    mask = np.zeros((2, 5, 7), np.float32)
    mask[:, :3, 2:6] = 1
    whole = adaptive_instance_norm(CONTENT, STYLE, mask=jnp.asarray(mask))
    cut = adaptive_instance_norm(CONTENT[:, :3, 2:6], STYLE)
    np.testing.assert_allclose(whole[:, :3, 2:6], cut, atol=1e-5)
    assert np.isfinite(adaptive_instance_norm(CONTENT, STYLE, mask=jnp.zeros((2, 5, 7)))).all()


def test_statistics_are_float32_and_the_result_has_the_contents_dtype():
    out = adaptive_instance_norm(CONTENT.astype(jnp.bfloat16), STYLE.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert channel_statistics(STYLE.astype(jnp.bfloat16)).std.dtype == jnp.float32
    with pytest.raises(ValueError, match="6 channels as the content's, got 5"):
        adaptive_instance_norm(CONTENT, STYLE[..., :5])


def test_matched_colours_have_the_targets_means_and_deviations():
    source, target = jax.nn.sigmoid(image(1, 20, 30))[0], jax.nn.sigmoid(2 * image(1, 9, 17) + 1)[0]
    matched = match_colors(source, target).reshape(-1, 3)
    np.testing.assert_allclose(matched.mean(0), target.reshape(-1, 3).mean(0), atol=1e-5)
    # the identity beside the sums over 153 pixels moves the deviations a little
    np.testing.assert_allclose(matched.std(0), target.reshape(-1, 3).std(0), rtol=2e-2)
    assert np.isfinite(match_colors(source.at[..., 1].set(0.5), jnp.full((4, 4, 3), 0.2))).all()


def test_one_colour_takes_the_targets_mean_whatever_the_rounding_of_its_own():
    target = jax.nn.sigmoid(image(1, 20, 30))[0]
    plain = jnp.broadcast_to(jnp.array([0.1, 0.2, 0.3]), (300, 400, 3))
    np.testing.assert_allclose(match_colors(plain, target)[0, 0], target.mean((0, 1)), atol=1e-5)


@pytest.mark.parity
def test_colours_beside_torch():
    torch = pytest.importorskip("torch")
    from golden.adain import coral

    source, target = jax.nn.sigmoid(image(1, 20, 30))[0], jax.nn.sigmoid(2 * image(1, 30, 20) + 1)[0]
    flat = [torch.tensor(np.asarray(x)).reshape(-1, 3).T for x in (source, target)]
    np.testing.assert_allclose(match_colors(source, target).reshape(-1, 3).T, coral(*flat).numpy(), atol=1e-5)


def test_a_faint_mask_is_the_region_all_the_same():
    mask = np.random.default_rng(4).random((2, 5, 7)).astype(np.float32)
    whole = adaptive_instance_norm(CONTENT, STYLE, mask=jnp.asarray(mask))
    faint = adaptive_instance_norm(CONTENT, STYLE, mask=jnp.asarray(0.004 * mask))
    np.testing.assert_allclose(faint, whole, atol=1e-4)
    with pytest.raises(ValueError, match="one for each of 2 contents, got 3"):
        adaptive_instance_norm(CONTENT, jnp.ones((3, 4, 4, 6)))


def test_shapes_that_would_be_broadcast_are_named():
    statistics = inspect.unwrap(channel_statistics)
    for x, mask in ((CONTENT[0], None), (CONTENT, jnp.ones((2, 5, 1))), (CONTENT, jnp.ones((2, 7, 5)))):
        with pytest.raises(ValueError, match=r"of features \(n, h, w, c\), and of a mask \(n, h, w\) over them: got"):
            statistics(x, mask)
    np.testing.assert_array_equal(*(statistics(CONTENT, jnp.ones((n, *CONTENT.shape[1:3]))).std for n in (1, 2)))
    with pytest.raises(ValueError, match=r"takes images \(h, w, 3\), got \(2, 4, 4, 3\) and \(5, 5, 3\); jax\.vmap"):
        inspect.unwrap(match_colors)(jnp.ones((2, 4, 4, 3)), jnp.ones((5, 5, 3)))
