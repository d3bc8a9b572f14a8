"""Sliced Wasserstein distance: a naive definition, and what it tells apart."""

import numpy as np
import pytest
import scipy.ndimage

from jaxseg.metrics.swd import laplacian_pyramid, sliced_wasserstein


def draws(seed, n=64, size=16, blur=False):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, size // 4, size // 4, 3)).repeat(4, 1).repeat(4, 2)
    fine = 0 if blur else rng.integers(-60, 60, (n, size, size, 3))
    return np.clip(coarse // 2 + 60 + fine, 0, 255).astype(np.uint8)


def test_a_pyramid_takes_an_image_apart():
    images = draws(0, 2, 64)
    levels = laplacian_pyramid(images)
    assert [level.shape[1] for level in levels] == [64, 32, 16]
    flat = laplacian_pyramid(np.full((1, 32, 32, 3), 77, np.uint8))
    np.testing.assert_allclose(flat[0], 0, atol=1e-3)
    np.testing.assert_allclose(flat[1], 77, atol=1e-3)
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] * 4, (1, 32, 32, 3))
    np.testing.assert_allclose(laplacian_pyramid(ramp)[0][:, 4:-4], 0, atol=1e-3)  # straight lines are smooth


def test_one_pixel_patches_by_hand():
    """With patches of one pixel of one channel a direction is a sign, and the distance that of sorted values."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (8, 1, 1, 1), np.uint8) for _ in range(2))
    ours = sliced_wasserstein(a, b, seed=0, patch=1, patches_an_image=1, directions=64)
    x, y = (np.sort((v - v.mean()) / v.std()) for v in (a.ravel().astype(float), b.ravel().astype(float)))
    mirrored = np.abs(-x[::-1] + y[::-1]).mean()
    np.testing.assert_allclose(ours[0], 1000 * np.abs(x - y).mean(), rtol=1e-4)
    np.testing.assert_allclose(ours[0], 1000 * mirrored, rtol=1e-4)


def naive(images, reals, seed, count, directions):
    """Pyramid, patches, projections and sorted differences one by one, with the draws in our order."""
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    rng, distances = np.random.default_rng(seed), []
    levels = [[x.astype(np.float64).transpose(0, 3, 1, 2)] for x in (images, reals)]
    smooth = lambda x: np.stack([[scipy.ndimage.convolve(c, kernel, mode="mirror") for c in i] for i in x])  # noqa: E731
    for pyramid in levels:
        while pyramid[-1].shape[-1] >= 32:
            fine = pyramid[-1]
            half = smooth(fine)[..., ::2, ::2]
            spread = np.zeros_like(fine)
            spread[..., ::2, ::2] = half
            pyramid[-1:] = [fine - 4 * smooth(spread), half]
    for pair in zip(*levels, strict=True):
        rows = []
        for x in pair:
            n, _, h, w = x.shape
            top, left = (rng.integers(0, side - 6, (n, count)) for side in (h, w))
            cut = [x[i, :, t : t + 7, s : s + 7] for i in range(n) for t, s in zip(top[i], left[i], strict=True)]
            cut = np.stack(cut).transpose(0, 2, 3, 1)
            cut = (cut - cut.mean((0, 1, 2))) / cut.std((0, 1, 2))
            rows.append(cut.reshape(len(cut), -1))
        total = []
        for i in range(0, directions, 64):
            for line in rng.standard_normal((147, min(64, directions - i)), np.float32).T:
                a, b = (np.sort(r @ (line / np.linalg.norm(line))) for r in rows)
                total.append(np.abs(a - b).mean())
        distances.append(1000 * np.mean(total))
    return distances


def test_the_definition_one_patch_at_a_time():
    a, b = draws(3, 4, 64), draws(4, 4, 64, blur=True)
    ours = sliced_wasserstein(a, b, seed=7, patches_an_image=5, directions=70)
    assert len(ours) == 3
    np.testing.assert_allclose(ours, naive(a, b, 7, 5, 70), rtol=1e-4)


@pytest.mark.parametrize("directions", [1, 40, 64, 100, 200])
def test_any_number_of_directions_is_averaged(directions):
    # one pixel, one channel: every direction has the same distance
    a, b = (np.random.default_rng(i).integers(0, 256, (8, 1, 1, 1), np.uint8) for i in (0, 1))
    ours = sliced_wasserstein(a, b, seed=0, patch=1, patches_an_image=1, directions=directions)
    x, y = (np.sort((v - v.mean()) / v.std()) for v in (a.ravel().astype(float), b.ravel().astype(float)))
    signs = np.array([np.abs(x - y).mean(), np.abs(-x[::-1] + y[::-1]).mean()])
    assert signs.min() - 1e-4 <= ours[0] / 1000 <= signs.max() + 1e-4


def test_it_orders_what_is_nearer():
    reals = draws(1)
    same, other, blurred = (
        sliced_wasserstein(x, reals, seed=0, patches_an_image=32, directions=128)[0]
        for x in (reals, draws(2), draws(2, blur=True))
    )
    # two draws of patches of one set: near zero, not zero
    assert same < 1.5 * other
    assert other < 0.8 * blurred


def test_sets_that_do_not_fit():
    with pytest.raises(ValueError, match="as many images as reals"):
        sliced_wasserstein(draws(0, 4), draws(0, 8), seed=0)
    with pytest.raises(ValueError, match="patches of 7 pixels"):
        sliced_wasserstein(draws(0, 4, 4), draws(0, 4, 4), seed=0)
    for least in (0, 4):
        with pytest.raises(
            ValueError, match=r"a level of the pyramid of \dx\d pixels holds no patch of 7; use least=7"
        ):
            sliced_wasserstein(draws(0, 4, 16), draws(0, 4, 16), seed=0, least=least, directions=1)
    with pytest.raises(ValueError, match=r"n of 1 or more: got \(0, "):
        sliced_wasserstein(draws(0, 0), draws(0, 0), seed=0)
    with pytest.raises(ValueError, match="one patch an image, got 512 and 0"):
        sliced_wasserstein(draws(0, 4), draws(0, 4), seed=0, patches_an_image=0)
    for patch in (0, -1):
        with pytest.raises(ValueError, match=f"patches of one pixel or more, got {patch}"):
            sliced_wasserstein(draws(0, 4), draws(0, 4), seed=0, patch=patch)
