"""Save and restore any pytree of arrays with Orbax, one atomic step at a time.

A step directory holds `state` (the arrays) and `meta` (JSON: the step, the position in the data, the config and
a checksum for each array). The checksums are integer sums computed on the devices, the same for any
sharding, so a checkpoint whose bytes rotted is found on any topology, and the one before is used.
"""

import contextlib
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree, UInt32

__all__ = [
    "ConfigMismatch",
    "Restored",
    "SaveFailed",
    "checksums",
    "open_checkpoints",
    "restore",
    "restore_params",
    "save",
    "wait",
]

log = logging.getLogger("jaxseg")


class ConfigMismatch(ValueError):
    """A checkpoint was written by a run with another config; the message lists the fields that differ."""


class SaveFailed(OSError):
    """A checkpoint could not be written; the message says why, and which is the newest whole one."""


class Restored(NamedTuple):
    """What a checkpoint gave back."""

    step: int
    state: PyTree
    skipped: tuple[str, ...]  # one line for each newer checkpoint that could not be used


def _named(tree: PyTree) -> dict[str, Any]:
    """The arrays of a tree by their paths (`params/conv1/kernel`)."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


@jax.jit
def _checksum(x: Array) -> UInt32[Array, ""]:
    """A 32-bit checksum of an array's bits in place: the sum of word x odd weight, modulo 2^32.

    Integer addition modulo 2^32 is associative: the value does not depend on sharding or reduction order.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_ or x.dtype.itemsize == 1:
        words = x.astype(jnp.uint8).astype(jnp.uint32)
    else:
        width = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
    # strides of a row-major order, so that the weight of an element is a function of where it stands
    weight = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        weight += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * weight + 1), dtype=jnp.uint32)


def checksums(tree: PyTree) -> dict[str, int]:
    """The checksum of each array of `tree`, by its path (`params/conv1/kernel`)."""
    # a program for each shape, of which there are few: one for all arrays takes twice as long to compile. And one
    # after the other: with more under way than XLA's CPU client admits, those of several processes wait for each other
    return {name: int(_checksum(x)) for name, x in _named(tree).items()}


def _state_handler() -> ocp.PyTreeCheckpointHandler:
    # a copy is written whole by one device: to share it out among all compiles a slice for each shape and device
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    number = ocp.type_handlers.ScalarHandler()
    types = ocp.type_handlers.create_type_handler_registry(
        *((jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())),
        *((int, number), (float, number), (np.number, number)),
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=types)


def open_checkpoints(directory: pathlib.Path, *, keep: int = 3) -> ocp.CheckpointManager:
    """A manager of `directory` that keeps the `keep` newest steps and clears what a killed save left behind."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True, create=True)
    handlers = {"state": _state_handler(), "meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(pathlib.Path(directory).absolute(), options=options, item_handlers=handlers)


@contextlib.contextmanager
def _failure_is_said(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Orbax saves in the background: what went wrong in one save is raised by whatever waits for it."""
    try:
        yield
    except Exception as error:  # tensorstore and Orbax raise many kinds for a disk that is full
        directory = pathlib.Path(manager.directory)
        whole = _steps(directory)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if len(reason) > 300:  # the operating system's own word comes last
            reason = f"{reason[:100]} ... {reason[-180:]}"
        newest = f"step {whole[0]} is the newest that is whole" if whole else "there is none before it"
        raise SaveFailed(
            f"no checkpoint could be written to {directory} ({reason}); {newest}. Make room or mend the folder, and "
            "the same command goes on from there"
        ) from error


def wait(manager: ocp.CheckpointManager) -> None:
    """Until the save that was started is whole; raises SaveFailed where it is not."""
    with _failure_is_said(manager):
        manager.wait_until_finished()


def save(manager: ocp.CheckpointManager, step: int, state: PyTree, config: Mapping[str, Any]) -> None:
    """Starts an asynchronous, atomic save; the state is copied off the devices before this returns.

    Raises SaveFailed, for this save or for the one before.
    """
    # the data order is a pure function of (seed, step): the step is the data's position
    meta = {"step": step, "data_position": step, "config": dict(config)}
    meta["checksums"] = checksums(state)
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
    with _failure_is_said(manager):
        manager.save(step, args=args)


def _steps(directory: pathlib.Path) -> list[int]:
    """Committed steps under `directory`, newest first."""
    if not directory.is_dir():
        return []
    return sorted((int(p.name) for p in directory.iterdir() if p.name.isdigit()), reverse=True)


def read_meta(directory: pathlib.Path, step: int) -> dict[str, Any]:
    """The JSON that was saved with a step."""
    return json.loads((pathlib.Path(directory) / str(step) / "meta" / "metadata").read_text())


def _differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    asked = json.loads(json.dumps(asked))  # tuples become lists, as in the saved one
    missing = object()
    return [
        f"  {name}: checkpoint {saved.get(name, '(absent)')!r}, this run {asked.get(name, '(absent)')!r}"
        for name in sorted(saved.keys() | asked.keys())
        if saved.get(name, missing) != asked.get(name, missing)
    ]


def _described(tree: PyTree) -> dict[str, str]:
    """`float32[3, 3, 64]` of each array; of keys, of their bits, which are what is saved."""
    bits = lambda x: jax.eval_shape(jax.random.key_data, x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return {name: f"{bits(x).dtype}{[*bits(x).shape]}" for name, x in _named(tree).items()}


def _demand_same_arrays(directory: pathlib.Path, like: PyTree, sums: Mapping[str, int]) -> None:
    """Raises ConfigMismatch where a checkpoint whose two lists of arrays agree is of other arrays than `like`."""
    held = ocp.PyTreeCheckpointHandler().metadata(directory / "state").tree
    saved, asked = _described(held), _described(like)
    if saved.keys() == sums.keys() and (differing := _differences(saved, asked)):
        shown = differing[:5] + [f"  and {len(differing) - 5} more"] * (len(differing) > 5)
        raise ConfigMismatch(
            f"{directory} is of another model or optimizer; these arrays differ:\n"
            + "\n".join(shown)
            + "\nbuild the same ones to resume, or use another output folder to start anew"
        )


def _damage(state: PyTree, saved: Mapping[str, int]) -> str:
    """Says which arrays have other checksums than those saved; nothing where none has."""
    damaged = [name for name, value in checksums(state).items() if saved.get(name) != value]
    return f"{', '.join(damaged[:3])}: not the bits that were saved" if damaged else ""


def _read(directory: pathlib.Path, like: PyTree, config: Mapping[str, Any]) -> tuple[PyTree, dict[str, int]]:
    """This process's part of a checkpoint's state, and the checksums saved with it; waits for no other process."""
    meta = read_meta(directory.parent, int(directory.name))
    saved, sums = meta["config"], meta["checksums"]
    if differing := _differences(saved, config):
        raise ConfigMismatch(
            f"{directory} was written by another run; these fields differ:\n"
            + "\n".join(differing)
            + "\nuse the same values to resume, or another output folder to start anew"
        )
    _demand_same_arrays(directory, like, sums)
    how = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
    return _state_handler().restore(directory / "state", args=how), sums


def _of_any_process(problem: str) -> str:
    """What went wrong here or in another process, so that all of them take the same way."""
    if jax.process_count() == 1:
        return problem
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(problem))))
    return problem or (f"process {failed[0]} could not read it" if len(failed) else "")


def restore(manager: ocp.CheckpointManager, like: PyTree, config: Mapping[str, Any]) -> Restored | None:
    """The newest checkpoint whose bytes are whole, on the devices and shardings of `like`; None without any.

    `like` is a tree of `jax.ShapeDtypeStruct` with shardings: any device count and mesh will do. A checkpoint
    that cannot be read, or whose checksums differ, is set aside as `corrupt-STEP` (never deleted), reported in
    `skipped` and in the log, and the one before is tried. Raises ConfigMismatch for one of another config, or of
    arrays of other names, shapes or types: it is whole, and the run is another.
    """
    skipped: list[str] = []
    for step in sorted(manager.all_steps(), reverse=True):
        problem = ""
        try:
            state, sums = _read(pathlib.Path(manager.directory) / str(step), like, config)
        except ConfigMismatch:
            raise
        except Exception as error:  # tensorstore and Orbax raise many kinds for damaged files
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not (problem := _of_any_process(problem) or _damage(state, sums)):
            return Restored(step, state, tuple(skipped))
        skipped.append(_set_aside(manager, step, problem))
    return Restored(0, None, tuple(skipped)) if skipped else None


def _set_aside(manager: ocp.CheckpointManager, step: int, problem: str) -> str:
    path = pathlib.Path(manager.directory) / str(step)
    aside = path.with_name(f"corrupt-{step}")
    while aside.exists():
        aside = aside.with_name(aside.name + "-again")
    if jax.process_count() > 1:  # before, that all find the same name, and after, that none looks too early
        multihost_utils.sync_global_devices(f"set aside step {step}")
    if jax.process_index() == 0:
        path.rename(aside)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"step {step} is aside")
    manager.reload()
    line = f"checkpoint {path} is damaged ({problem[:200]}); kept as {aside.name}, the one before is used"
    log.warning(line)
    return line


def restore_params(directory: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newest whole checkpoint's parameters, and its meta: for use, not for training on.

    Gives nested dicts of host arrays under those of `params`, `model_state` and `ema_params` that there are.
    Raises FileNotFoundError where `directory` holds no checkpoint, ValueError where none is whole.
    """
    directory = pathlib.Path(directory).absolute()
    steps = _steps(directory)
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {directory}; train one there first")
    handler = ocp.PyTreeCheckpointHandler()
    for step in steps:
        path = directory / str(step) / "state"
        try:
            meta = read_meta(directory, step)
            saved = handler.metadata(path).tree
            wanted = {k: saved[k] for k in ("params", "model_state", "ema_params") if saved.get(k) is not None}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            request = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
            state = handler.restore(path, args=request)
            if damage := _damage(state, meta["checksums"]):
                raise ValueError(damage)
            return state, meta
        except Exception as error:  # tensorstore and Orbax raise many kinds for damaged files
            log.warning("checkpoint %s is damaged (%s); trying the one before", path.parent, error)
    raise ValueError(f"no checkpoint in {directory} is whole: {', '.join(map(str, steps))} are damaged")
