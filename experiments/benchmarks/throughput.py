"""Forward and train step of any model, beside the same model in PyTorch, alternately in one process.

    python experiments/benchmarks/throughput.py --models unet_small unet --size 128 128 --batch 4

Needs the parity extra. Prints medians, their spread (half the distance between the quartiles), images a second
and the ratio to PyTorch (below 1: jaxseg is faster); compile time apart. The train step is the same work in
both: train mode, cross-entropy (and 0.4 of that of auxiliary logits), gradients, SGD with momentum. `update` is
jaxseg's own `supervised` update, which besides normalises uint8 images and scores mIoU and the gradient's norm.
`--json FILE` adds the rows to FILE.

On a machine that others use, wall time compares the two thread pools' patience more than the programs:
`--threads 1 --clock cpu` counts the processor time of one thread, which hardly depends on the neighbours.
"""

import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table
import torch
import tyro
from torch_models import torch_model

import jaxseg
from jaxseg.losses import cross_entropy
from jaxseg.train import TrainState, supervised


@dataclasses.dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = ("unet_small",)
    size: tuple[int, int] = (128, 128)
    batch: int = 4
    num_classes: int = 11
    dtype: Literal["float32", "bfloat16"] = "float32"  # of compute, in both; parameters are float32
    tasks: tuple[Literal["forward", "train"], ...] = ("forward", "train")
    rounds: int = 7
    threads: int = 0  # for each of the two; 0: as many as this process may use
    clock: Literal["wall", "cpu"] = "wall"
    compiled: bool = False  # also torch.compile
    json: pathlib.Path | None = None


class Jaxseg:
    """One model's functions, compiled; each call runs to its end."""

    def __init__(self, name: str, config: Config):
        shape = (config.batch, *config.size, 3)
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, shape, np.uint8)
        self.images = jnp.asarray(pixels / 255 - 0.5, jnp.float32)
        model = jaxseg.create_model(name, config.num_classes, dtype=jnp.dtype(config.dtype))
        init = functools.partial(model.init, train=False)
        # compiling init takes longer than the forward pass; time does not depend on the values
        variables = jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32) * 0.02 + (x.ndim == 1)),
            jax.eval_shape(init, jax.random.key(0), self.images),
        )
        self.variables, params = variables, variables["params"]
        self.parameters = sum(x.size for x in jax.tree.leaves(params))
        model_state = {k: v for k, v in variables.items() if k != "params"}
        output = jax.eval_shape(functools.partial(model.apply, train=False), variables, self.images)
        self.label_size = output.logits.shape[1:3]
        self.labels = jnp.asarray(rng.integers(0, config.num_classes, (config.batch, *self.label_size)), jnp.int32)
        optimizer = optax.sgd(1e-3, 0.9)

        def step(state: TrainState, images: Any, labels: Any, key: Any) -> tuple[TrainState, Any]:
            def loss(params: Any) -> tuple[Any, Any]:
                output, model_state = model.apply(
                    {"params": params, **state.model_state},
                    images,
                    train=True,
                    rngs={"dropout": key},
                    mutable=["batch_stats"],
                )
                value = cross_entropy(output.logits, labels)
                if output.aux_logits is not None:
                    value += 0.4 * cross_entropy(output.aux_logits, labels)
                return value, model_state

            (value, model_state), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return TrainState(state.step + 1, params, model_state, opt_state, None), value

        fns = supervised(model, loss=cross_entropy, optimizer=optimizer)
        batch = {"image": jnp.asarray(pixels), "label": jnp.zeros(shape[:3], jnp.int32)}
        state = TrainState(jnp.int32(0), params, model_state, optimizer.init(params), None)
        key = jax.random.key(1)
        self.compile_seconds: dict[str, float] = {}
        forward: Any = self._compile("forward", functools.partial(model.apply, train=False), (), variables, self.images)
        train: Any = None
        update: Any = None
        if "train" in config.tasks:
            train = self._compile("train", step, 0, state, self.images, self.labels, key)
            update = self._compile("update", fns.update, 0, state, batch, key)
        states = {"train": jax.tree.map(jnp.copy, state), "update": jax.tree.map(jnp.copy, state)}

        def run(name: str, f: Callable, *args: Any) -> None:
            states[name], value = f(states[name], *args, key)
            jax.block_until_ready((states[name], value))

        self.calls = {
            "forward": lambda: jax.block_until_ready(forward(variables, self.images)),
            "train": lambda: run("train", train, self.images, self.labels),
            "update": lambda: run("update", update, batch),
        }

    def _compile(self, name: str, f: Callable, donated: Any, *args: Any) -> Callable:
        start = time.perf_counter()
        compiled = jax.jit(f, donate_argnums=donated).lower(*args).compile()
        self.compile_seconds[name] = time.perf_counter() - start
        return compiled


def torch_calls(model: torch.nn.Module, ours: Jaxseg, config: Config) -> dict[str, Callable[[], None]]:
    images = torch.tensor(np.asarray(ours.images)).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(np.asarray(ours.labels)).long()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    dtype = torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16")

    def forward() -> None:
        model.eval()
        with torch.inference_mode(), dtype:
            model(images)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with dtype:
            output = model(images)
        output = output if isinstance(output, dict) else {"out": output}
        loss = sum(
            weight * torch.nn.functional.cross_entropy(output[name].float(), labels)
            for name, weight in (("out", 1.0), ("aux", 0.4))
            if name in output
        )
        loss.backward()
        optimizer.step()

    return {"forward": forward, "train": train}


def alternate(calls: dict[str, Callable[[], None]], config: Config) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, median and half the interquartile range, taken in turns."""
    clock = time.process_time if config.clock == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(config.rounds + 1):
        for name, call in calls.items():
            if config.clock == "wall":
                time.sleep(0.05)  # threads of the one before still spin
            start = clock()
            call()
            if turn:  # the first warms up
                times[name].append(1e3 * (clock() - start))
    rows = {}
    for name, taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4)
        rows[name] = {"ms": round(median, 2), "spread_ms": round((high - low) / 2, 2)}
    return rows


def measure(name: str, config: Config) -> list[dict[str, Any]]:
    ours = Jaxseg(name, config)
    eager = torch_model(name, config.num_classes, ours.parameters)
    peers = {"eager": torch_calls(eager, ours, config)}
    unavailable = ""
    compile_seconds: dict[str, float] = {}
    if config.compiled:
        compiled = torch_calls(torch.compile(eager), ours, config)
        try:
            for task, call in compiled.items():
                start = time.perf_counter()
                call()
                compile_seconds[task] = time.perf_counter() - start
            peers["compiled"] = compiled
        except Exception as error:  # the compiler raises its own, a missing C++ compiler among them
            unavailable = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"
    rows = []
    for task in config.tasks:
        calls = {"jaxseg": ours.calls[task], **{f"torch {k}": peer[task] for k, peer in peers.items()}}
        if task == "train":
            calls["jaxseg update"] = ours.calls["update"]
        times = alternate(calls, config)
        row: dict[str, Any] = {
            "model": name,
            "task": task,
            "size": list(config.size),
            "batch": config.batch,
            "dtype": config.dtype,
            "parameters": ours.parameters,
            "threads": config.threads,
            "clock": config.clock,
            "times": times,
            "images_per_second": {k: round(1e3 * config.batch / v["ms"], 2) for k, v in times.items()},
            "ratio": {k: round(times["jaxseg"]["ms"] / v["ms"], 3) for k, v in times.items() if k.startswith("torch")},
            "compile_s": {"jaxseg": round(ours.compile_seconds[task], 1)},
        }
        if task in compile_seconds:
            row["compile_s"]["torch compiled"] = round(compile_seconds[task], 1)
        if unavailable:
            row["torch compiled"] = f"n/a ({unavailable})"
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = rich.table.Table("model", "task", "size", "batch", "what", "ms", "img/s", "jaxseg / it", "compile s")
    for row in rows:
        for what, taken in row["times"].items():
            table.add_row(
                row["model"],
                row["task"],
                "x".join(map(str, row["size"])),
                str(row["batch"]),
                what,
                f"{taken['ms']:.1f} ± {taken['spread_ms']:.1f}",
                f"{row['images_per_second'][what]:.1f}",
                f"{row['ratio'][what]:.2f}" if what in row["ratio"] else "",
                str(row["compile_s"].get(what, "")),
            )
        if "torch compiled" in row:
            table.add_row(row["model"], row["task"], "", "", "torch compiled", row["torch compiled"])
    rich.console.Console(width=120).print(table)


def facts() -> dict[str, Any]:
    root = pathlib.Path(__file__).parents[2]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


def main(config: Config) -> None:
    available = sorted(os.sched_getaffinity(0))
    threads = config.threads or len(available)
    if threads > len(available):
        raise SystemExit(f"--threads {threads}: this process may use {len(available)} cores")
    os.sched_setaffinity(0, available[:threads])  # XLA makes as many threads as it may use cores
    torch.set_num_threads(threads)
    config = dataclasses.replace(config, threads=threads)
    rows = []
    for name in config.models:
        rows += measure(name, config)
        show(rows[-len(config.tasks) :])
        if config.json is not None:  # after each model: the next may not fit in memory
            kept = json.loads(config.json.read_text()) if config.json.exists() else []
            kept += [{**row, **facts()} for row in rows[-len(config.tasks) :]]
            config.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
