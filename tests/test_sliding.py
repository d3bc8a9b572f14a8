"""Sliding windows, scales and mirror images against a definition that keeps every score of the image."""

import functools
import math
import tracemalloc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.data.canvas import MEAN_COLOUR, Fit, fit_geometry, fit_image
from jaxseg.models import SegmentationOutput, create_model
from jaxseg.predict import averaged_scores, sliding_predictor

K = 5


def scores_of(windows):
    """Scores that depend on the place in the window and on its mean, so that every overlap is another number."""
    h, w = windows.shape[1:3]
    place = np.sin(np.arange(h)[:, None, None] + 2 * np.arange(w)[:, None] + np.arange(K))
    return (windows.mean((1, 2, 3))[:, None, None, None] + windows[..., :1] + 50 * place).astype(np.float32)


def resized(scores, size):
    return np.asarray(jax.image.resize(jnp.array(scores), (*size, scores.shape[-1]), "bilinear", antialias=False))


def naive(apply, image, window, stride=2 / 3, scales=(1.0,), base=None):
    """hszhao/semseg's test.py, in words: pad in the centre, slide, divide by the count, crop, resize, average."""
    h, w = image.shape[:2]
    total = np.zeros((h, w, K), np.float64)
    for scale in scales:
        at = fit_geometry((h, w), base).scaled if base else (h, w)
        scaled = max(round(scale * at[0]), 1), max(round(scale * at[1]), 1)
        seen = fit_image(image, Fit((h, w), scaled, scaled))
        lack = [max(t - n, 0) for t, n in zip(window, scaled, strict=True)]
        pads = [(x // 2, x - x // 2) for x in lack]
        seen = np.stack([np.pad(seen[..., c], pads, constant_values=MEAN_COLOUR[c]) for c in range(3)], -1)
        sums, count = np.zeros((*seen.shape[:2], K)), np.zeros((*seen.shape[:2], 1))
        steps = [math.ceil(t * stride) for t in window]
        for i in range(math.ceil((seen.shape[0] - window[0]) / steps[0]) + 1):
            for j in range(math.ceil((seen.shape[1] - window[1]) / steps[1]) + 1):
                bottom = min(i * steps[0] + window[0], seen.shape[0])
                right = min(j * steps[1] + window[1], seen.shape[1])
                here = slice(bottom - window[0], bottom), slice(right - window[1], right)
                sums[here] += apply(seen[here][None])[0]
                count[here] += 1
        mean = (sums / count)[pads[0][0] : pads[0][0] + scaled[0], pads[1][0] : pads[1][0] + scaled[1]]
        total += resized(mean.astype(np.float32), (h, w))
    return (total / len(scales)).astype(np.float32)


@pytest.mark.parametrize("sideways", [False, True])
@pytest.mark.parametrize(
    ("size", "window", "options"),
    [
        ((40, 61), (12, 15), {}),
        ((40, 61), (12, 15), {"stride": 1.0}),
        ((13, 9), (12, 15), {"batch": 3}),  # narrower than a window
        ((5, 7), (12, 15), {"scales": (0.5, 1.0, 3.0)}),
        ((12, 15), (12, 15), {}),
        ((40, 61), (12, 15), {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "batch": 4}),
        ((61, 40), (12, 15), {"scales": (2.0, 0.3), "stride": 0.4}),
        ((40, 61), (12, 15), {"base": (20, 20), "scales": (1.0, 1.75)}),
        ((1, 1), (4, 4), {"base": (8, 8), "scales": (0.5, 2.0)}),
    ],
)
def test_scores_are_those_of_the_definition(size, window, options, sideways):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    batches = set()

    def apply(windows):
        batches.add(windows.shape)
        return scores_of(windows)

    got = np.concatenate(list(averaged_scores(apply, image, window, sideways=sideways, **options)), int(sideways))
    definition = {k: v for k, v in options.items() if k != "batch"}
    np.testing.assert_allclose(got, naive(scores_of, image, window, **definition), rtol=1e-5, atol=1e-3)
    assert batches == {(options.get("batch", 1), *window, 3)}, "every call has the one compiled shape"


class Shaded(nn.Module):
    """Scores of a 3x3 convolution that is not symmetric: a mirrored image scores otherwise."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(K, (3, 3), kernel_init=nn.initializers.normal(1.0))(images)
        return SegmentationOutput(x, None)


@pytest.mark.parametrize(("flip", "size"), [(False, (33, 50)), (True, (33, 50)), (True, (50, 20))])
def test_labels_are_of_the_highest_mean_probability(flip, size):
    model, image = Shaded(), np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

    @functools.cache
    def probability(window):
        seen = (np.frombuffer(window, np.uint8).reshape(1, 16, 16, 3) / 255 - mean) / std
        return jax.nn.softmax(model.apply(variables, seen.astype(np.float32), train=False).logits)

    def apply(windows):
        p = np.asarray(probability(windows.tobytes()))
        if flip:
            p = (p + np.asarray(probability(windows[:, :, ::-1].tobytes()))[:, :, ::-1]) / 2
        return p

    want = naive(apply, image, (16, 16), scales=(1.0, 1.5))
    got = sliding_predictor(model, variables, (16, 16), scales=(1.0, 1.5), flip=flip, batch=2)(image)
    clear = np.sort(want, -1)
    clear = clear[..., -1] - clear[..., -2] > 1e-5  # nearer ones are the same up to rounding
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(got[clear], want.argmax(-1)[clear])
    assert got.dtype == np.int32


def test_what_cannot_slide_says_so():
    image = np.zeros((8, 8, 3), np.uint8)
    for options, says in (({"stride": 0.0}, "stride"), ({"scales": ()}, "scales"), ({"scales": (0.0,)}, "scales")):
        with pytest.raises(ValueError, match=says):
            next(averaged_scores(scores_of, image, (4, 4), **options))
    with pytest.raises(ValueError, match="gave scores of"):
        next(averaged_scores(lambda x: scores_of(x)[:, 1:], image, (4, 4)))
    model = create_model("unet_valid", 2, features=(2, 4))
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 20, 20, 3)), train=False), jax.random.key(0))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    with pytest.raises(ValueError, match="seamless tiles"):
        sliding_predictor(model, variables, (20, 20))


@pytest.mark.parametrize(("scales", "most"), [((1.0,), 0.25), ((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), 1.0)])
def test_memory_is_less_than_one_map_of_all_scores(scales, most):
    image, k = np.zeros((1024, 128, 3), np.uint8), 80
    scores = np.ones((1, 128, 128, k), np.float32)
    tracemalloc.start()  # which NumPy tells of every array
    try:
        blocks = averaged_scores(lambda _: scores, image, (128, 128), scales=scales)
        labels = np.concatenate([block.argmax(-1) for block in blocks])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert labels.shape == (1024, 128)
    full = 1024 * 128 * k * 4
    assert peak - labels.nbytes < most * full, f"{(peak - labels.nbytes) / full:.2f} times the full float32 scores"
