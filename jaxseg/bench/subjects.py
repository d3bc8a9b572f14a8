"""What is measured: a model's forward pass and training step, or a kernel and its gradient, compiled anew."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jaxseg import programs
from jaxseg.aot import matmul_flops
from jaxseg.bench.kernels import KERNELS
from jaxseg.bench.measure import Setting
from jaxseg.losses import cross_entropy
from jaxseg.train import TrainState

__all__ = ["KernelPrograms", "Programs", "Subject", "subject"]


class Subject:
    """Programs that a peer may stand beside: `calls[task][what]` run them to their ends.

    `compile_seconds`, `peak_bytes` and `flops` are by the same names; `inputs` are the forward pass's, which a peer
    shall see too.
    """

    def __init__(self, name: str, setting: Setting):
        self.name, self.setting, self.parameters = name, setting, 0
        self.inputs: tuple[Any, ...] = ()
        self.compile_seconds: dict[str, dict[str, float]] = {"forward": {}, "train": {}}
        self.peak_bytes: dict[str, dict[str, int]] = {"forward": {}, "train": {}}
        self.flops: dict[str, float] = {}
        self.calls: dict[str, dict[str, Callable[[], Any]]] = {"forward": {}, "train": {}}

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


class Programs(Subject):
    """One model's. `labels` is what a semantic model learns, and None for the others, whose step sees `batch`."""

    def __init__(self, name: str, setting: Setting, **fields: Any):
        super().__init__(name, setting)
        rng = np.random.default_rng(0)
        model = programs.sized_model(name, setting.classes, setting.size, dtype=jnp.dtype(setting.dtype).type, **fields)
        apply, shapes, inputs = programs.forward(model, setting.size, setting.batch)
        self.parameters = sum(x.size for x in jax.tree.leaves(shapes["params"]))
        variables = _fill(rng, shapes)
        given = [jnp.asarray(rng.random(x.shape, np.float32) - 0.5, x.dtype) for x in inputs]
        self.model, self.variables, self.inputs = model, variables, tuple(given)
        self.labels: Any = None
        self.batch: dict[str, Array] = {}
        output: Any = jax.eval_shape(apply, variables, *given)
        if hasattr(output, "logits"):
            size = output.logits.shape[1:3]
            self.labels = jnp.asarray(rng.integers(0, setting.classes, (setting.batch, *size)), jnp.int32)
        if "forward" in setting.tasks:
            run = self._compile("forward", "jaxseg", apply, (), variables, *given)
            self.calls["forward"]["jaxseg"] = lambda: jax.block_until_ready(run(variables, *given))
        if "train" in setting.tasks and programs.is_trained_alone(model):
            self._add_training(model, setting, rng)

    def _add_training(self, model: nn.Module, setting: Setting, rng: np.random.Generator) -> None:
        optimizer, key = optax.sgd(1e-3, 0.9), jax.random.key(1)
        fns, shapes = programs.training(model, setting.size, setting.batch, optimizer)
        self.batch = batch = _batch(rng, shapes, setting.classes)
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
        add("jaxseg", _plain_step(model, optimizer), state, *self.inputs, self.labels)
        add("jaxseg update", fns.update, state, batch)


class KernelPrograms(Subject):
    """One kernel's, on a batch of what images of the setting's size come to; its gradient is its training step."""

    def __init__(self, name: str, setting: Setting):
        super().__init__(name, setting)
        kernel = KERNELS[name]
        arrays = kernel.inputs(np.random.default_rng(0), setting.batch, setting.size)
        dtype = jnp.dtype(setting.dtype) if kernel.has_gradient else jnp.float32
        self.inputs = tuple(jnp.asarray(x, dtype) for x in arrays)

        def squares(*inputs: Array) -> Array:
            return jnp.square(kernel.apply(*inputs).astype(jnp.float32)).sum()

        functions = {"forward": kernel.apply} | ({"train": jax.grad(squares)} if kernel.has_gradient else {})
        for task in (task for task in setting.tasks if task in functions):
            run = self._compile(task, "jaxseg", functions[task], (), *self.inputs)
            self.calls[task]["jaxseg"] = functools.partial(lambda f: jax.block_until_ready(f(*self.inputs)), run)


def subject(name: str, setting: Setting, **fields: Any) -> Subject:
    """The kernel or, with `fields` of its class replaced, the model of that name."""
    return KernelPrograms(name, setting) if name in KERNELS else Programs(name, setting, **fields)
