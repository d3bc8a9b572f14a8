"""A full disk, a folder that cannot be written, a file that vanishes: a message, and a run that goes on."""

import contextlib
import os
import pathlib
import resource
import shutil
import sys
import tempfile

import jax
import numpy as np
import pytest
import tiny_run
from PIL import Image
from test_fit import bits, one_device, start, steps_logged, uninterrupted  # noqa: F401

from jaxseg import aot, checkpoint, parallel
from jaxseg.cli import main
from jaxseg.cli.arguments import one_message
from jaxseg.data import DataError, folder
from jaxseg.data.pipeline import batch_names
from jaxseg.runlog import RunLog, write_whole

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("full_at", [pytest.param(5, marks=pytest.mark.slow), 6])  # between saves, and at one
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(full_at, uninterrupted, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    process = start(out, "--full-at", full_at)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "cannot be written" in output or "no checkpoint could be written" in output
    assert "File too large" in output
    saved = max(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())
    assert saved <= full_at
    process = start(out)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"resuming after step {saved} of 12" in output
    want, got = (checkpoint.restore_params(run / "checkpoints")[0] for run in (uninterrupted, out))
    assert bits(got) == bits(want)
    assert steps_logged(out) == list(range(1, 13))


def test_a_save_that_fails_names_the_newest_whole_one(tmp_path, monkeypatch):
    manager = checkpoint.open_checkpoints(tmp_path / "checkpoints")
    state = one_device().put_state({"w": np.ones(4, np.float32)})
    checkpoint.save(manager, 1, state, {})
    checkpoint.wait(manager)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manager, "save", full)
    with pytest.raises(checkpoint.SaveFailed, match=r"No space left on device\); step 1 is the newest that is whole"):
        checkpoint.save(manager, 2, state, {})

    def full_as_tensorstore_says_it(*_, **__):
        raise ValueError(f'RESOURCE_EXHAUSTED: Error writing "w" at "{"/long" * 100}": No space left on device [28]')

    monkeypatch.setattr(manager, "save", full_as_tensorstore_says_it)
    with pytest.raises(checkpoint.SaveFailed, match=r"RESOURCE_EXHAUSTED.* \.\.\. .*No space left on device") as failed:
        checkpoint.save(manager, 2, state, {})
    assert len(str(failed.value)) < 700


def test_a_command_says_once_that_a_save_failed(monkeypatch, capsys):
    """tensorstore prints a traceback for each array that waits in a save that failed, hundreds of them."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with pytest.raises(SystemExit):
        main(["models", "--help"])
    capsys.readouterr()
    for words in ("Event loop is closed", "another"):
        sys.excepthook(RuntimeError, RuntimeError(words), None)
    assert capsys.readouterr().err == "RuntimeError: another\n"


@contextlib.contextmanager
def room_for(size):
    """No file may grow beyond `size` bytes: the system then says what it says of a full disk, and names none."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_written_whole_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "rows.json"
    write_whole(path, "before")
    with room_for(100), pytest.raises(OSError, match=r"rows\.json cannot be written \(File too large\)"):
        write_whole(path, "after" * 100)
    assert path.read_text() == "before"
    assert [p.name for p in path.parent.iterdir()] == ["rows.json"]


def test_commands_name_what_a_full_disk_left_unwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxseg.cli.compile.aot.lower_apply", lambda *_: aot.Lowered("cpu", 1, {}, 0, 0, {}, 1))
    segments = np.zeros((40, 40), np.int32), np.zeros((0, 40, 40)), "none"
    monkeypatch.setattr("jaxseg.clustering.figure._segment", lambda *_: segments)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    lower = ["compile", "unet_small", "--lower", "cpu", "--apply", "--size", "16x16", "--out"]
    for words, named in (
        ([*lower, tmp_path / "rows.json"], tmp_path / "rows.json"),
        (["cluster", tmp_path / "a.png", "--out", tmp_path / "c"], tmp_path / "c"),
    ):
        with room_for(100), pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert ended.value.code == 2
        assert f"error: {named} cannot be written (File too large)" in capsys.readouterr().err


def test_a_log_that_cannot_be_closed_hides_nothing(tmp_path, capsys):
    log = RunLog(tmp_path, start=0, steps=2, examples_per_step=1)
    with room_for(0):
        with pytest.raises(OSError, match=r"metrics\.jsonl cannot be written \(File too large\)"):
            log.step(1, {"loss": 1.0}, 0.0)
        log.close()  # on the way out of `fit`, by whatever error that is
    assert f"{tmp_path} has no whole log (File too large)" in capsys.readouterr().err


def test_one_process_of_several_that_cannot_go_on_waits_for_none(monkeypatch, capsys):
    """The others stand in a collective that it will never join: they fall when it is gone, and not before."""
    left = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", left.append)
    with pytest.raises(SystemExit):
        main(["cluster", "nowhere.png"])
    with pytest.raises(SystemExit), one_message():
        raise DataError("a.png is gone")
    assert left == [2, 2]
    assert "error: a.png is gone" in capsys.readouterr().err


@pytest.fixture
def somebody():
    """The rights of another user: the superuser may write anywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.fixture
def locked():
    """A folder that anybody may look into, and nobody write."""
    with tempfile.TemporaryDirectory() as name:
        pathlib.Path(name).chmod(0o555)
        yield pathlib.Path(name)


@pytest.mark.parametrize("below", ["", "new/run"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_read(below, locked, somebody, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "unet_small", "--data", "nowhere", "--out", str(locked / below)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"error: {locked / below}: {locked} cannot be written to; mend that, or choose another output" in said
    assert not list(locked.iterdir())


def test_a_folder_below_a_file_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
        tiny_run.run(tmp_path / "file" / "run", placement=one_device())


def photographs(root, n=24):
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True)
    for i in range(n):
        label = rng.integers(0, 3, (16, 16), np.uint8)
        Image.fromarray(label).save(root / "train" / "labels" / f"{i}.png")
        Image.fromarray(label[..., None].repeat(3, -1) * 80).save(root / "train" / "images" / f"{i}.png")
    (root / "classes.txt").write_text("a\nb\nc\n")
    return folder(root, "train")


def test_a_file_that_vanishes_in_mid_epoch_is_named_and_the_run_goes_on(tmp_path):
    source = photographs(tmp_path / "data")
    options = {"source": source, "batch": 2, "steps": 10, "checkpoint_every": 100, "placement": one_device()}
    tiny_run.run(tmp_path / "whole", **options)
    victim = pathlib.Path(batch_names(source, 0, 7, 2)[0])
    victim = victim if victim.is_absolute() else next((tmp_path / "data").rglob(victim.name))
    aside = tmp_path / victim.name

    def vanish(step):
        if step == 0:
            shutil.move(victim, aside)

    with pytest.raises(DataError) as caught:
        tiny_run.run(tmp_path / "run", at_step=vanish, **options)
    assert victim.name in str(caught.value)
    assert "step 7 of 10 is saved. Mend them, and the same command goes on" in str(caught.value)
    shutil.move(aside, victim)
    tiny_run.run(tmp_path / "run", **options)
    want, got = (checkpoint.restore_params(tmp_path / name / "checkpoints")[0] for name in ("whole", "run"))
    assert bits(got) == bits(want)
    assert steps_logged(tmp_path / "run") == list(range(1, 11))


def test_a_file_to_evaluate_on_that_vanishes_is_named_after_a_save(tmp_path):
    class Vanished(tiny_run.TinySource):
        def __getitem__(self, index):
            if index == 17:
                raise DataError(f"{self.name(index)}: is gone")
            return super().__getitem__(index)

    options = {"batch": 2, "steps": 4, "evaluate_every": 2, "checkpoint_every": 100, "placement": one_device()}
    with pytest.raises(DataError, match=r"step 2 of 4 is saved.*\n.*tiny/17\.png: is gone"):
        tiny_run.run(tmp_path / "run", held_out=Vanished(), **options)
    assert tiny_run.run(tmp_path / "run", **options).step == 4
    assert steps_logged(tmp_path / "run") == [1, 2, 3, 4]


class Compilations:
    """How many programs were compiled or read from the cache."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self.add)

    def add(self, name, *_, **__):
        self.count += name == "/jax/core/compile/backend_compile_duration"


def test_nothing_is_compiled_after_the_first_steps(tmp_path):
    compilations, at = Compilations(), {}
    options = {"checkpoint_every": 2, "evaluate_every": 3, "placement": one_device()}
    tiny_run.run(tmp_path, at_step=lambda step: at.setdefault(step, compilations.count), **options)
    assert at[6] > at[0], "the step, the evaluation and the checksums"
    assert compilations.count == at[6]


def test_a_save_compiles_one_program_for_each_shape(tmp_path):
    """Orbax by itself cuts each replicated array into a slice a device: eight programs a shape at the first save."""
    rng = np.random.default_rng(0)
    tree = {name: rng.normal(size=shape).astype("f") for name, shape in (("a", (8, 16)), ("b", (8, 16)), ("c", (24,)))}
    state = parallel.over_mesh(parallel.make_mesh(data=8)).put_state(tree)
    with checkpoint.open_checkpoints(tmp_path) as manager:
        compilations = Compilations()
        checkpoint.save(manager, 1, state, {})
        checkpoint.wait(manager)
    assert compilations.count == 2


def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_is_flat_over_thousands_of_steps(tmp_path):
    at = {}
    tiny_run.run(
        tmp_path,
        steps=5000,
        batch=4,
        checkpoint_every=1000,
        placement=one_device(),
        at_step=lambda step: at.setdefault(step, resident()) if step % 500 == 0 else None,
    )
    grown = at[4500] - at[1500]  # the allocator has settled, and a checkpoint has been written
    assert grown < 8e6, {step: f"{size / 1e6:.1f} MB" for step, size in at.items()}  # 3000 steps: 2.7 kB each


@pytest.mark.slow
def test_a_soak_of_random_kills_ends_in_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sys.path.append(str(ROOT / "experiments"))
    from soak import Config, soak

    tiny = str(ROOT / "tests" / "tiny_run.py")
    cache = str(ROOT / ".cache" / "tiny")

    def command(out):
        return [sys.executable, tiny, str(out), "--cache", cache, "--steps", "150", "--pace", "0.1"]

    result = soak(command, Config(out=tmp_path, minutes=1.0, longest=10.0))  # 15 s of steps outlast two lives
    assert len(result["ends"]) >= 3
    assert result["steps"] == 150
    assert not result["differences"]
