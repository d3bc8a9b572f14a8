"""Training of a style transfer: only the decoder moves, losses fall, and devices do not matter."""

import functools

import jax
import numpy as np
import pytest

from jaxseg import parallel
from jaxseg.losses import OFFICIAL_WEIGHTS
from jaxseg.models import create_model
from jaxseg.models.adain_transfer import vgg16_relu4_1
from jaxseg.train_style import adam_hyperbolic, style_transfer

MODEL = create_model("adain_transfer", vgg=functools.partial(vgg16_relu4_1, features=(3, 4, 4, 6)))


def batch_of(step, n=8, size=18):
    rng = np.random.default_rng(step)
    return {k: rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8) for k in ("image", "style")}


@functools.cache
def trained(placement_name, steps=5):
    devices = jax.devices()
    placement = {
        "one": lambda: parallel.over_mesh(parallel.make_mesh(devices=devices[:1])),
        "data": lambda: parallel.over_mesh(parallel.make_mesh(data=8)),
        "pmap": lambda: parallel.over_pmap(),
    }[placement_name]()
    fns = style_transfer(MODEL, optimizer=adam_hyperbolic(3e-3), pretrained=lambda v: v, crop=16)
    key = jax.random.key(0)
    start = fns.init(key, batch_of(0))
    state = placement.put_state(start)
    sums = placement.compile_evaluate(fns.evaluate)(state, placement.put_batch(batch_of(9, size=16)))
    update = placement.compile_update(fns.update)
    history = []
    for step in range(steps):
        state, metrics = update(state, placement.put_batch(batch_of(0)), key, np.int32(step))
        history.append([float(metrics[k]) for k in ("loss", "content_loss", "style_loss")])
    return start, jax.device_get(state), np.array(history), fns.summarize(jax.device_get(sums))


def test_the_decoder_learns_and_the_encoder_stays():
    start, end, history, scores = trained("one", 40)
    assert jax.tree.all(jax.tree.map(np.array_equal, start.params["encoder"], end.params["encoder"]))
    assert not any(map(np.array_equal, *(jax.tree.leaves(s.params["decoder"]) for s in (start, end))))
    assert jax.tree.structure(end.opt_state[0].mu) == jax.tree.structure(end.params["decoder"])
    assert history[-5:, 0].mean() < 0.9 * history[:5, 0].mean()
    np.testing.assert_allclose(history[:, 0], history[:, 1] + 10 * history[:, 2], rtol=1e-5)
    np.testing.assert_allclose(scores["loss"], scores["content_loss"] + 10 * scores["style_loss"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["data", "pmap"])
def test_every_placement_gives_the_losses_of_one_device(placement):
    _, _, want, want_scores = trained("one", 40)
    _, _, got, scores = trained(placement)
    np.testing.assert_allclose(got, want[:5], rtol=1e-4)
    np.testing.assert_allclose(list(scores.values()), list(want_scores.values()), rtol=1e-4)


def test_the_official_weighting():
    fns = style_transfer(MODEL, optimizer=adam_hyperbolic(), pretrained=lambda v: v, crop=16, weights=OFFICIAL_WEIGHTS)
    assert fns.summarize({"content_loss": 6.0, "style_loss": 400.0, "examples": 2.0})["loss"] == 3 + 0.01 * 200


def test_the_learning_rate_is_hyperbolic():
    optimizer = adam_hyperbolic(1e-4, 5e-5)
    state = optimizer.init(np.float32(0))
    state = jax.tree.map(lambda x: np.int32(20_000) if x.dtype == np.int32 else x, state)
    update, _ = optimizer.update(np.float32(1), state)
    # at a late step Adam's first moment starts from zero: its ten per cent over the second's root of a thousandth
    np.testing.assert_allclose(update, -1e-4 / 2 * 0.1 / 0.001**0.5, rtol=1e-3)


@pytest.mark.parametrize("numbers", [{"peak": -1.0}, {"peak": float("nan")}, {"decay": -1e-3}, {"warm_up": -1}])
def test_a_rate_that_climbs_away_is_named(numbers):
    with pytest.raises(
        ValueError, match=rf"a rate is above 0, .* {next(iter(numbers))}={next(iter(numbers.values()))}"
    ):
        adam_hyperbolic(**numbers)
