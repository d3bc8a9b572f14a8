"""Nothing is lost: kills, signals, damaged and foreign checkpoints, other topologies."""

import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_run
from tiers import some_slow

from jaxseg import checkpoint, parallel
from jaxseg.fit import Feed, NonFiniteLoss, Run, fit
from jaxseg.runlog import read_records
from jaxseg.train import TrainFns

CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "tiny"


def start(out, *options, **popen):
    command = [sys.executable, str(pathlib.Path(__file__).with_name("tiny_run.py")), str(out), "--cache", str(CACHE)]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*command, *map(str, options)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )


def steps_logged(out):
    return [r["step"] for r in read_records(out / "metrics.jsonl") if "loss" in r]


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def one_device():
    return parallel.over_mesh(parallel.make_mesh(devices=jax.devices()[:1]))


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).view(np.uint8).tobytes(), tree)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    process = start(out)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return out


def test_kill_9_at_any_moment_ends_with_the_same_bits(uninterrupted, tmp_path):
    out = tmp_path / "killed"
    dice = random.Random()
    kills = []
    while len(kills) < 3:  # test_faults.py has a soak of more
        process = start(out, "--pace", 0.15)
        if not kills:  # inside a save: Orbax writes to a folder of another name first
            checkpoints = out / "checkpoints"

            def in_a_save(folder=checkpoints):
                return folder.is_dir() and any("tmp" in p.name for p in folder.iterdir())

            hit = wait_for(in_a_save, process)
        else:
            before = len(steps_logged(out))
            hit = wait_for(lambda n=before: len(steps_logged(out)) > n, process)
            time.sleep(dice.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not hit:
            break  # it came to its end
        kills.append(max(steps_logged(out), default=0))
    process = start(out)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    want, got = (checkpoint.restore_params(run / "checkpoints")[0] for run in (uninterrupted, out))
    assert bits(got) == bits(want), f"killed after steps {kills}"
    assert steps_logged(out) == list(range(1, 13))
    losses = [[r["loss"] for r in read_records(run / "metrics.jsonl") if "loss" in r] for run in (uninterrupted, out)]
    assert losses[0] == losses[1]


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """The folder and the output of a run that SIGTERM ended, and the seconds that it took to end."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    process = start(out, "--pace", 0.2)
    assert wait_for(lambda: len(steps_logged(out)) >= 3, process)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return out, output, time.monotonic() - sent


def test_sigterm_saves_and_exits_0_and_the_same_command_goes_on(uninterrupted, stopped, tmp_path):
    _, output, seconds = stopped
    assert seconds < 20
    assert "saved; the same command goes on" in output
    out = shutil.copytree(stopped[0], tmp_path / "run")
    stopped_at = max(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())
    assert 3 <= stopped_at < 12
    output, _ = start(out).communicate(timeout=120)
    assert f"resuming after step {stopped_at} of 12" in output
    want, got = (checkpoint.restore_params(run / "checkpoints")[0] for run in (uninterrupted, out))
    assert bits(got) == bits(want)


def test_second_ctrl_c_stops_at_once(tmp_path):
    process = start(tmp_path / "run", "--pace", 30)  # the loop sits in the data for half a minute
    assert wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the first Ctrl-C waits for the step"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(uninterrupted, tmp_path, capsys):
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    for damage in (lambda whole: whole[: len(whole) // 2], lambda whole: whole[:-40] + bytes(40)):
        for data in (out / "checkpoints" / "12" / "state").rglob("d/*"):
            data.write_bytes(damage(data.read_bytes()))
        capsys.readouterr()
        result = tiny_run.run(out, placement=one_device())
        said = capsys.readouterr().out
        assert f"checkpoint {out / 'checkpoints' / '12'} is damaged" in said
        assert "resuming after step 10 of 12" in said
        assert result.step == 12
        assert any(p.name.startswith("corrupt-12") for p in (out / "checkpoints").iterdir())


def test_a_flipped_bit_that_orbax_does_not_see_is_found(tmp_path):
    manager = checkpoint.open_checkpoints(tmp_path)
    state = {"w": np.arange(2**14, dtype=np.float32), "b": np.ones(4, np.float32)}
    placement = one_device()
    like = placement.shape_saved(state)
    for step in (1, 2):
        checkpoint.save(manager, step, placement.put_state(state), {})
        manager.wait_until_finished()
    meta = tmp_path / "2" / "meta" / "metadata"
    saved = json.loads(meta.read_text())
    saved["checksums"]["w"] ^= 1  # as if one bit of w were another
    meta.write_text(json.dumps(saved))
    restored = checkpoint.restore(manager, like, {})
    assert restored.step == 1
    assert "w: not the bits" in restored.skipped[0]


def test_checksums_do_not_depend_on_sharding_and_see_a_swap():
    x = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    sharded = parallel.over_mesh(parallel.make_mesh(data=1, fsdp=8)).put_state({"x": x})
    plain = one_device().put_state({"x": x})
    assert len(sharded["x"].addressable_shards[0].data) != len(x) or sharded["x"].sharding.spec
    assert checkpoint.checksums(sharded) == checkpoint.checksums(plain)
    swapped = x.copy()
    swapped[0, 0], swapped[0, 1] = x[0, 1], x[0, 0]
    assert checkpoint.checksums({"x": swapped}) != checkpoint.checksums(plain)


def test_another_config_is_refused_with_the_fields(tmp_path):
    tiny_run.run(tmp_path, steps=2, placement=one_device())
    before = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises(checkpoint.ConfigMismatch, match=r"(?s)learning_rate: checkpoint '\(absent\)', this run 0.5.*"):
        tiny_run.run(tmp_path, steps=2, placement=one_device(), config={"learning_rate": 0.5})
    with pytest.raises(checkpoint.ConfigMismatch, match="batch: checkpoint 8, this run 4"):
        tiny_run.run(tmp_path, steps=2, placement=one_device(), batch=4)
    assert sorted(p for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"w": (2, 3)}, r"b: checkpoint 'float32\[4\]', this run '\(absent\)'"),
        ({"w": (2, 3), "b": (8,)}, r"b: checkpoint 'float32\[4\]', this run 'float32\[8\]'"),
        ({"w": (2, 3), "b": (4,), "ema": (4,)}, r"ema: checkpoint '\(absent\)', this run 'float32\[4\]'"),
    ],
)
def test_a_checkpoint_of_another_state_is_not_called_damaged(names, said, tmp_path):
    placement = one_device()
    manager = checkpoint.open_checkpoints(tmp_path)
    state = {"w": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32), "key": jax.random.key(0)}
    placed = jax.device_put(state, jax.devices()[0])
    checkpoint.save(manager, 1, placed, {})
    manager.wait_until_finished()
    before = sorted(tmp_path.rglob("*"))
    like = {name: np.ones(shape, np.float32) for name, shape in names.items()} | {"key": state["key"]}
    with pytest.raises(checkpoint.ConfigMismatch, match=said):
        checkpoint.restore(manager, placement.shape_saved(like), {})
    assert sorted(tmp_path.rglob("*")) == before, "the run would begin anew"
    assert checkpoint.restore(manager, placement.shape_saved(state), {}).step == 1


@pytest.mark.parametrize("topology", some_slow(["data=8", "fsdp=8", "pmap"], {"fsdp=8", "pmap"}))
def test_a_checkpoint_goes_on_on_other_devices(topology, uninterrupted, stopped, tmp_path):
    out = shutil.copytree(stopped[0], tmp_path / "run")
    placement = {
        "data=8": lambda: parallel.over_mesh(parallel.make_mesh(data=8)),
        "fsdp=8": lambda: parallel.over_mesh(parallel.make_mesh(fsdp=8)),
        "pmap": lambda: parallel.over_pmap(),
    }[topology]()
    tiny_run.run(out, placement=placement)
    want, got = (
        [r["loss"] for r in read_records(run / "metrics.jsonl") if "loss" in r] for run in (uninterrupted, out)
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


class Poisoned(tiny_run.TinySource):
    """A source that stands for a model about to blow up: the loss is NaN wherever picture 7 is in the batch."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return example | {"weight": np.full((16, 16), np.nan if index == 7 else 1, np.float32)}


def test_nan_names_the_step_the_files_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss) as caught:
        tiny_run.run(tmp_path, source=Poisoned(), placement=one_device(), checkpoint_every=1)
    message = str(caught.value)
    bad = max(steps_logged(tmp_path))
    assert f"loss is nan at step {bad}" in message
    assert "tiny/7.png" in message
    assert message.count("tiny/") == 8
    saved = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    if bad > 1:
        assert f"last good checkpoint: {tmp_path / 'checkpoints' / str(bad - 1)}" in message
        assert saved[-1] == bad - 1
    else:
        assert "last good checkpoint: none" in message
        assert not saved


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(tmp_path):
    with pytest.raises(ValueError, match=r"a batch of 6 does not divide over 8 devices .*; use 8"):
        tiny_run.run(tmp_path / "run", batch=6, placement=parallel.over_mesh(parallel.make_mesh(data=8)))
    assert not (tmp_path / "run").exists()


def test_every_step_is_watched(tmp_path):
    seen = []
    fns = TrainFns(
        lambda key, batch: {"steps": jax.numpy.int32(0)},
        lambda state, batch, key: ({"steps": state["steps"] + 1}, {"loss": batch["x"].mean() + state["steps"]}),
        lambda state, batch: state,
        dict,
        seen.append,
    )
    feed = Feed(lambda start: itertools.repeat({"x": np.zeros(8, np.float32)}), lambda step: [])
    fit(fns, feed, None, Run(3, 8, tmp_path), placement=one_device())
    assert seen == [{"loss": float(i)} for i in range(3)]


@pytest.mark.parametrize("name", ["checkpoint_every", "steps"])
def test_a_checkpoint_every_no_step_and_no_step_at_all_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"a run's {name} is at least 1, got 0"):
        tiny_run.run(tmp_path / "run", **{name: 0}, placement=one_device())
    assert not (tmp_path / "run").exists()


def test_the_log_is_whole(uninterrupted):
    records = list(read_records(uninterrupted / "metrics.jsonl"))
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    assert records[-1]["evaluation"]["miou"] > 0
    assert list((uninterrupted / "tensorboard").iterdir())
