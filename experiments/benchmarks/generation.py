"""Generation and style transfer beside the same in PyTorch, alternately in one process.

    python experiments/benchmarks/generation.py --threads 1 --clock cpu

PyTorch's side is tests/golden's transcriptions, of pytorch-AdaIN and of genforce, with the same weights and inputs, and
outputs are compared before they are timed. Rows: StyleGAN's generator forward; its discriminator's gradient of the
logistic loss with R1; AdaIN of features at relu4_1; a doubling, a 3x3 convolution and the blur after it; stylization of
an image, style and all, whose images a second are frames a second. The last line is the sum. Needs the parity extra; of
the clock see throughput.py.
"""

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

sys.path += [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2] / "tests")]
import torch_device
from golden import adain, generation

import jaxseg
from jaxseg.bench.measure import Setting, alternate, facts
from jaxseg.losses.adversarial import logistic, r1_penalty
from jaxseg.ops.adain import adaptive_instance_norm
from jaxseg.ops.doubling import conv_after_doubling
from jaxseg.ops.generation import blur
from jaxseg.weights import to_genforce
from jaxseg.weights.genforce import blank_variables


@dataclasses.dataclass(frozen=True)
class Config:
    rows: tuple[str, ...] = ("generator", "discriminator_r1", "adain", "doubling_blur", "stylize")
    resolution: int = 64
    """Of the generator and the discriminator, which have the published channels."""
    batch: int = 4
    size: int = 256
    """Of the stylized image and of its style."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of compute, in both."""
    tolerance: float = 1e-2
    """Of the largest difference, in deviations of PyTorch's output: that the two compute the same. Parity is tested."""
    rounds: int = 7
    threads: int = 0
    """For each of the two; 0: as many as this process may use."""
    clock: Literal["wall", "cpu"] = "wall"
    compiled: bool = False
    """Also torch.compile."""
    json: pathlib.Path | None = None
    """File to add the rows to."""


class Pair(NamedTuple):
    """One computation twice: `ours(*args)`, and `theirs()`, which is `shown` of it."""

    images: int
    ours: Callable[..., Any]
    args: tuple[Any, ...]
    theirs: Callable[[], torch.Tensor]
    shown: Callable[[Any], Any] = lambda output: output


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _network(name: str, config: Config) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A network with weights as training has them, and genforce's state_dict of these."""
    model = jaxseg.create_model(name, resolution=config.resolution, dtype=jnp.dtype(config.dtype))

    def fill(path: Any, leaf: Any) -> Any:
        name = "/".join(key.key for key in path)
        scale = 100 if "mapping/dense" in name and name.endswith("kernel") else 1
        return jnp.asarray(_normal(*leaf.shape) * (scale if name.endswith(("kernel", "const", "map")) else 0.1))

    variables = jax.tree_util.tree_map_with_path(fill, blank_variables(model))
    return model, variables, generation.tensors(to_genforce(model, variables))


def generator(config: Config) -> Pair:
    model, variables, p = _network("stylegan_generator", config)
    z = _normal(config.batch, 512)
    p, latents = {name: weight.detach() for name, weight in p.items()}, torch.tensor(z)
    theirs = torch.no_grad()(lambda: generation.stylegan_generate(p, latents, config.resolution))
    return Pair(config.batch, lambda v, z: model.apply(v, z, train=False), (variables, z), theirs)


def discriminator_r1(config: Config) -> Pair:
    model, variables, p = _network("stylegan_discriminator", config)
    real, fake = (_normal(config.batch, config.resolution, config.resolution, 3, seed=i) for i in (1, 2))

    def ours(params: Any, real: Any, fake: Any) -> Any:
        def loss(params: Any) -> Any:
            score = lambda x: model.apply({"params": params}, x, train=True).score  # noqa: E731
            return logistic(score(real), score(fake)) + 5 * r1_penalty(score, real)

        return jax.grad(loss)(params)

    def theirs() -> torch.Tensor:
        x, generated = torch_device.images_first(real).requires_grad_(), torch_device.images_first(fake)
        softplus = torch.nn.functional.softplus
        scores = (
            generation.discriminate(p, x, blur=True),
            generation.discriminate(p, generated, blur=True),
        )
        (gradient,) = torch.autograd.grad(scores[0].sum(), x, create_graph=True)
        loss = (softplus(-scores[0]) + softplus(scores[1])).mean() + 5 * gradient.square().sum((1, 2, 3)).mean()
        weights = {name: tensor for name, tensor in p.items() if tensor.requires_grad}
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)  # earlier stages' are unused
        return dict(zip(weights, found, strict=True))["layer0.weight"]

    shown = lambda grads: grads[f"conv_{config.resolution}_0"]["kernel"].transpose(3, 2, 0, 1)  # noqa: E731
    return Pair(config.batch, ours, (variables["params"], real, fake), theirs, shown)


def adain_of_features(config: Config) -> Pair:
    side = config.size // 8
    content, style = (_normal(config.batch, side, side, 512, seed=i) for i in (1, 2))
    dtype = jnp.dtype(config.dtype)
    tensors = [torch_device.images_first(x).to(getattr(torch, config.dtype)) for x in (content, style)]

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        (mean, std), (own_mean, own_std) = adain.moments(tensors[1]), adain.moments(tensors[0])
        return (tensors[0] - own_mean) / own_std * std + mean

    args = (jnp.asarray(content, dtype), jnp.asarray(style, dtype))
    return Pair(config.batch, adaptive_instance_norm, args, theirs)


def doubling_blur(config: Config) -> Pair:
    side, dtype = config.resolution // 2, jnp.dtype(config.dtype)
    x, kernel = _normal(config.batch, side, side, 256), _normal(3, 3, 256, 128, seed=1) / 48
    theirs_x, weight = torch_device.images_first(x), torch.tensor(kernel).permute(3, 2, 0, 1).contiguous()
    theirs_x, weight = (t.to(getattr(torch, config.dtype)) for t in (theirs_x, weight))

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return generation.blurred(torch.nn.functional.conv2d(generation.doubled(theirs_x), weight, padding=1))

    ours = lambda x, kernel: blur(conv_after_doubling(x, kernel))  # noqa: E731
    return Pair(config.batch, ours, (jnp.asarray(x, dtype), jnp.asarray(kernel)), theirs)


def stylize(config: Config) -> Pair:
    model = jaxseg.create_model("adain_transfer", dtype=jnp.dtype(config.dtype))
    blank = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    shapes = jax.eval_shape(lambda k, x: model.init(k, x, x, train=False), jax.random.key(0), blank)
    he = lambda s: _normal(*s.shape) * (2 / np.prod(s.shape[:-1])) ** 0.5  # noqa: E731
    variables = jax.tree.map(lambda s: jnp.asarray(he(s) if len(s.shape) > 1 else 0 * he(s)), shapes)
    networks = adain.reference(variables)
    photo, painting = (_normal(1, config.size, config.size, 3, seed=i) / 4 + 0.5 for i in (1, 2))
    tensors = [torch_device.images_first(x) for x in (photo, painting)]
    theirs = torch.no_grad()(lambda: adain.transfer(networks, *tensors))
    return Pair(1, lambda v, x, y: model.apply(v, x, y, train=False), (variables, photo, painting), theirs)


ROWS: dict[str, Callable[[Config], Pair]] = {
    "generator": generator,
    "discriminator_r1": discriminator_r1,
    "adain": adain_of_features,
    "doubling_blur": doubling_blur,
    "stylize": stylize,
}


def measure(name: str, config: Config) -> dict[str, Any]:
    pair = ROWS[name](config)
    args = jax.tree.map(jnp.asarray, pair.args)
    start = time.perf_counter()
    ours = jax.jit(pair.ours).lower(*args).compile()
    compile_seconds = {"jaxseg": round(time.perf_counter() - start, 1)}
    autocast = torch_device.autocast(config.dtype)

    def eager() -> torch.Tensor:
        with autocast:
            return pair.theirs()

    a, b = np.asarray(pair.shown(ours(*args)), np.float32), eager().float().cpu().numpy()
    b = b.transpose(0, 2, 3, 1) if a.shape != b.shape else b
    difference = float(np.abs(a - b).max() / b.std())
    if difference > config.tolerance:
        raise SystemExit(f"{name}: the two differ by {difference:.1e} deviations, more than {config.tolerance:.0e}")
    calls: dict[str, Callable[[], Any]] = {
        "jaxseg": lambda: jax.block_until_ready(ours(*args)),
        "torch eager": torch_device.finished(eager),
    }
    if config.compiled:
        compiled = torch_device.finished(torch.compile(eager))
        start = time.perf_counter()
        try:
            compiled()
            compile_seconds["torch compiled"] = round(time.perf_counter() - start, 1)
            calls["torch compiled"] = compiled
        except Exception as error:  # the compiler raises its own; it knows no gradient of a gradient
            print(f"{name}: no torch.compile: {type(error).__name__}: {str(error).strip().splitlines()[0][:100]}")
    times = alternate(calls, Setting(rounds=config.rounds, clock=config.clock))
    size = config.size if name in ("adain", "stylize") else config.resolution
    return {
        "model": name,
        "task": "forward" if name != "discriminator_r1" else "gradient",
        "size": [size, size],
        "batch": pair.images,
        "dtype": config.dtype,
        "threads": config.threads,
        "clock": config.clock,
        "times": times,
        "images_per_second": {k: round(1e3 * pair.images / v["ms"], 2) for k, v in times.items()},
        "ratio": {k: round(times["jaxseg"]["ms"] / v["ms"], 3) for k, v in times.items() if k != "jaxseg"},
        "compile_s": compile_seconds,
        "difference": difference,
    }


def main(config: Config) -> list[dict[str, Any]]:
    available = sorted(os.sched_getaffinity(0))
    threads = config.threads or len(available)
    os.sched_setaffinity(0, available[:threads])  # XLA makes as many threads as it may use cores
    torch.set_num_threads(threads)
    torch_device.beside_jax()
    config = dataclasses.replace(config, threads=threads)
    rows = []
    for name in config.rows:
        rows.append(measure(name, config))
        times = ", ".join(f"{what} {t['ms']:.1f} ± {t['spread_ms']:.1f} ms" for what, t in rows[-1]["times"].items())
        print(f"{name}: {times}", flush=True)
    for peer in rows[0]["ratio"]:
        shared = [row for row in rows if peer in row["times"]]
        ours, theirs = (sum(row["times"][what]["ms"] for row in shared) for what in ("jaxseg", peer))
        print(f"{len(shared)} rows: {ours:.0f} ms, {peer} {theirs:.0f} ms: {theirs / ours:.2f} times as fast")
    if config.json is not None:
        kept = json.loads(config.json.read_text()) if config.json.exists() else []
        config.json.write_text(json.dumps([*kept, *({**row, **facts()} for row in rows)], indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
