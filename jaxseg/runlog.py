"""What a run says, a line a step in the terminal, `metrics.jsonl` and TensorBoard events, and whether it can."""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

__all__ = ["RunLog", "naming", "read_records", "require_writable", "write_whole"]


def require_writable(folder: pathlib.Path) -> None:
    """Raises OSError, before a run has cost anything, where `folder` cannot be made or written to; writes nothing."""
    there = folder.absolute()
    while not os.path.exists(there) and there != there.parent:  # nor seen, where one may not look
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{folder}: {there} is a file, not a folder; choose another output folder")
    effective = os.access in os.supports_effective_ids
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=effective):
        raise PermissionError(f"{folder}: {there} cannot be written to; mend that, or choose another output folder")


def read_records(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The records of a `metrics.jsonl`, oldest first; a last line cut short by a kill is passed over."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Whatever is written within: an OSError that names no file, as a full disk's does not, names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or str(path) in str(error):
            raise
        raise OSError(f"{path} cannot be written ({error.strerror or error})") from error


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file and its folder; raises OSError, and leaves what was there, where the whole of it cannot be."""
    staged = path.with_name(path.name + ".tmp")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.write_text(text)
            os.replace(staged, path)
    except OSError:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class RunLog:
    """Writes a run's records; on all processes but the first it writes nothing.

    A run that resumes at `start` drops the records past it, so that the log reads as one uninterrupted run.
    """

    def __init__(self, out: pathlib.Path, *, start: int, steps: int, examples_per_step: int):
        self.steps, self.examples = steps, examples_per_step
        self.silent = jax.process_index() != 0
        self.out = out
        self.last: float | None = None  # when the last step ended
        self.seconds = 0.0  # a step, smoothed
        if self.silent:
            return
        from tensorboardX import SummaryWriter  # imports PyTorch, where that is installed

        path = out / "metrics.jsonl"
        kept = [r for r in read_records(path) if r["step"] <= start]
        write_whole(path, "".join(json.dumps(r) + "\n" for r in kept))
        self.file = path.open("a")
        self.events = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1 if start else None)

    def say(self, text: str) -> None:
        """Prints a line."""
        if not self.silent:
            print(text, flush=True)

    def step(self, step: int, metrics: Mapping[str, float], wait: float) -> None:
        """Records a step that has ended. `wait` is the time in seconds that the device stood without a batch."""
        now = time.perf_counter()
        rate = ""
        if self.last is not None:  # the first step is mostly compilation
            spent = now - self.last
            self.seconds = spent if self.seconds == 0 else 0.9 * self.seconds + 0.1 * spent
            left = _duration(self.seconds * (self.steps - step))
            rate = f"  {self.examples / self.seconds:6.1f} img/s  wait {wait:5.3f} s  ETA {left}"
        self.last = now
        self._write({"step": step, **metrics, "wait": round(wait, 4), "seconds": round(self.seconds, 4)}, "train")
        scores = "  ".join(f"{_label(k)} {v:.4f}" for k, v in metrics.items() if k in ("loss", "miou"))
        self.say(f"step {step:{len(str(self.steps))}}/{self.steps}  {scores}{rate}")

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Records the scores of an evaluation after `step`."""
        self._write({"step": step, "evaluation": dict(scores)}, "evaluation")
        shown = "  ".join(f"{_label(k)} {v:.4f}" for k, v in scores.items() if "/" not in k)
        self.say(f"evaluation after step {step}:  {shown}")
        self.last = None  # the pause is not a step

    def _write(self, record: dict[str, Any], group: str) -> None:
        if self.silent:
            return
        try:
            print(json.dumps(record), file=self.file, flush=True)
        except OSError as error:  # a full disk names no file
            raise OSError(
                f"{self.file.name} cannot be written ({error.strerror}); the run goes on from its last save"
            ) from error
        for name, value in record.get("evaluation", record).items():
            if name != "step":
                self.events.add_scalar(f"{group}/{name}", value, record["step"])

    def close(self) -> None:
        """Flushes and closes the files; what can no longer be written is said, and hides no error that led here."""
        for file in () if self.silent else (self.file, self.events):
            try:
                file.close()
            except OSError as error:
                print(f"{self.out} has no whole log ({error.strerror})", file=sys.stderr)


def _label(name: str) -> str:
    return {"miou": "mIoU"}.get(name, name.replace("_", " "))
