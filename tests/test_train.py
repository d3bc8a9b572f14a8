"""One update on one device, eight, FSDP and pmap: the same numbers; and what an update is made of."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiers import some_slow

from jaxseg import parallel
from jaxseg.losses import cross_entropy, dice_loss
from jaxseg.models import create_model
from jaxseg.train import adamw_cosine, sgd_poly, supervised


def batch_of(step, n=8, size=16, k=3):
    rng = np.random.default_rng(step)
    label = rng.integers(0, k, (n, size, size)).astype(np.int32)
    label[: n // 2, : size // 2] = 255  # the first shards hold fewer valid pixels
    image = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return {"image": image, "label": label, "index": np.arange(n, dtype=np.int32)}


def brightness(key, example):
    """An augmentation that depends on the key of its example only."""
    return example | {"image": example["image"] * jax.random.uniform(key, minval=0.5, maxval=1.5)}


def small(step):
    """Few activations: one within rounding of zero falls on either side of its ReLU, and 1e-7 becomes 1e-4."""
    return batch_of(step, size=8)


@functools.cache
def losses_over(placement_name, steps=5):
    devices = jax.devices()
    placement = {
        "one": lambda: parallel.over_mesh(parallel.make_mesh(devices=devices[:1])),
        "data": lambda: parallel.over_mesh(parallel.make_mesh(data=8)),
        "fsdp": lambda: parallel.over_mesh(parallel.make_mesh(data=2, fsdp=4)),
        "width": lambda: parallel.over_mesh(parallel.make_mesh(data=2, spatial=2, width=2)),
        "pmap": lambda: parallel.over_pmap(),
    }[placement_name]()
    model = create_model("unet", 3, features=(4, 8, 512), dropout=0.5)
    fns = supervised(
        model,
        loss=cross_entropy,
        optimizer=sgd_poly(0.1, 10),
        augment=(brightness,),
        ema_decay=0.9,
    )
    key = jax.random.key(0)
    state = placement.put_state(fns.init(key, small(0)))
    traces = []
    update = placement.compile_update(lambda *args: (traces.append(1), fns.update(*args))[1])
    history = []
    for step in range(steps):
        state, metrics = update(state, placement.put_batch(small(step)), key, np.int32(step))
        history.append([float(metrics[k]) for k in ("loss", "grad_norm", "miou")])
    assert len(traces) == 1, "the step was compiled more than once"
    sums = placement.compile_evaluate(fns.evaluate)(state, placement.put_batch(small(99)))
    return np.array(history), jax.device_get(state), jax.device_get(sums)


@pytest.mark.parametrize("placement", some_slow(["data", "fsdp", "width", "pmap"], {"fsdp", "width"}))
def test_every_placement_gives_the_losses_of_one_device(placement):
    want, want_state, want_sums = losses_over("one")
    got, state, sums = losses_over(placement)
    np.testing.assert_allclose(got[:, 0], want[:, 0], atol=1e-5)
    np.testing.assert_allclose(got[:, 1], want[:, 1], rtol=1e-3)
    assert want[0, 0] != want[-1, 0]
    for path, x in jax.tree_util.tree_leaves_with_path(want_state.model_state):
        y = functools.reduce(lambda tree, p: tree[p.key], path, state.model_state)
        np.testing.assert_allclose(y, x, atol=1e-4, err_msg=str(path))
    assert sums["confusion"].sum() == want_sums["confusion"].sum()
    np.testing.assert_allclose(sums["loss"], want_sums["loss"], rtol=1e-3)


SHARED_TWICE = {  # size, batch, mesh: left to XLA (jax 0.10.2), the norm of the gradients is
    "parameters": (64, 2, {"fsdp": 2, "spatial": 2}),  # 5.3 times what it is
    "few rows": (32, 2, {"data": 2, "spatial": 4}),  # 2.9 times
    "width": (32, 4, {"data": 2, "spatial": 2, "width": 2}),  # right
    "all": (64, 4, {"data": 2, "fsdp": 2, "spatial": 2}),  # 10 times
}


@pytest.mark.parametrize("case", some_slow(list(SHARED_TWICE), {"width", "all"}))
def test_images_in_shares_beside_a_batch_or_parameters_in_shares_have_the_gradients_of_one_device(case):
    size, n, axes = SHARED_TWICE[case]
    model = create_model("unet", 3, features=(16, 32, 64, 128, 256))
    fns = supervised(model, loss=cross_entropy, optimizer=sgd_poly(0.1, 10))
    batch, key = batch_of(0, n=n, size=size), jax.random.key(0)
    state = jax.device_get(fns.init(key, batch))
    norms = []
    for shares in ({}, axes):
        shares = {"data": 1} | shares
        mesh = parallel.make_mesh(**shares, devices=jax.devices()[: math.prod(shares.values())])
        placement = parallel.over_mesh(mesh)
        update = placement.compile_update(fns.update)
        new, metrics = update(placement.put_state(state), placement.put_batch(batch), key, np.int32(0))
        norms.append(float(metrics["grad_norm"]))
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-3)
    kernel = new.params["down5"]["conv2"]["kernel"]
    held = kernel.addressable_shards[0].data.size
    assert held == kernel.size // axes.get("fsdp", 1), "held in shares between steps"


def test_fsdp_shards_parameters_and_optimizer_state():
    placement = parallel.over_mesh(parallel.make_mesh(data=2, fsdp=4))
    state = placement.put_state({"kernel": np.zeros((3, 3, 64, 128), np.float32), "bias": np.zeros(8, np.float32)})
    assert state["kernel"].addressable_shards[0].data.shape == (3, 3, 64, 32)
    assert state["bias"].addressable_shards[0].data.shape == (8,)


class Linear(nn.Module):
    """A pixel-wise linear classifier: no norm, so accumulation must not change a bit of the mathematics."""

    classes: int = 3

    @nn.compact
    def __call__(self, images, *, train):
        from jaxseg.models import SegmentationOutput

        return SegmentationOutput(nn.Conv(self.classes, (3, 3))(images), None)


@pytest.mark.parametrize("loss", [cross_entropy, dice_loss])
def test_accumulation_is_the_whole_batch(loss):
    results = []
    for accumulate in (1, 4):
        fns = supervised(Linear(), loss=loss, optimizer=optax.sgd(0.1), accumulate=accumulate)
        state = fns.init(jax.random.key(0), batch_of(0))
        state, metrics = jax.jit(fns.update)(state, batch_of(0), jax.random.key(1))
        results.append((state.params, metrics))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), *results)


def test_accumulation_that_does_not_divide_is_refused():
    fns = supervised(Linear(), loss=cross_entropy, optimizer=optax.sgd(0.1), accumulate=3)
    state = fns.init(jax.random.key(0), batch_of(0))
    with pytest.raises(ValueError, match="accumulate=3"):
        fns.update(state, batch_of(0), jax.random.key(1))


def test_evaluation_at_the_labels_own_resolution():
    fns = supervised(Linear(), loss=cross_entropy, optimizer=optax.sgd(0.1))
    state = fns.init(jax.random.key(0), batch_of(0))
    fine = batch_of(0) | {"label": np.ones((8, 32, 32), np.int32)}
    assert fns.evaluate(state, fine)["confusion"].sum() == 8 * 32 * 32


def test_a_binary_model_is_scored_on_both_its_classes():
    """Of one logit, as SMP's `classes=1`: label 1 where it is above zero."""

    def loss(logits, labels):
        seen = labels < 255
        return (optax.sigmoid_binary_cross_entropy(logits[..., 0], labels == 1) * seen).sum() / seen.sum()

    fns = supervised(Linear(1), loss=loss, optimizer=optax.sgd(1.0))
    batch = batch_of(0, k=2)
    batch["image"] = np.repeat(255 * (batch["label"] == 1)[..., None], 3, -1).astype(np.uint8)
    state, update = fns.init(jax.random.key(0), batch), jax.jit(fns.update)
    for _ in range(30):
        state, metrics = update(state, batch, jax.random.key(1))
    sums = jax.device_get(fns.evaluate(state, batch))
    assert sums["confusion"].sum() == np.sum(batch["label"] < 255)
    assert fns.summarize(sums)["miou"] > 0.95
    assert metrics["miou"] > 0.9


def test_weight_decay_spares_biases_and_norms():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    for optimizer in (sgd_poly(0.1, 10, weight_decay=0.1), adamw_cosine(0.1, 10, warmup=0, weight_decay=0.1)):
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        assert np.all(updates["kernel"] < 0)
        assert not np.any(updates["bias"])


def test_poly_and_cosine_schedules_are_their_formulas():
    params = {"w": jnp.zeros((2, 2))}
    grads = {"w": jnp.ones((2, 2))}
    sgd = sgd_poly(0.1, 10, momentum=0.0, weight_decay=0.0, clip=1.0)  # the norm of the gradient is 2
    state = sgd.init(params)
    for step in range(10):
        updates, state = sgd.update(grads, state, params)
        np.testing.assert_allclose(updates["w"], -0.1 * (1 - step / 10) ** 0.9 / 2, rtol=1e-5)
    adamw = adamw_cosine(0.1, 20, warmup=4, weight_decay=0.0)
    state = adamw.init(params)
    for step in range(20):
        updates, state = adamw.update(grads, state, params)  # Adam of a constant gradient steps by the rate
        rate = 0.1 * step / 4 if step < 4 else 0.05 * (1 + np.cos(np.pi * (step - 4) / 16))
        np.testing.assert_allclose(updates["w"], -rate, atol=1e-6)
    once = adamw_cosine(0.1, 1, weight_decay=0.0)  # a run of one step warms up in none
    updates, _ = once.update(grads, once.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1, atol=1e-6)


def updated(optimizer=None, steps=2, **options):
    fields = {k: options.pop(k) for k in ("dtype", "remat") if k in options}
    model = create_model("unet", 3, features=(4, 8), dropout=0.5, **fields)
    fns = supervised(model, loss=cross_entropy, optimizer=optimizer or optax.sgd(0.1), **options)
    states, metrics = [fns.init(jax.random.key(0), batch_of(0))], None
    for step in range(steps):
        state, metrics = jax.jit(fns.update)(states[-1], batch_of(step), jax.random.key(step))
        states.append(state)
    return states, metrics


def test_the_average_follows_the_parameters():
    states, _ = updated(ema_decay=0.9)
    for before, after in itertools.pairwise(states):
        want = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, before.ema_params, after.params)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.ema_params, want)


def test_rematerialisation_changes_memory_and_not_numbers():
    plain, remat = updated()[1], updated(remat=True)[1]
    for name in plain:
        np.testing.assert_allclose(remat[name], plain[name], rtol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    states, metrics = updated(dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves((states[-1].params, states[-1].model_state))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(metrics["loss"], updated()[1]["loss"], rtol=0.05)
    assert metrics["loss"] != updated()[1]["loss"]


def test_batch_weights_reach_the_loss():
    fns = supervised(Linear(), loss=cross_entropy, optimizer=optax.sgd(0.1))
    state = fns.init(jax.random.key(0), batch_of(0))
    plain = fns.update(state, batch_of(0), jax.random.key(1))[1]["loss"]
    doubled = batch_of(0) | {"weight": np.full((8, 16, 16), 2, np.float32)}
    np.testing.assert_allclose(fns.update(state, doubled, jax.random.key(1))[1]["loss"], 2 * plain, rtol=1e-6)
