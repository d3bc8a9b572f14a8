"""A model's forward pass and training step, timed beside their peers, in turns, in one process."""

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Array, PyTree

from jaxseg import programs
from jaxseg.aot import matmul_flops
from jaxseg.losses import cross_entropy
from jaxseg.train import TrainState

__all__ = ["Programs", "Setting", "Task", "facts", "matmul_rate", "measure", "without_compilation_cache"]

Task = Literal["forward", "train"]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured, and how."""

    size: tuple[int, int] = (128, 128)
    """Height and width of an image."""
    batch: int = 4
    """Images at once."""
    classes: int = 11
    """Number of classes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of compute, in both; parameters are float32."""
    tasks: tuple[Task, ...] = ("forward", "train")
    """What is measured."""
    rounds: int = 7
    """Times that each is measured."""
    threads: int = 0
    """Of each of the two; 0: as many as this process may use."""
    clock: Literal["wall", "cpu"] = "wall"
    """`cpu` counts processor time, of all threads."""

    def seconds(self) -> float:
        """The clock."""
        return time.process_time() if self.clock == "cpu" else time.perf_counter()


def facts() -> dict[str, Any]:
    """Device, versions and the state of the source, for a row that shall be understood later."""
    root = pathlib.Path(__file__).parents[2]

    def git(*words: str) -> str:
        with contextlib.suppress(OSError):
            return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()
        return ""

    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "commit": git("rev-parse", "HEAD") or "unknown",
        "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Compiles anew what is compiled inside: a program read from a file says nothing of the time to compile it."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def matmul_rate(setting: Setting, rounds: int = 5) -> float:
    """FLOPs a second of the device's best large matrix product in the dtype of `setting`, by its clock."""
    best = 0.0
    for n in (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192):
        x = jnp.ones((n, n), jnp.dtype(setting.dtype))
        product = jax.jit(jnp.matmul).lower(x, x).compile()
        for turn in range(rounds + 1):
            start = setting.seconds()
            jax.block_until_ready(product(x, x))
            if turn:
                best = max(best, 2.0 * n**3 / (setting.seconds() - start))
    return best


def _fill(rng: np.random.Generator, shapes: PyTree) -> PyTree:
    """Time depends on values hardly, and compiling the initialiser takes longer than the model."""

    def values(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype)
        return jnp.asarray(rng.standard_normal(x.shape, np.float32) * 0.02 + (x.ndim == 1), x.dtype)

    return jax.tree.map(values, shapes)


def _batch(rng: np.random.Generator, shapes: Mapping[str, Any], classes: int) -> dict[str, Array]:
    """Noise; and, where instances are asked for, eight boxes of one class each."""
    batch = {}
    for name, x in shapes.items():
        if x.dtype == jnp.uint8:
            batch[name] = rng.integers(0, 256, x.shape, np.uint8)
        else:
            batch[name] = rng.integers(0, classes, x.shape, np.int32)
    if "instances" in shapes:
        _, h, w = shapes["instances"].shape
        ids = np.zeros((h, w), np.int32)
        for i in range(8):
            top, left = i // 4 * h // 2, i % 4 * w // 4
            ids[top : top + h // 3, left : left + w // 5] = i + 1
        batch["instances"] = np.broadcast_to(ids, shapes["instances"].shape)
        batch["label"] = np.where(batch["instances"], 1 + batch["instances"] % (classes - 1), 0).astype(np.int32)
    return jax.tree.map(jnp.asarray, batch)


def _plain_step(model: nn.Module, optimizer: optax.GradientTransformation) -> Callable:
    """What a PyTorch loop does in a step, and no more: loss, gradients, SGD."""

    def step(state: TrainState, images: Array, labels: Array, key: Array) -> tuple[TrainState, Array]:
        def loss(params: PyTree) -> tuple[Array, PyTree]:
            variables = {"params": params, **state.model_state}
            output: Any
            output, changed = model.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
            value = cross_entropy(output.logits, labels)
            if output.aux_logits is not None:
                value += 0.4 * cross_entropy(output.aux_logits, labels)
            return value, changed

        (value, model_state), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, model_state, opt_state, None), value

    return step


class Programs:
    """One model's programs, compiled anew; each call runs to its end.

    `calls[task][what]` run them; `compile_seconds`, `peak_bytes` and `flops` are by the same names. `images` and
    `labels` are what a peer shall see; `labels` is None for models that are not semantic.
    """

    def __init__(self, name: str, setting: Setting, **fields: Any):
        self.name, rng = name, np.random.default_rng(0)
        model = programs.sized_model(name, setting.classes, setting.size, dtype=jnp.dtype(setting.dtype).type, **fields)
        apply, shapes, inputs = programs.forward(model, setting.size, setting.batch)
        self.parameters = sum(x.size for x in jax.tree.leaves(shapes["params"]))
        variables = _fill(rng, shapes)
        given = [jnp.asarray(rng.random(x.shape, np.float32) - 0.5, x.dtype) for x in inputs]
        self.images, self.labels = given[0], None
        output: Any = jax.eval_shape(apply, variables, *given)
        self.compile_seconds: dict[str, dict[str, float]] = {"forward": {}, "train": {}}
        self.peak_bytes: dict[str, dict[str, int]] = {"forward": {}, "train": {}}
        self.flops: dict[str, float] = {}
        self.calls: dict[str, dict[str, Callable[[], None]]] = {"forward": {}, "train": {}}
        if hasattr(output, "logits"):
            size = output.logits.shape[1:3]
            self.labels = jnp.asarray(rng.integers(0, setting.classes, (setting.batch, *size)), jnp.int32)
        if "forward" in setting.tasks:
            run = self._compile("forward", "jaxseg", apply, (), variables, *given)
            self.calls["forward"]["jaxseg"] = lambda: jax.block_until_ready(run(variables, *given))
        if "train" in setting.tasks and programs.is_trained_alone(model):
            self._add_training(model, setting, rng, variables)

    def _compile(self, task: str, what: str, f: Callable, donated: Any, *args: Any) -> Callable:
        start = time.perf_counter()
        traced = jax.jit(f, donate_argnums=donated).trace(*args)
        compiled = traced.lower().compile()
        self.compile_seconds[task][what] = time.perf_counter() - start
        memory = compiled.memory_analysis()
        new = max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)
        self.peak_bytes[task][what] = memory.argument_size_in_bytes + memory.temp_size_in_bytes + new
        self.flops.setdefault(task, matmul_flops(traced.jaxpr.jaxpr))
        return compiled

    def _add_training(self, model: nn.Module, setting: Setting, rng: np.random.Generator, variables: PyTree) -> None:
        optimizer, key = optax.sgd(1e-3, 0.9), jax.random.key(1)
        fns, shapes = programs.training(model, setting.size, setting.batch, optimizer)
        batch = _batch(rng, shapes, setting.classes)
        states: dict[str, Any] = {}

        def add(what: str, f: Callable, state: Any, *args: Any) -> None:
            compiled = self._compile("train", what, f, 0, state, *args, key)
            states[what] = jax.tree.map(jnp.copy, state)  # its own: it is donated

            def call() -> None:
                states[what], value = compiled(states[what], *args, key)
                jax.block_until_ready((states[what], value))

            self.calls["train"][what] = call

        state = jax.eval_shape(fns.init, key, shapes)
        state = _fill(rng, state).replace(
            opt_state=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.opt_state)
        )
        if self.labels is None:
            add("jaxseg", fns.update, state, batch)
            return
        add("jaxseg", _plain_step(model, optimizer), state, self.images, self.labels)
        add("jaxseg update", fns.update, state, batch)


def alternate(calls: Mapping[str, Callable[[], None]], setting: Setting) -> dict[str, dict[str, Any]]:
    """Milliseconds of each call, taken in turns: median, half the interquartile range, and each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(setting.rounds + 1):
        for name, call in calls.items():
            if setting.clock == "wall" and len(calls) > 1:
                time.sleep(0.05)  # threads of the one before still spin
            start = setting.seconds()
            call()
            if turn:  # the first warms up
                times[name].append(1e3 * (setting.seconds() - start))
    rows = {}
    for name, taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else taken * 3
        each = [round(ms, 3) for ms in taken]
        rows[name] = {"ms": round(median, 2), "spread_ms": round((high - low) / 2, 2), "each_ms": each}
    return rows


Peers = Callable[[Programs], Mapping[str, Mapping[str, Callable[[], None]]]]


def measure(
    name: str, setting: Setting, rate: float, peers: Peers | None = None, **fields: Any
) -> list[dict[str, Any]]:
    """A row for each of the setting's tasks that the model has; `rate` is `matmul_rate(setting)`.

    `peers(programs)` gives other implementations as `{what: {task: call}}`. `ratio` is jaxseg's time over
    theirs: below 1 jaxseg is faster. `utilisation` is the FLOPs of the model's own convolutions and products a
    second, as a share of `rate`. Peak memory is the compiler's figure: arguments, outputs and temporaries.
    """
    ours = Programs(name, setting, **fields)
    theirs = peers(ours) if peers is not None else {}
    rows = []
    for task in (task for task in setting.tasks if ours.calls[task]):
        calls = {**ours.calls[task], **{what: peer[task] for what, peer in theirs.items() if task in peer}}
        times = alternate(calls, setting)
        own = [what for what in times if what.startswith("jaxseg")]
        rows.append(
            {
                "model": name,
                "task": task,
                "size": list(setting.size),
                "batch": setting.batch,
                "dtype": setting.dtype,
                "parameters": ours.parameters,
                "threads": setting.threads,
                "clock": setting.clock,
                "times": times,
                "images_per_second": {k: round(1e3 * setting.batch / v["ms"], 2) for k, v in times.items()},
                "ratio": {k: round(times["jaxseg"]["ms"] / v["ms"], 3) for k, v in times.items() if k not in own},
                "compile_s": {k: round(v, 1) for k, v in ours.compile_seconds[task].items()},
                "peak_bytes": ours.peak_bytes[task],
                "flops": ours.flops[task],
                "matmul_flops_per_second": round(rate),
                "utilisation": {k: round(ours.flops[task] / (times[k]["ms"] / 1e3 * rate), 4) for k in own},
            }
        )
    return rows


def threads_of(setting: Setting, available: Sequence[int]) -> int:
    """The number of threads asked for; raises ValueError for more than there are cores."""
    threads = setting.threads or len(available)
    if threads > len(available):
        raise ValueError(f"--threads {threads}: this process may use {len(available)} cores")
    return threads
