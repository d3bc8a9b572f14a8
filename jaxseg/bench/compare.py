"""What changed between two files of `jaxseg bench`, beyond what the repeats of either differ by."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Change", "Comparison", "compare", "label"]

Row = Mapping[str, Any]
KEY = ("model", "task", "size", "batch", "classes", "dtype", "threads", "clock")
OURS = ("python", "jax", "jaxlib", "flax", "numpy", "commit", "changed", "diff")
THEIRS = ("device", "torch", "torchvision", "scikit-learn", "scipy")  # what a peer's time goes by
FACTS = ("processor", "cores", *THEIRS, *OURS)
CLASSES = 11  # of rows that do not say
ROUNDS = 7  # of rows that do not hold each time
LEAST_ROUNDS = 3  # of fewer the spread says nothing
SIGMAS = 3.0
LEAST = {"time": 0.02, "memory": 0.01, "compile": 0.3}  # smaller changes are not news; compilation has one sample


class Change(NamedTuple):
    """One figure, before and after. `change` and `noise` are shares: 0.1 is a tenth more."""

    row: str
    what: str
    kind: str  # time, memory or compile
    before: float  # ms, bytes or seconds
    after: float
    change: float  # of a time with a peer in both files: against the peer's, so that the machine cancels
    noise: float

    @property
    def beyond_noise(self) -> bool:
        """Whether it says something."""
        return abs(self.change) > self.noise


class Comparison(NamedTuple):
    """Two files, row by row."""

    changes: list[Change]
    only_before: list[str]
    only_after: list[str]
    facts: dict[str, tuple[Any, Any]]  # what differs of device, versions and source

    @property
    def worse(self) -> list[Change]:
        """What takes more time or memory, beyond noise."""
        return [c for c in self.changes if c.beyond_noise and c.change > 0]


def label(row: Row) -> str:
    """`unet forward 4x128x128`, and what is unusual about it."""
    shape = "x".join(map(str, (row["batch"], *row["size"])))
    threads = f"{row['threads']} thread{'s' * (row['threads'] != 1)}, {row['clock']} clock"
    return f"{row['model']} {row['task']} {shape} {row['dtype']}, {threads}"


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str({"classes": CLASSES, **row}[k]) for k in KEY)


def _rounds(times: Mapping[str, Any]) -> int:
    return len(times.get("each_ms", [])) or ROUNDS


def _error(times: Mapping[str, Any]) -> float:
    """Standard error of a median, as a share of it: from the quartiles, as if the times were normal."""
    each = times.get("each_ms", [])
    spread, rounds = times["spread_ms"], _rounds(times)
    if len(each) > 3:
        low, _, high = statistics.quantiles(each, n=4)
        spread = (high - low) / 2
    deviation = 2 * spread / 1.349
    return 1.2533 * deviation / math.sqrt(rounds) / max(times["ms"], 1e-9)


def _time_changes(name: str, before: Row, after: Row) -> list[Change]:
    peers = [what for what in before["ratio"] if what in after["ratio"]]
    same = all(before.get(k) == after.get(k) for k in THEIRS)
    drift, drift_error = 0.0, 0.0
    if peers and same:
        a, b = (row["times"][peers[0]] for row in (before, after))
        drift, drift_error = math.log(b["ms"] / a["ms"]), math.hypot(_error(a), _error(b))
    changes = []
    for what, a in before["times"].items():
        if what not in after["times"] or what in before["ratio"]:
            continue
        b = after["times"][what]
        change = math.expm1(math.log(b["ms"] / a["ms"]) - drift)
        noise = SIGMAS * math.hypot(_error(a), _error(b), drift_error)
        least = LEAST["time" if min(_rounds(a), _rounds(b)) >= LEAST_ROUNDS else "compile"]
        changes.append(Change(name, what, "time", a["ms"], b["ms"], change, max(noise, least)))
    return changes


def _other_changes(name: str, before: Row, after: Row) -> list[Change]:
    changes = []
    for kind, field in (("memory", "peak_bytes"), ("compile", "compile_s")):
        for what, a in before.get(field, {}).items():
            b = after.get(field, {}).get(what)
            if b is not None and what.startswith("jaxseg"):
                changes.append(Change(name, what, kind, a, b, (b + 0.05) / (a + 0.05) - 1, LEAST[kind]))
    return changes


def compare(before: Sequence[Row], after: Sequence[Row]) -> Comparison:
    """Rows of the same model, task, shapes, dtype and clock beside each other; of several such, the last.

    A time changed where its medians differ by more than three standard errors of both and by 2 %. Where a row has
    the same PyTorch in both files, jaxseg's time is taken against its, and the noise of both counts. Memory is the
    compiler's figure and has no noise; compile times are single ones, of which only changes by 30 % count, as of
    times that were taken once or twice. Raises ValueError where the two have no row in common.
    """
    old, new = ({_key(row): row for row in rows} for rows in (before, after))
    changes: list[Change] = []
    facts: dict[str, tuple[Any, Any]] = {}
    for key in (key for key in old if key in new):
        a, b = old[key], new[key]
        changes += _time_changes(label(b), a, b) + _other_changes(label(b), a, b)
        facts |= {k: (a.get(k), b.get(k)) for k in FACTS if a.get(k) != b.get(k)}
    if not old.keys() & new.keys():
        raise ValueError("the two files have no row in common: the same models, sizes, batch, dtype, threads and clock")
    gone, come = ([label(x[k]) for k in x if k not in y] for x, y in ((old, new), (new, old)))
    return Comparison(changes, gone, come, facts)
