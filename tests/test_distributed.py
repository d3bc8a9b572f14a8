"""Two processes, over loopback: the numbers of one device, a notice to one, the loss of one."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_run
from data.official_folders import make_pets
from PIL import Image
from test_fit import one_device, start, steps_logged, uninterrupted, wait_for  # noqa: F401
from tiers import some_slow

from jaxseg import parallel
from jaxseg.runlog import read_records


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def together(out, *options, processes=2, devices=4):
    """Runs the processes to their end; gives their outputs."""
    address = f"127.0.0.1:{free_port()}"
    running = [
        start(out, *options, "--devices", devices, "--distributed", f"{address},{processes},{i}")
        for i in range(processes)
    ]
    outputs = [p.communicate(timeout=300)[0] for p in running]
    assert [p.returncode for p in running] == [0] * processes, "\n".join(outputs)
    return outputs


TOPOLOGIES = {
    "jit": ("--shard", "data=2,fsdp=4"),
    "spatial": ("--shard", "spatial=4,width=2"),
    "pmap": ("--parallel", "pmap"),
}


@pytest.mark.parametrize("name", some_slow(TOPOLOGIES, {"spatial", "pmap"}))
def test_two_processes_train_as_one_device(name, uninterrupted, tmp_path):  # noqa: F811
    outputs = together(tmp_path / "run", "--steps", 6, *TOPOLOGIES[name])
    want = [r["loss"] for r in read_records(uninterrupted / "metrics.jsonl") if "loss" in r][:6]
    got = [r["loss"] for r in read_records(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert steps_logged(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(got, want, atol=1e-5)
    finals = {line for output in outputs for line in output.splitlines() if line.startswith("final")}
    assert len(finals) == 1, "each process has the scores of all"


TWO = """
import pathlib, sys
import jax, jax.numpy as jnp
from jax.experimental.multihost_utils import sync_global_devices
from jaxseg import checkpoint, parallel

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
share = jax.NamedSharding(parallel.make_mesh(data=1, fsdp=8), jax.P("fsdp"))
"""
CHECKSUMS = """
make = jax.jit(lambda: [jnp.full((64, 64), k).at[0].set(1) for k in range(100)], out_shardings=share)
print("says", checkpoint.checksums(make()))
"""
TORN = """
state = jax.jit(lambda: {"params": jax.random.normal(jax.random.key(0), (256, 256))}, out_shardings=share)()
out = pathlib.Path(sys.argv[3])
manager = checkpoint.open_checkpoints(out)
for step in (1, 2):
    checkpoint.save(manager, step, state, {})
    checkpoint.wait(manager)
if jax.process_index() == 1:
    files = (out / "2" / "state" / "ocdbt.process_1").rglob("*")
    with max(files, key=lambda path: path.stat().st_size).open("r+b") as file:
        file.truncate(100)
sync_global_devices("torn")
restored = checkpoint.restore(manager, jax.eval_shape(lambda: state), {})
print("says", restored.step, len(restored.skipped), sorted(path.name for path in out.iterdir()))
"""


def ends_of_two(code, *words):
    """The exit codes and outputs of two processes of Python code; `{}` in a word is the process's number."""
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [
        subprocess.Popen([sys.executable, "-c", code, *(word.format(i) for word in words)], env=environment, **pipes)
        for i in range(2)
    ]
    try:
        outputs = [p.communicate(timeout=60)[0] for p in running]
    finally:
        for p in running:
            p.kill()
    return [p.returncode for p in running], outputs


def what_two_say(script, *words):
    """What each of two processes of four devices prints, the same in both."""
    codes, outputs = ends_of_two(TWO + script, f"127.0.0.1:{free_port()}", "{}", *map(str, words))
    assert codes == [0, 0], "\n".join(outputs)
    first, second = (re.search(r"^says (.*)", output, re.MULTILINE)[1] for output in outputs)
    assert first == second
    return first


def test_checksums_of_many_arrays_in_shares_of_two_processes_end():
    """Where more programs that sum over processes are under way than XLA's CPU client admits, each waits for others."""
    assert what_two_say(CHECKSUMS)


def test_what_one_of_two_processes_cannot_read_both_set_aside(tmp_path):
    assert what_two_say(TORN, tmp_path) == "1 1 ['1', 'corrupt-2']"


BROKEN = """
import dataclasses, sys
import jax
from jax.experimental.multihost_utils import sync_global_devices
from jaxseg.cli.arguments import run_experiment

jax.config.update("jax_cpu_collectives_implementation", "gloo")
def main(config):
    sync_global_devices("both are here")
    if jax.process_index() == 1:
        raise KeyError("what nobody thought of")
    sync_global_devices("both are still here")
run_experiment(main, dataclasses.make_dataclass("Config", []), "")
"""


def test_an_error_in_one_process_ends_both_at_once():
    """Python's own end of it would wait five minutes for the other, which waits in a collective."""
    codes, outputs = ends_of_two(BROKEN, "--distributed", f"127.0.0.1:{free_port()},2,{{}}")
    assert 0 not in codes
    assert "KeyError: 'what nobody thought of'" in outputs[1]


@pytest.mark.slow
def test_an_experiment_on_two_processes_scores_each_picture_once(tmp_path):
    make_pets(tmp_path / "pets")
    with (tmp_path / "pets" / "annotations" / "test.txt").open("a") as listing:  # three: two in one process
        listing.write("Abyssinian_1 1 1 1\nbeagle_2 1 1 1\n")
    trimap = tmp_path / "pets" / "annotations" / "trimaps" / "beagle_2.png"
    Image.fromarray(np.full_like(np.asarray(Image.open(trimap)), 2)).save(trimap)  # no pet: each tells in the scores
    repository = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    address = f"127.0.0.1:{free_port()}"
    words = ["--data", tmp_path / "pets", "--steps", 3, "--batch", 4, "--model", "unet_small", "--size", "64x64"]

    def begin(out, devices, *options):
        command = [sys.executable, repository / "experiments" / "pets.py", *words, "--out", tmp_path / out, *options]
        return subprocess.Popen([*map(str, command)], env=environment | {"JAX_NUM_CPU_DEVICES": str(devices)})

    running = [begin("two", 2, "--distributed", f"{address},2,{i}") for i in range(2)]
    running.append(begin("one", 4))
    assert [p.wait(timeout=200) for p in running] == [0, 0, 0]
    two, one = (json.loads((tmp_path / name / "results.json").read_text())["scores"] for name in ("two", "one"))
    assert two == pytest.approx(one, abs=1e-3)  # rounding may turn a few pixels
    assert (tmp_path / "two" / "predictions.png").exists()


def losses(out):
    return [r["loss"] for r in read_records(out / "metrics.jsonl") if "loss" in r]


def two_in_mid_run(out):
    """Two processes of two devices that have logged three of twelve steps."""
    address = f"127.0.0.1:{free_port()}"
    options = ("--devices", 2, "--pace", 0.2, "--checkpoint-every", 100)
    running = [start(out, *options, "--distributed", f"{address},2,{i}") for i in range(2)]
    log = out / "metrics.jsonl"
    assert wait_for(lambda: log.exists() and len(losses(out)) >= 3, running[0])
    return running


@pytest.mark.slow
def test_a_notice_to_one_process_saves_on_all_and_other_topologies_go_on(uninterrupted, tmp_path):  # noqa: F811
    running = two_in_mid_run(tmp_path / "two")
    running[1].send_signal(signal.SIGTERM)
    outputs = [p.communicate(timeout=60)[0] for p in running]
    assert [p.returncode for p in running] == [0, 0], "\n".join(outputs)
    assert "saved; the same command goes on from there" in outputs[0]
    (saved,) = (int(p.name) for p in (tmp_path / "two" / "checkpoints").iterdir() if p.name.isdigit())
    assert saved == len(losses(tmp_path / "two")) < 12
    for name, placement in (("8", parallel.over_mesh(parallel.make_mesh(data=8))), ("1", one_device())):
        out = shutil.copytree(tmp_path / "two", tmp_path / name)
        tiny_run.run(out, placement=placement)
        np.testing.assert_allclose(losses(out), losses(uninterrupted), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_loss_of_one_process_ends_the_other_with_a_message(victim, tmp_path):
    running = two_in_mid_run(tmp_path / "run")
    running[victim].kill()
    killed = time.monotonic()
    output = running[1 - victim].communicate(timeout=60)[0]
    assert time.monotonic() - killed < 60
    assert running[1 - victim].returncode != 0
    assert "another process is lost" in output or "another task died" in output, output
