"""What a compiled program will cost on a chip that need not be here: memory, FLOPs, collectives, the roofline.

`jaxseg.parallel.topology_devices` gives the devices of a named TPU topology to compile for.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import PyTree

from jaxseg.hlo import collectives, traffic
from jaxseg.parallel import Placement
from jaxseg.programs import forward, training

__all__ = [
    "CHIPS",
    "Chip",
    "Cost",
    "Lowered",
    "compile_apply",
    "compile_train",
    "lower_apply",
    "lower_train",
    "matmul_flops",
    "program_cost",
]


class Chip(NamedTuple):
    """One chip as its maker states it."""

    memory: float  # bytes of HBM
    flops: float  # a second, bfloat16
    bandwidth: float  # bytes a second, HBM


# cloud.google.com/tpu/docs, system architecture: v4, v5e, v5p, v6e
CHIPS = {
    "v4": Chip(32e9, 275e12, 1228e9),
    "v5e": Chip(16e9, 197e12, 819e9),
    "v5p": Chip(95e9, 459e12, 2765e9),
    "v6e": Chip(32e9, 918e12, 1640e9),
}


class Cost(NamedTuple):
    """A program's cost on each device."""

    arguments: int  # bytes; donated ones are outputs too
    temporaries: int
    peak: int  # arguments, outputs that alias none of them, temporaries and the code
    flops: float
    bytes: float  # read and written, as XLA estimates it
    matmul_share: float  # of the FLOPs before partitioning, in convolutions and matrix products
    float32_share: float  # of those of convolutions and products, in float32 or wider
    padding: float  # of the bytes that instructions write, the share that fills up tiles
    copied: int  # bytes that copies between layouts write
    indexed: int  # gathers and scatters
    collectives: dict[str, tuple[int, int]]  # kind -> number, bytes

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / max(self.bytes, 1.0)

    def roofline(self, chip: Chip) -> float:
        """Seconds that no schedule can beat: the larger of arithmetic and memory traffic."""
        return max(self.flops / chip.flops, self.bytes / chip.bandwidth)


class Lowered(NamedTuple):
    """A program as it is handed to a platform's compiler."""

    platform: str
    operations: int
    convolutions: dict[str, int]  # of each dtype
    transposes: int
    gathers: int
    custom_calls: dict[str, int]  # what the platform must bring, by target
    stablehlo_bytes: int


def _taps(n_in: int, n_out: int, kernel: int, stride: int, low: int, lhs: int, rhs: int) -> int:
    """Pairs of an output and a kernel tap that meet a sample, and neither padding nor a dilation's zero."""
    span = (n_in - 1) * lhs
    places = (i * stride + k * rhs - low for i in range(n_out) for k in range(kernel))
    return sum(0 <= at <= span and at % lhs == 0 for at in places)


def _conv_flops(eqn: Any) -> float:
    p, (x, kernel), out = eqn.params, (v.aval for v in eqn.invars), eqn.outvars[0].aval
    spec = p["dimension_numbers"]
    taps = 1
    for axis in range(len(p["window_strides"])):
        taps *= _taps(
            x.shape[spec.lhs_spec[2 + axis]],
            out.shape[spec.out_spec[2 + axis]],
            kernel.shape[spec.rhs_spec[2 + axis]],
            p["window_strides"][axis],
            p["padding"][axis][0],
            p["lhs_dilation"][axis],
            p["rhs_dilation"][axis],
        )
    channels = kernel.shape[spec.rhs_spec[1]]  # each output channel sees those of its group
    return 2.0 * out.shape[spec.out_spec[0]] * out.shape[spec.out_spec[1]] * channels * taps / p["batch_group_count"]


def _dot_flops(eqn: Any) -> float:
    contracted = eqn.params["dimension_numbers"][0][0]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[a] for a in contracted)


def _mapped_devices(eqn: Any) -> int:
    return math.prod(eqn.params["mesh"].shape[axis] for axis in eqn.params["newly_manual_axes"])


def _mapped(jaxpr: Any) -> int:
    """How many devices a program's step is mapped over; 1 for none."""
    return max((_mapped_devices(eqn) for eqn in jaxpr.eqns if eqn.primitive.name == "shard_map"), default=1)


def matmul_flops(jaxpr: Any, *, platform: str | None = None, narrowest: int = 0) -> float:
    """FLOPs of a jaxpr's convolutions and matrix products, zeros of padding left out; scans times their length, and
    what is mapped over axes of a mesh times their devices.

    Of those alone whose operands have items of at least `narrowest` bytes. Where a form was chosen by platform
    (`jax.lax.platform_dependent`), that of `platform`, and else the default; of other branches the largest.
    """
    inner_flops = functools.partial(matmul_flops, platform=platform, narrowest=narrowest)
    total = 0.0
    for eqn in jaxpr.eqns:
        match eqn.primitive.name:
            case "conv_general_dilated" | "dot_general" if eqn.invars[0].aval.dtype.itemsize < narrowest:
                pass
            case "conv_general_dilated":
                total += _conv_flops(eqn)
            case "dot_general":
                total += _dot_flops(eqn)
            case "cond":
                branches, forms = eqn.params["branches"], eqn.params.get("branches_platforms")
                if forms is not None:
                    its = [b for b, names in zip(branches, forms, strict=True) if names and platform in names]
                    branches = its or [b for b, names in zip(branches, forms, strict=True) if not names] or branches
                total += max(inner_flops(branch.jaxpr) for branch in branches)
            case name:
                inner = [getattr(p, "jaxpr", p) for p in eqn.params.values() if hasattr(getattr(p, "jaxpr", p), "eqns")]
                times = eqn.params["length"] if name == "scan" else 1
                if name == "shard_map":
                    times = _mapped_devices(eqn)
                total += times * sum(map(inner_flops, inner))
    return total


def program_cost(traced: Any, lowered: Any, compiled: Any, devices: int, platform: str) -> Cost:
    """The cost of `jax.jit(f).trace(...)`, lowered and compiled for `devices` of `platform`."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    outputs = max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    # before partitioning, for the compiled program counts padding to its tiles; a TPU that is not here says only that
    before = (lowered.cost_analysis() or {}).get("flops", math.nan) * _mapped(traced.jaxpr.jaxpr)  # counts a device's
    whole = cost.get("flops", math.nan) * devices if math.isnan(before) else before
    products = matmul_flops(traced.jaxpr.jaxpr, platform=platform)
    wide = matmul_flops(traced.jaxpr.jaxpr, platform=platform, narrowest=4)
    text = compiled.as_text()
    written = traffic(text)
    return Cost(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=held + outputs,
        flops=whole / devices,
        bytes=cost.get("bytes accessed", math.nan),
        matmul_share=min(products / whole, 1.0) if whole else math.nan,
        float32_share=wide / products if products else 0.0,
        padding=written.padding / max(written.bytes, 1),
        copied=written.copied,
        indexed=written.indexed,
        collectives=collectives(text),
    )


def _compile(program: Callable, arguments: tuple[PyTree, ...], devices: int, platform: str) -> Cost:
    traced = program.trace(*arguments)  # type: ignore[attr-defined]
    lowered = traced.lower(lowering_platforms=(platform,))
    return program_cost(traced, lowered, lowered.compile(), devices, platform)


def compile_train(
    model: nn.Module, placement: Placement, size: tuple[int, int], batch: int, *, devices: int, platform: str = "tpu"
) -> Cost:
    """Cost of one training step on `batch` images of `size`: see `jaxseg.programs.training`."""
    fns, shapes = training(model, size, batch)
    key = jax.random.key(0)
    state = placement.shape_saved(jax.eval_shape(fns.init, key, shapes))
    update = placement.compile_update(fns.update)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    keys = jax.ShapeDtypeStruct(key.shape, key.dtype)
    return _compile(update, (state, placement.shape_batch(shapes), keys, step), devices, platform)


def compile_apply(
    model: nn.Module, placement: Placement, size: tuple[int, int], batch: int, *, devices: int, platform: str = "tpu"
) -> Cost:
    """Cost of one forward pass of `batch` images of `size`."""
    program = forward(model, size, batch)
    arguments = placement.shape_saved(program.variables), *placement.shape_batch(program.inputs)
    return _compile(jax.jit(program.apply), arguments, devices, platform)


def _lower(f: Callable, arguments: tuple[PyTree, ...], platform: str) -> Lowered:
    exported = export.export(jax.jit(f), platforms=(platform,))(*arguments)
    text = exported.mlir_module()

    def counted(pattern: str) -> dict[str, int]:
        return dict(Counter(re.findall(pattern, text)))

    return Lowered(
        platform=platform,
        operations=len(re.findall(r"= \"?(?:stablehlo|chlo)\.", text)),
        convolutions=counted(r"stablehlo\.convolution.*-> tensor<(?:\d+x)*(\w+)>"),
        transposes=len(re.findall(r"stablehlo\.transpose", text)),
        gathers=len(re.findall(r"\"stablehlo\.(?:dynamic_)?gather\"\(", text)),
        custom_calls=counted(r"stablehlo\.custom_call @(\w+)"),
        stablehlo_bytes=len(exported.mlir_module_serialized),
    )


def lower_train(model: nn.Module, size: tuple[int, int], batch: int, platform: str) -> Lowered:
    """One training step on `batch` images of `size`, lowered by jax.export for a platform that need not be here."""
    fns, shapes = training(model, size, batch)
    key = jax.random.key(0)
    state = jax.eval_shape(fns.init, key, shapes)

    def update(state: PyTree, batch: PyTree, bits: jax.Array) -> PyTree:
        return fns.update(state, batch, jax.random.wrap_key_data(bits))

    bits = jax.eval_shape(jax.random.key_data, key)
    return _lower(update, (state, shapes, bits), platform)


def lower_apply(model: nn.Module, size: tuple[int, int], batch: int, platform: str) -> Lowered:
    """One forward pass, lowered likewise."""
    program = forward(model, size, batch)
    return _lower(program.apply, (program.variables, *program.inputs), platform)
