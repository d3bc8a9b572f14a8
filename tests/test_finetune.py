"""A frozen backbone keeps every bit of parameters, statistics and average; a slower one takes smaller steps."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg import checkpoint, parallel
from jaxseg.backbones.vgg import VGG
from jaxseg.layers import BatchNorm
from jaxseg.losses import cross_entropy
from jaxseg.models import SegmentationOutput
from jaxseg.train import adamw_cosine, sgd_poly, slower, supervised


class Tiny(nn.Module):
    """Two stages of a VGG with batch norm, a layer on top, and class scores."""

    @nn.compact
    def __call__(self, images, *, train):
        x = VGG((1, 1), (4, 8), norm=BatchNorm, name="encoder")(images, train=train)["stride2"]
        x = nn.relu(BatchNorm(name="bn")(nn.Conv(4, (3, 3), use_bias=False, name="conv")(x), train=train))
        x = nn.Conv(3, (1, 1), name="logits")(x)
        return SegmentationOutput(jax.image.resize(x, (*images.shape[:3], 3), "nearest"), None)


TINY = Tiny()


def batch_of(step):
    rng = np.random.default_rng(step)
    image = rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    return {"image": image, "label": rng.integers(0, 3, (8, 8, 8)).astype(np.int32)}


def updated(fns, steps=2, placement=None):
    placement = placement or parallel.over_mesh(parallel.make_mesh(devices=jax.devices()[:1]))
    start = fns.init(jax.random.key(0), batch_of(0))
    state, update = placement.put_state(start), placement.compile_update(fns.update)
    for step in range(steps):
        state, metrics = update(state, placement.put_batch(batch_of(step)), jax.random.key(1), np.int32(step))
    return jax.device_get(start), jax.device_get(state), metrics


def same(a, b):
    return [np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


@functools.cache
def frozen_run(way):
    optimizer = {"adamw": adamw_cosine(0.1, 10, warmup=0, weight_decay=0.1), "sgd": sgd_poly(0.1, 10)}
    placement = parallel.over_pmap() if way == "pmap" else None
    fns = supervised(
        TINY,
        loss=cross_entropy,
        optimizer=optimizer["sgd" if way == "pmap" else way],
        ema_decay=0.9,
        accumulate=2 if way == "adamw" else 1,
        frozen=("encoder",),
    )
    return updated(fns, placement=placement)


@pytest.mark.parametrize("way", ["adamw", "sgd", "pmap"])
def test_a_frozen_encoder_keeps_every_bit_and_the_rest_moves(way):
    start, state, _ = frozen_run(way)
    for part in ("params", "ema_params"):
        before, after = getattr(start, part), getattr(state, part)
        for name in before:
            alike = same(before[name], after[name])
            assert all(alike) if name == "encoder" else not any(alike), (part, name)
    before, after = start.model_state["batch_stats"], state.model_state["batch_stats"]
    assert all(same(before["encoder"], after["encoder"]))
    assert not any(itertools.chain(*(same(before[n], after[n]) for n in before if n != "encoder")))


def test_the_optimizer_has_no_state_for_what_is_frozen_and_a_checkpoint_holds_it(tmp_path):
    _, state, _ = frozen_run("adamw")
    trained = sum(x.size for n, part in state.params.items() if n != "encoder" for x in jax.tree.leaves(part))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == 2 * trained
    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, 2, jax.tree.map(jnp.asarray, state), {})
        manager.wait_until_finished()
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        restored = checkpoint.restore(manager, like, {})
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert all(same(restored.state, state))


class Standardised(nn.Module):
    """Class scores that are the input, normalised by a batch norm called `encoder`."""

    @nn.compact
    def __call__(self, images, *, train):
        x = BatchNorm(name="encoder")(images, train=train)
        return SegmentationOutput(nn.Conv(3, (1, 1), name="logits")(x), None)


def test_a_frozen_batch_norm_normalises_by_its_running_statistics():
    statistics = {"mean": jnp.array([0.5, 1.0, -1.0]), "var": jnp.array([4.0, 9.0, 0.25])}

    def pretrained(variables):
        return variables | {"batch_stats": {"encoder": statistics}}

    fns = supervised(
        Standardised(), loss=cross_entropy, optimizer=optax.sgd(0.1), pretrained=pretrained, frozen=["encoder"]
    )
    start, _, metrics = updated(fns, steps=1)
    want = fns.evaluate(start, batch_of(0))  # eval mode, before the step
    np.testing.assert_allclose(metrics["loss"], want["loss"] / want["pixels"], rtol=1e-6)


def test_a_slower_encoder_takes_a_tenth_of_the_step():
    plain = supervised(TINY, loss=cross_entropy, optimizer=sgd_poly(0.1, 10, weight_decay=0.1))
    slow = supervised(TINY, loss=cross_entropy, optimizer=slower(sgd_poly(0.1, 10, weight_decay=0.1), 0.1, ["encoder"]))
    (start, fast, _), (_, got, _) = updated(plain, 1), updated(slow, 1)
    for name, before in start.params.items():
        factor = 0.1 if name == "encoder" else 1.0
        want = jax.tree.map(lambda b, f, k=factor: b + k * (f - b), before, fast.params[name])
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), got.params[name], want)


def test_a_submodule_that_is_not_there_is_named():
    with pytest.raises(ValueError, match='no submodule "backbone"; it has bn, conv, encoder, logits'):
        supervised(TINY, loss=cross_entropy, optimizer=optax.sgd(0.1), frozen=["backbone"]).init(
            jax.random.key(0), batch_of(0)
        )
