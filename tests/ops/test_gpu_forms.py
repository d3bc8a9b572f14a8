"""What a GPU gets, computed here, against XLA's own forms and naive definitions; and that it is what a GPU gets."""

import functools

import jax
import jax.numpy as jnp
import naive_detection as naive
import numpy as np
import pytest

from jaxseg.ops.atrous import atrous_conv, interleaving_pays
from jaxseg.ops.depthwise import depthwise_conv
from jaxseg.ops.nms import nms
from jaxseg.ops.pooling import max_pool
from jaxseg.ops.roi import roi_align


@pytest.fixture
def on_gpu(monkeypatch):
    def platform_dependent(*args, default, **forms):
        return forms.get("cuda", default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", platform_dependent)


def lowered_for_gpu(f, *args):
    return jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def with_holes(x, kernel, padding, holes, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        padding,
        rhs_dilation=holes,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def demand_same(ours, theirs, *args):
    """Values, gradients, and the gradient of a gradient."""

    @functools.partial(jax.jit, static_argnums=0)
    def everything(f, *args):
        slope = jax.grad(lambda *args: jnp.sin(f(*args)).sum(), tuple(range(len(args))))
        return f(*args), slope(*args), jax.grad(lambda *args: sum((g**2).sum() for g in slope(*args)))(*args)

    for a, b in zip(*(jax.tree.leaves(everything(f, *args)) for f in (ours, theirs)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=4e-6 * max(1, np.abs(b).max()))


# sizes that the holes divide and that leave rows over, windows and borders that are not symmetrical
HOLES = [
    ((14, 16), (3, 3), ((2, 2), (2, 2)), (2, 2)),
    ((33, 38), (3, 3), ((4, 4), (4, 4)), (4, 4)),
    ((19, 23), (3, 2), ((0, 1), (3, 0)), (2, 3)),
    ((18, 12), (1, 5), ((0, 0), (1, 7)), (1, 2)),
]


@pytest.mark.parametrize(("size", "window", "padding", "holes"), HOLES)
def test_holes_by_interleaving(on_gpu, size, window, padding, holes):
    x, kernel = normal(2, *size, 4), normal(*window, 4, 3, seed=1)
    assert interleaving_pays(x, window, padding, holes)
    demand_same(
        lambda x, kernel: atrous_conv(x, kernel, (1, 1), padding, rhs_dilation=holes),
        lambda x, kernel: with_holes(x, kernel, padding, holes),
        x,
        kernel,
    )
    deep = normal(*window, 1, 4, seed=2)
    demand_same(
        lambda x, kernel: depthwise_conv(x, kernel, (1, 1), padding, rhs_dilation=holes),
        lambda x, kernel: with_holes(x, kernel, padding, holes, 4),
        x,
        deep,
    )


def test_holes_as_wide_as_the_image_are_not_interleaved():
    x, padding = jnp.zeros((1, 16, 16, 2)), ((12, 12), (12, 12))
    assert not interleaving_pays(x, (3, 3), padding, (12, 12))
    kernel = jnp.zeros((3, 3, 2, 2))
    f = jax.grad(lambda k: atrous_conv(x, k, (1, 1), padding, rhs_dilation=(12, 12)).sum())
    assert "transpose" not in lowered_for_gpu(f, kernel).replace("transpose_", "")
    padding = ((2, 2), (2, 2))
    f = jax.grad(lambda k: atrous_conv(x, k, (1, 1), padding, rhs_dilation=(2, 2)).sum())
    assert "stablehlo.transpose" in lowered_for_gpu(f, kernel)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 200])
def test_nms_by_words_is_greedy(on_gpu, n):
    rng = np.random.default_rng(n)
    corners = rng.uniform(0, 30, (n, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (n, 2))], 1).astype(np.float32)
    scores = rng.integers(0, 9, n).astype(np.float32)  # ties
    kept = jax.jit(lambda b, s: nms(b, s, 0.3, n, block=100))(boxes, scores)
    expected = naive.greedy_nms(boxes, scores, 0.3)
    np.testing.assert_array_equal(kept.indices[kept.valid], expected)


def test_nms_by_words_settles_long_chains_in_a_batch(on_gpu):
    x = np.arange(150) * 4.0  # each overlaps the next by 0.43, and no other
    chain = np.stack([x, 0 * x, x + 10, 0 * x + 10], 1).astype(np.float32)
    scores = -np.arange(150, dtype=np.float32)
    both = jax.jit(jax.vmap(lambda b, s: nms(b, s, 0.4, 150)))(np.stack([chain, chain[::-1]]), np.stack([scores] * 2))
    np.testing.assert_array_equal(both.valid.sum(1), [75, 75])
    np.testing.assert_array_equal(both.indices[:, :75], [range(0, 150, 2)] * 2)


def test_a_gpu_waits_for_no_inner_loop_of_nms():
    text = lowered_for_gpu(lambda b, s: nms(b, s, 0.5, 64), jnp.zeros((64, 4)), jnp.zeros(64))
    assert text.count("stablehlo.while") == 1


@pytest.mark.parametrize(("window", "stride", "reduced"), [(2, 2, False), (3, 2, True)])
def test_pooling_of_tiles_is_of_views(window, stride, reduced):
    text = lowered_for_gpu(lambda x: max_pool(x, window, stride), jnp.zeros((1, 9, 9, 2)))
    assert ("reduce_window" in text) == reduced


def test_roi_align_reads_pixels_forward_and_multiplies_backward(on_gpu):
    x, boxes = normal(2, 9, 11, 3), jnp.array([[[1.0, 2, 40, 30], [9, 9, 60, 70]]] * 2)
    align = functools.partial(roi_align, size=3, scale=1 / 8)
    demand_same(lambda x: align(x, boxes), lambda x: align(x, boxes, form="einsum"), x)
    forward, backward = (
        lowered_for_gpu(f, x) for f in (lambda x: align(x, boxes), jax.grad(lambda x: align(x, boxes).sum()))
    )
    assert "gather" in forward
    assert "dot_general" not in forward
    assert "scatter" not in backward
    assert "dot_general" in backward
