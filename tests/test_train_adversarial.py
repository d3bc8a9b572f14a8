"""Adversarial training: devices do not matter, a stage is one program, a fade resumes, conditioning and penalties."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import fill
from PIL import Image

from jaxseg import parallel
from jaxseg.cli.convert import Convert, convert_command
from jaxseg.cli.trained import load_trained
from jaxseg.data import pictures
from jaxseg.fit import Run
from jaxseg.grow import Stage, adam, grow, load_generator, schedule
from jaxseg.models import create_model
from jaxseg.runs import load_run
from jaxseg.train_adversarial import PROGAN_LOSS, STYLEGAN_LOSS, AdversarialLoss, adversarial, grown
from jaxseg.weights import load_model
from jaxseg.weights.genforce import blank_variables

NARROW = {"resolution": 8, "base_features": 16, "max_features": 4}


def networks(kind, classes=0, dtype=jnp.float32):
    fields = {"latent_features": 6} | ({"w_features": 5, "mapping_layers": 2} if kind == "stylegan" else {})
    return (
        create_model(f"{kind}_generator", num_classes=classes, dtype=dtype, **NARROW, **fields),
        create_model(f"{kind}_discriminator", num_classes=classes, dtype=dtype, **NARROW),
    )


def functions(kind="stylegan", classes=0, stage=0, start=None, fade_images=0, dtype=jnp.float32, **changed):
    loss = {"stylegan": STYLEGAN_LOSS, "progan": PROGAN_LOSS}[kind]
    return adversarial(
        *networks(kind, classes, dtype),
        loss=dataclasses.replace(loss, **changed),
        optimizers=(adam(0.002), adam(0.002)),
        stage=stage,
        fade_images=fade_images,
        start=start,
    )


def batch_of(step, n=8, size=4):
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        "class": rng.integers(0, 3, n).astype(np.int32),
    }


KEY = jax.random.key(0)


@functools.cache
def start():
    return functions().init(KEY, batch_of(0))


@functools.cache
def trained(placement_name, steps=4):
    devices = jax.devices()
    placement = {
        "one": lambda: parallel.over_mesh(parallel.make_mesh(devices=devices[:1])),
        "data": lambda: parallel.over_mesh(parallel.make_mesh(data=8)),
        "pmap": lambda: parallel.over_pmap(),
    }[placement_name]()
    fns = functions()
    state = placement.put_state(start())
    traces = []
    update = placement.compile_update(lambda *args: (traces.append(1), fns.update(*args))[1])
    history = []
    for step in range(steps):
        state, metrics = update(state, placement.put_batch(batch_of(step)), KEY, np.int32(step))
        history.append({k: float(v) for k, v in metrics.items()})
    assert len(traces) == 1
    return jax.device_get(state), history


@pytest.mark.parametrize("placement", ["data", pytest.param("pmap", marks=pytest.mark.slow)])
def test_every_placement_gives_the_numbers_of_one_device(placement):
    """Scores, R1 through the minibatch's deviations, styles mixed by image, and w's average."""
    want_state, want = trained("one")
    state, got = trained(placement)
    for ours, theirs in zip(got, want, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)
    ours, theirs = (s.model_state["generator"]["w_average"]["mean"] for s in (state, want_state))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_a_conditional_progan_in_its_fade_has_the_numbers_of_one_device_on_eight():
    """Labels, the penalty between reals and images, minibatch deviations and the fade, all by example."""
    start = grown(functions("progan", 3).init(KEY, batch_of(0)))
    fns = functions("progan", 3, stage=1, start=start, fade_images=32)
    ends = []
    for mesh in (parallel.make_mesh(devices=jax.devices()[:1]), parallel.make_mesh(data=8)):
        placement = parallel.over_mesh(mesh)
        state = placement.put_state(fns.init(KEY, batch_of(0, size=8)))
        update = placement.compile_update(fns.update)
        for step in range(2):
            state, metrics = update(state, placement.put_batch(batch_of(step, size=8)), KEY, np.int32(step))
        ends.append({k: float(v) for k, v in metrics.items()})
    assert ends[0]["fade"] == 0.25
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stylegan", "progan"])
def test_bfloat16_trains_float32_parameters(kind):
    """Losses and penalties of a step are float32's to 5 %, of the largest; and three steps are finite."""
    fns, exact = functions(kind, dtype=jnp.bfloat16), functions(kind)
    state = first = fns.init(KEY, batch_of(0))
    update = jax.jit(fns.update)
    for step in range(3):
        state, metrics = update(state, batch_of(step), jax.random.fold_in(KEY, step))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    (_, ours), (_, theirs) = (
        f(first, batch_of(0), jax.random.fold_in(KEY, 0)) for f in (update, jax.jit(exact.update))
    )
    scale = max(1.0, max(abs(float(x)) for x in theirs.values()))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=0.05 * scale, err_msg=name)


def test_a_step_moves_both_networks_the_average_and_w():
    end, history = trained("one")
    assert all(h["penalty"] > 0 for h in history)
    assert jax.tree.structure(start()) == jax.tree.structure(end)
    for name in ("generator", "discriminator"):
        pairs = zip(jax.tree.leaves(start().params[name]), jax.tree.leaves(end.params[name]), strict=True)
        assert not all(np.array_equal(a, b) for a, b in pairs)
    assert np.abs(end.model_state["generator"]["w_average"]["mean"]).max() > 0
    # what the next resolution will use is there, untouched
    for name, path in (("generator", ("synthesis", "conv_8_1")), ("discriminator", ("conv_8_1",))):
        a, b = (functools.reduce(lambda t, k: t[k], path, s.params[name])["kernel"] for s in (start(), end))
        np.testing.assert_array_equal(a, b)
    kernels = [t["synthesis"]["conv_4_1"]["kernel"] for t in (end.params["generator"], end.ema_params["generator"])]
    first = start().params["generator"]["synthesis"]["conv_4_1"]["kernel"]
    moved, averaged = (np.abs(k - first).max() for k in kernels)
    assert 0 < averaged < 0.1 * moved


def test_a_lazy_penalty_comes_every_other_step_twice_as_large():
    update = jax.jit(functions(penalty_every=2).update)
    state, first = update(start(), batch_of(0), jax.random.fold_in(KEY, 0))
    _, second = update(state, batch_of(0), jax.random.fold_in(KEY, 1))
    np.testing.assert_allclose(first["penalty"], 2 * trained("one")[1][0]["penalty"], rtol=1e-4)
    assert second["penalty"] == 0


def test_schedules():
    stages = schedule(8, 64, total_kimg=25_000.0)
    assert [s.resolution for s in stages] == [8, 16, 32, 64]
    assert [s.batch for s in stages] == [256, 128, 64, 32]
    assert [s.fade_images for s in stages] == [0, 600_000, 600_000, 600_000]
    shown = [s.steps * s.batch for s in stages]
    assert shown[0] >= 600_000
    assert shown[1] >= 1_200_000
    assert 25_000_000 <= sum(shown) < 25_000_100
    assert [s.learning_rate for s in schedule(64, 256)] == [0.001, 0.0015, 0.002]
    for start, end in ((6, 16), (16, 8), (4, 4), (4, 48)):
        with pytest.raises(ValueError, match="powers of two"):
            schedule(start, end)
    for numbers in ({"fade_kimg": -1.0}, {"train_kimg": float("nan")}, {"least_batch": -3}, {"batches": {8: 0}}):
        with pytest.raises(ValueError, match=r"thousands of images, got|a batch is at least 1 image, got"):
            schedule(8, 16, **numbers)
    for endless in ({"total_kimg": float("inf")}, {"train_kimg": float("inf")}, {"total_kimg": float("nan")}):
        with pytest.raises(ValueError, match="a run has an end: fade_kimg, train_kimg and total_kimg are finite"):
            schedule(8, 16, **endless)
    with pytest.raises(ValueError, match=r"total_kimg is thousands of images, or None, got -1"):
        schedule(8, 16, total_kimg=-1.0)
    for rates in ({"base_rate": -1.0}, {"base_rate": 0.0}, {"base_rate": float("nan")}, {"rates": {64: -0.5}}):
        with pytest.raises(ValueError, match="learning rates are above 0, got"):
            schedule(8, 16, **rates)
    with pytest.raises(ValueError, match=r"8x8 would see no image: train_kimg is 0"):
        schedule(8, 16, train_kimg=0.0)


@pytest.mark.parametrize(
    "numbers", [{"penalty_every": 0}, {"ema_half_life": 0.0}, {"penalty": -1.0}, {"drift": float("nan")}]
)
def test_numbers_that_no_loss_has_are_named(numbers):
    with pytest.raises(ValueError, match=rf"{next(iter(numbers))} is .*, got {next(iter(numbers.values()))}"):
        dataclasses.replace(STYLEGAN_LOSS, **numbers)


def test_a_loss_of_no_kind_is_no_wasserstein():
    unchecked = object.__new__(AdversarialLoss)  # past the tests' own check of types
    object.__setattr__(unchecked, "kind", "hinge")
    with pytest.raises(ValueError, match=r'of the kind "r1" or "wgan-gp", got "hinge"'):
        unchecked.__post_init__()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return root


def grow_tiny(faces, out):
    seen = []
    result = grow(
        (Stage(0, 8, 0, 2, 0.002), Stage(1, 8, 24, 4, 0.002)),
        lambda stage, state: functions("progan", 0, stage.stage, fade_images=stage.fade_images, start=state),
        lambda size: pictures(faces, size),
        Run(0, out=out, checkpoint_every=1, keep=4),
        config={"model": "progan_generator"},
        after=lambda stage, state: seen.append(stage.resolution),
        placement=parallel.over_mesh(parallel.make_mesh(devices=jax.devices()[:1])),
    )
    return result, seen


def test_growth_resumes_in_the_middle_of_a_fade(faces, tmp_path):
    whole, seen = grow_tiny(faces, tmp_path / "whole")
    assert seen == [4, 8]
    assert whole.state.step == 4
    # as a kill after step 2 of the second stage leaves it: a checkpoint of the middle of the fade is the newest
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "cut" / "8" / "checkpoints" / str(step))
    assert load_generator(tmp_path / "cut")[1]["stage"] == 0  # the one that is whole, and not a share of the next
    again, _ = grow_tiny(faces, tmp_path / "cut")
    assert jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(whole.state), jax.device_get(again.state)))
    variables, config = load_generator(tmp_path / "whole")
    assert config["stage"] == 1
    generator, _ = networks("progan")
    assert generator.apply(variables, jnp.zeros((1, 6)), stage=1, train=False).shape == (1, 8, 8, 3)
    (tmp_path / "whole" / "16" / "checkpoints").mkdir(parents=True)  # a resolution that has only begun
    assert load_generator(tmp_path / "whole")[1]["stage"] == 1
    with pytest.raises(FileNotFoundError, match="holds no run that grew"):
        load_generator(tmp_path)
    for read in (
        load_run,
        lambda run: load_trained(str(run), None, None, None),
        lambda run: convert_command(Convert("progan_generator", run, tmp_path / "out")),
    ):
        with pytest.raises(FileNotFoundError, match=r"whole is of a generator that grew: jaxseg\.grow\.load_generator"):
            read(tmp_path / "whole")


@pytest.mark.parametrize(("kind", "classes"), [("stylegan", 3), ("progan", 0)])
def test_a_run_that_grew_converts_to_the_generator_it_has_grown_to(kind, classes, tmp_path, monkeypatch, capsys):
    """At 8x8 of 16: its images are those of the whole generator at that stage."""
    name, run = f"{kind}_generator", tmp_path / "run"
    (run / "8" / "checkpoints").mkdir(parents=True)
    fields = {"latent_features": 6} | ({"w_features": 5, "mapping_layers": 2} if kind == "stylegan" else {})
    told = {"model": name, "num_classes": classes, **NARROW, "resolution": 16, "fields": fields, "stage": 1}
    whole = create_model(name, classes, **NARROW | {"resolution": 16}, **fields)
    given = jax.random.normal(KEY, (2, 6)), *([jnp.array([0, 2])] if classes else [])
    variables = fill(blank_variables(whole))
    monkeypatch.setattr("jaxseg.grow.load_generator", lambda run: (variables, told))
    assert convert_command(Convert(name, run, tmp_path / "out")) == 0
    assert f"wrote the weights of {run}, a {name}" in capsys.readouterr().out
    found, loaded = load_model(tmp_path / "out")
    want = jax.jit(functools.partial(whole.apply, stage=1, train=False))(variables, *given)
    np.testing.assert_array_equal(jax.jit(functools.partial(found.apply, train=False))(loaded, *given), want)
    trained = load_trained(str(run), None, None, None)
    assert trained.model == found
    assert trained.size == (8, 8)
    with pytest.raises(ValueError, match=f"run holds {name}, not unet; name that model"):
        convert_command(Convert("unet", run, tmp_path / "other"))
    for change, said in (
        ({"stage": 0}, "run has grown to 4x4, and a model begins at 8x8"),
        ({"max_features": 2}, r"not the variables of this \w+: \d+ differ"),
    ):
        monkeypatch.setattr("jaxseg.grow.load_generator", lambda run, change=change: (variables, told | change))
        with pytest.raises(ValueError, match=said):
            load_trained(str(run), None, None, None)


def test_the_next_stage_starts_from_the_networks_and_fresh_moments():
    """A conditional ProGAN in the middle of its fade, which follows the images shown."""
    first = functions("progan", 3).init(KEY, batch_of(0))
    fns = functions("progan", 3, stage=1, start=grown(first), fade_images=32)
    state = fns.init(jax.random.key(7), batch_of(0, size=8))
    assert state.step == 0
    assert jax.tree.all(jax.tree.map(np.array_equal, state.params, first.params))
    assert all(not np.any(x) for x in jax.tree.leaves(state.opt_state))
    update = jax.jit(fns.update)
    fades = []
    for step in range(6):
        state, metrics = update(state, batch_of(step, size=8), jax.random.fold_in(KEY, step))
        fades.append(float(metrics["fade"]))
        assert all(np.isfinite(x) for x in metrics.values())
    assert update._cache_size() == 1  # the fade, and what comes after it
    np.testing.assert_allclose(fades, [0, 0.25, 0.5, 0.75, 1, 1])


def test_growth_without_stages_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no stages; jaxseg\.grow\.schedule makes them"):
        grow((), lambda *_: None, lambda size: None, Run(0, out=tmp_path), config={})


def test_networks_and_stages_that_do_not_meet_are_named_before_hours_of_training():
    generator, discriminator = networks("progan")
    make = functools.partial(adversarial, loss=PROGAN_LOSS, optimizers=(adam(0.001), adam(0.001)))
    with pytest.raises(
        ValueError, match=rf"grow to {2 * discriminator.resolution} and {discriminator.resolution} pixels"
    ):
        make(generator.clone(resolution=2 * discriminator.resolution), discriminator, stage=1)
    for stage in (-1, 9):
        with pytest.raises(ValueError, match=rf"stage {stage} is none of networks that grow from 4 to"):
            make(generator, discriminator, stage=stage)


def test_conditional_networks_ask_for_labels_by_name():
    fns = functions("progan", 3)
    batch = batch_of(0)
    del batch["class"]
    state = jax.eval_shape(fns.init, KEY, batch_of(0))
    with pytest.raises(ValueError, match=r"batches with `class`.*got \['image'\].*num_classes=0"):
        jax.eval_shape(fns.update, state, batch, KEY)
    (generator, _), (_, discriminator) = networks("progan"), networks("progan", 3)
    with pytest.raises(ValueError, match="know 0 and 3 classes"):
        adversarial(generator, discriminator, loss=PROGAN_LOSS, optimizers=(adam(0.1), adam(0.1)), stage=0)
    generator = networks("progan", 3)[0]
    with pytest.raises(ValueError, match="classes 0 to 2, got labels -1 to 9"):
        generator.init(KEY, jnp.zeros((2, 6)), jnp.array([9, -1]), train=False)


def test_batches_of_another_kind_are_named():
    fns = functions("progan", 3)
    state = jax.eval_shape(fns.init, KEY, batch_of(0))
    for name, array, said in (
        ("image", np.zeros((8, 4, 4, 3), np.float32), "images are bytes, 0 to 255, got float32; .* 255"),
        ("class", np.full(8, 1.5, np.float32), r"`class` is int \[n\], got float32 \(8,\)"),
        ("class", np.eye(8, 3, dtype=np.int32), r"`class` is int \[n\], got int32 \(8, 3\)"),
    ):
        with pytest.raises(ValueError, match=said):
            jax.eval_shape(fns.update, state, batch_of(0) | {name: array}, KEY)
    with pytest.raises(ValueError, match="fade_images is a number of images, 0 for none, got -1"):
        functions(stage=1, fade_images=-1)


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_labels_out_of_range_are_no_number_where_they_are_not_known(label):
    """Else all scores were zero, which no loss tells from a draw."""
    for model in networks("stylegan", 3):
        shapes = model.inputs(jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32))
        given, known = jnp.ones(shapes[0].shape), jnp.array([0, 2])
        variables = model.init(KEY, given, known, train=False)
        run = jax.jit(functools.partial(model.apply, train=False))
        found = jax.tree.leaves(run(variables, given, known.at[1].set(label)))[0]
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1]).all()


def test_what_fills_a_last_batch_is_not_scored():
    fns = functions()
    batch = batch_of(0) | {"index": np.array([0, 1, 2, 3, 4, -1, -1, -1], np.int32)}
    sums = jax.jit(fns.evaluate)(start(), batch)
    assert float(sums["examples"]) == 5
