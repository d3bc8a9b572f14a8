"""Two processes of four devices, over loopback: the numbers of one device."""

import socket

import numpy as np
import pytest
from test_fit import start, steps_logged, uninterrupted  # noqa: F401

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


@pytest.mark.parametrize("options", [("--shard", "data=2,fsdp=4"), ("--parallel", "pmap")], ids=["jit", "pmap"])
def test_two_processes_train_as_one_device(options, uninterrupted, tmp_path):  # noqa: F811
    outputs = together(tmp_path / "run", "--steps", 6, *options)
    want = [r["loss"] for r in read_records(uninterrupted / "metrics.jsonl") if "loss" in r][:6]
    got = [r["loss"] for r in read_records(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert steps_logged(tmp_path / "run") == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(got, want, atol=1e-5)
    finals = {line for output in outputs for line in output.splitlines() if line.startswith("final")}
    assert len(finals) == 1, "each process has the scores of all"
