"""The training loop: placement, prefetch, logging, checkpoints, resume, preemption, evaluation. It knows no model."""

import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from jaxseg import checkpoint
from jaxseg.data.pipeline import batch_names, eval_batches, train_batches
from jaxseg.data.source import DataError, Source
from jaxseg.interruption import lost_process_is_said, stop_requests
from jaxseg.parallel import Placement, make_mesh, over_mesh
from jaxseg.runlog import RunLog, require_writable
from jaxseg.train import TrainFns

__all__ = [
    "Feed",
    "FitResult",
    "NonFiniteLoss",
    "Run",
    "demand_divisible",
    "evaluate_batches",
    "evaluation_feed",
    "fit",
    "training_feed",
]


@dataclasses.dataclass(frozen=True)
class Run:
    """How long, how often and where."""

    steps: int
    """Optimizer steps."""
    batch: int = 16
    """Examples a step, over all devices and hosts."""
    out: pathlib.Path = pathlib.Path("runs/run")
    """Folder of checkpoints, metrics and figures; a run resumes from what it holds."""
    seed: int = 0
    """Of parameters, data order, augmentation and dropout."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    evaluate_every: int | None = None
    """Steps between evaluations; the end of the run has one in any case."""
    keep: int = 3
    """Newest checkpoints kept."""


class Feed(NamedTuple):
    """Training batches as a pure function of the step, which makes a run resumable at any one."""

    batches: Callable[[int], Iterable[Mapping[str, np.ndarray]]]  # first step -> this process's slices from there on
    names: Callable[[int], list[str]]  # step -> the files of that global batch


def training_feed(source: Source, size: tuple[int, int], batch: int, seed: int) -> Feed:
    """This process's batches as a function of the first step."""
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return Feed(
        lambda start: train_batches(source, size, batch, seed=seed, start_step=start, **processes),
        lambda step: batch_names(source, seed, step, batch),
    )


def evaluation_feed(
    source: Source, size: tuple[int, int], batch: int, label_size: tuple[int, int] | None = None
) -> Callable[[], Any]:
    """Each evaluation's batches of this process."""
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return lambda: eval_batches(source, size, batch, label_size=label_size, **processes)


class FitResult(NamedTuple):
    """What `fit` leaves. `stopped` is true where a signal ended it before its last step."""

    step: int
    state: PyTree
    scores: dict[str, float]
    stopped: bool


class NonFiniteLoss(FloatingPointError):
    """A step gave NaN or Inf; the message has the step, the batch's files and the last good checkpoint."""


def evaluate_batches(
    fns: TrainFns, placement: Placement, state: PyTree, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Scores of a placed state over `batches`: the sums are added in float64 on the host."""
    evaluate = placement.compile_evaluate(fns.evaluate)
    return _evaluate(fns, placement, evaluate, state, batches)


def _evaluate(
    fns: TrainFns,
    placement: Placement,
    evaluate: Callable,
    state: PyTree,
    batches: Iterable[Mapping[str, np.ndarray]],
) -> dict[str, float]:
    total: PyTree = None
    pending: PyTree = None  # one batch behind, so that the device does not wait for the host's sum

    def add(total: PyTree, sums: PyTree) -> PyTree:
        host = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(sums))
        return host if total is None else jax.tree.map(np.add, total, host)

    for batch in batches:
        sums = evaluate(state, placement.put_batch(batch))
        if pending is not None:
            total = add(total, pending)
        pending = sums
    if pending is None:
        return {}
    return dict(fns.summarize(add(total, pending)))


def demand_divisible(batch: int, placement: Placement) -> None:
    """Raises ValueError for a global batch that does not divide over the devices."""
    n = placement.batch_devices
    if batch % n:
        good = max(round(batch / n), 1) * n
        raise ValueError(f"a batch of {batch} does not divide over {n} devices ({placement.name}); use {good}")


def fit(
    fns: TrainFns,
    train: Feed,
    evaluation: Callable[[], Iterable[Mapping[str, np.ndarray]]] | None,
    run: Run,
    *,
    placement: Placement | None = None,
    config: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains to `run.steps`, from the newest checkpoint under `run.out` where there is one.

    The result is a function of (fns, data, run): a run killed at any instant and started again ends with the
    same bits on the same machine. `config` describes the run; a checkpoint with another one is refused.
    `evaluation()` gives the batches to evaluate on.

    Raises NonFiniteLoss, ValueError for a batch that does not divide over the devices or a number below 1,
    `checkpoint.ConfigMismatch`, `checkpoint.SaveFailed` where the disk is full, and DataError, after a save, where a
    file can no longer be read.
    """
    require_writable(run.out)
    placement = over_mesh(make_mesh()) if placement is None else placement
    demand_divisible(run.batch, placement)
    for name in ("steps", "batch", "checkpoint_every", "evaluate_every", "keep"):
        if (value := getattr(run, name)) is not None and value < 1:
            raise ValueError(f"a run's {name} is at least 1, got {value}")
    config = {"steps": run.steps, "batch": run.batch, "seed": run.seed, **(config or {})}
    key = jax.random.key(run.seed)
    init_key, step_key = jax.random.split(key)
    update = placement.compile_update(fns.update)
    evaluate = placement.compile_evaluate(fns.evaluate)

    with contextlib.ExitStack() as stack:
        stop_requested = stack.enter_context(stop_requests())
        manager = stack.enter_context(checkpoint.open_checkpoints(run.out / "checkpoints", keep=run.keep))
        stack.enter_context(lost_process_is_said())  # last in, so before the checkpoints are closed
        batches = iter(train.batches(0))
        first = next(batches)
        shapes = jax.eval_shape(fns.init, init_key, first)
        restored = checkpoint.restore(manager, placement.shape_saved(shapes), config)
        start = 0 if restored is None else restored.step
        log = RunLog(run.out, start=start, steps=run.steps, examples_per_step=run.batch)
        stack.callback(log.close)
        for line in () if restored is None else restored.skipped:
            log.say(line)
        if restored is not None and start:
            log.say(f"resuming after step {start} of {run.steps}  [{placement.name}]")
            state = placement.from_saved(restored.state)
        else:
            log.say(f"starting {run.steps} steps of {run.batch}  [{placement.name}]; the first step compiles")
            state = placement.put_state(fns.init(init_key, first))

        saved = start
        pending: tuple[int, PyTree, float] | None = None

        def settle() -> None:
            """Waits for the step in flight, and logs it; raises where it is not finite."""
            nonlocal pending
            if pending is None:
                return
            step, metrics, wait = pending
            pending = None
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
            log.step(step, values, wait)
            fns.watch(values)
            if bad := [f"{k} is {v}" for k, v in values.items() if not np.isfinite(v)]:
                good = f"{run.out / 'checkpoints' / str(saved)}" if saved else "none yet"
                raise NonFiniteLoss(
                    f"{', '.join(bad)} at step {step}, on {', '.join(train.names(step - 1))}; "
                    f"last good checkpoint: {good}. Lower the learning rate, or look at those files"
                )

        def evaluate_now(step: int, state: PyTree) -> dict[str, float] | None:
            """Evaluates and logs; None where a stop is asked for in the middle."""
            assert evaluation is not None
            alone = jax.process_count() == 1  # several processes leave together, at a step
            batches = itertools.takewhile(lambda _: not (alone and stop_requested()), evaluation())
            scores = _evaluate(fns, placement, evaluate, state, batches)
            if alone and stop_requested():
                return None
            log.evaluation(step, scores)
            return scores

        if start < run.steps:
            if start:
                batches = iter(train.batches(start))
                first = next(batches)
            placed = placement.put_batch(first)
        stopped = False
        broken: DataError | None = None
        wait = 0.0
        for step in range(start, run.steps):
            state, metrics = update(state, placed, step_key, np.int32(step))
            settle()  # the step before, while this one runs
            pending = (step + 1, metrics, wait)
            if step + 1 < run.steps:
                began = time.perf_counter()
                try:
                    placed = placement.put_batch(next(batches))
                except DataError as error:
                    if jax.process_count() > 1:  # the others cannot save with us
                        raise
                    broken = error
                # time spent while the device still computes is not a wait
                idle = all(x.is_ready() for x in jax.tree.leaves(metrics))
                wait = time.perf_counter() - began if idle else 0.0
            last = step + 1 == run.steps
            if evaluation is not None and run.evaluate_every and (step + 1) % run.evaluate_every == 0 and not last:
                settle()
                try:
                    evaluate_now(step + 1, state)
                except DataError as error:
                    if jax.process_count() > 1:
                        raise
                    broken = error
            if jax.process_count() > 1:  # jax.distributed tells every process of a notice to one
                stopped = multihost_utils.reached_preemption_sync_point(step)
            else:
                stopped = stop_requested()
            if last or stopped or broken or (step + 1) % run.checkpoint_every == 0:
                settle()  # a checkpoint is of finite steps only
                checkpoint.save(manager, step + 1, placement.to_saved(state), config)
                saved = step + 1
            if broken:
                checkpoint.wait(manager)
                heading = (
                    f"the data broke; step {saved} of {run.steps} is saved. Mend them, and the same command goes on"
                )
                raise DataError(*broken.problems, heading=heading) from broken
            if stopped:
                break
        checkpoint.wait(manager)
        scores = None
        if evaluation is not None and not stopped:
            scores = evaluate_now(run.steps, state)
            stopped = scores is None
        if stopped:
            log.say(f"stopped after step {saved} of {run.steps}, saved; the same command goes on from there")
        return FitResult(saved, state, scores or {}, stopped)
