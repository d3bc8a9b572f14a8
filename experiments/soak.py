"""Training under random kills and restarts: it ends with the bits of a run that nobody disturbed.

    python experiments/soak.py --minutes 60 --out runs/soak       # an hour on 2 CPU cores

Runs `jaxseg train unet_small` on the embedded shapes once to its end. Then again, and at random moments ends it by
SIGKILL or, one time in four, by SIGTERM, and starts it anew, until the time is over; what is left then runs
undisturbed. Compares every parameter, statistic and logged loss, and writes what it found to OUT/soak.json.
"""

import dataclasses
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import tyro

from jaxseg.checkpoint import restore_params
from jaxseg.cli.arguments import demand_positive, one_message
from jaxseg.runlog import read_records


@dataclasses.dataclass(frozen=True)
class Config:
    out: pathlib.Path = pathlib.Path("runs/soak")
    minutes: float = 60.0
    steps: int = 20_000  # enough that the time is over first
    batch: int = 8
    checkpoint_every: int = 50
    longest: float = 60.0  # seconds between a start and its end, drawn from 0
    seed: int = 0


def losses(run: pathlib.Path) -> list[float]:
    return [r["loss"] for r in read_records(run / "metrics.jsonl") if "loss" in r]


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """What of two finished runs is not the same to the bit."""
    found = []
    states = [restore_params(run / "checkpoints") for run in (one, other)]
    (a, meta), (b, other_meta) = states
    if meta["step"] != other_meta["step"]:
        found.append(f"steps {meta['step']} and {other_meta['step']}")
    found += [name for name, value in meta["checksums"].items() if other_meta["checksums"].get(name) != value]
    if not found:
        flat = [np.concatenate([np.ravel(x).view(np.uint8) for x in _leaves(tree)]) for tree in (a, b)]
        found += [] if np.array_equal(*flat) else ["parameters"]
    if losses(one) != losses(other):
        found.append("losses")
    return found


def _leaves(tree) -> list[np.ndarray]:
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]
    return [np.asarray(tree)]


def disturbed(
    command: Sequence[str], run: pathlib.Path, seconds: float, longest: float, dice: random.Random
) -> list[dict]:
    """Runs `command` to its end, ending it at random moments for `seconds`; says when it did."""
    ends, over = [], time.monotonic() + seconds
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            wait = dice.uniform(0, longest) if time.monotonic() < over else None
            output, _ = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            how = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
            process.send_signal(how)
            output, _ = process.communicate()
            ends.append({"signal": how.name, "after_s": round(wait or 0, 2), "step": len(losses(run))})
            if how == signal.SIGTERM and process.returncode not in (0, -signal.SIGTERM):
                raise RuntimeError(output) from None
            continue
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended by itself:\n{output}")
        if "stopped after step" not in output:
            return ends


def soak(command: Callable[[pathlib.Path], Sequence[str]], config: Config) -> dict:
    """The whole of it, with a command that trains into a folder."""
    runs = [config.out / name for name in ("whole", "disturbed")]
    for run in runs:
        shutil.rmtree(run, ignore_errors=True)
    subprocess.run(command(runs[0]), check=True, stdout=subprocess.DEVNULL)
    ends = disturbed(command(runs[1]), runs[1], 60 * config.minutes, config.longest, random.Random(config.seed))
    result = {"ends": ends, "steps": len(losses(runs[1])), "differences": differences(*runs)}
    (config.out / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def main(config: Config) -> None:
    demand_positive(**{name: getattr(config, name) for name in ("steps", "batch", "checkpoint_every")})

    def command(out: pathlib.Path) -> list[str]:
        words = ["--size", "64x64", "--steps", str(config.steps), "--batch", str(config.batch), "--out", str(out)]
        words += ["--checkpoint-every", str(config.checkpoint_every)]
        return [sys.executable, "-c", "from jaxseg.cli import main; main()", "train", "unet_small", *words]

    result = soak(command, config)
    kinds = [end["signal"] for end in result["ends"]]
    print(f"{kinds.count('SIGKILL')} kills, {kinds.count('SIGTERM')} notices, {result['steps']} steps")
    if result["differences"]:
        raise SystemExit(f"not the same: {', '.join(result['differences'][:5])}")
    print("the same bits as undisturbed")


if __name__ == "__main__":
    with one_message():
        main(tyro.cli(Config))
