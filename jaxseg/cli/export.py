"""`jaxseg export`: a model with its weights as one file that runs without jaxseg."""

import dataclasses
import os
import pathlib
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from jaxseg.cli.arguments import Size, demand_output, demand_positive
from jaxseg.cli.detect import load_detector
from jaxseg.cli.trained import load_trained
from jaxseg.export import PLATFORMS, export_onnx, export_stablehlo, forward, run_artifact
from jaxseg.models import DETECTORS

__all__ = ["Export", "export_command"]

TOLERANCE = 1e-4  # of outputs scaled to order 1


@dataclasses.dataclass(frozen=True)
class Export:
    """Export a model with its weights: StableHLO that jax alone runs, or ONNX; the file is run and compared.

    One for other platforms than this machine's is written without that, which is said.
    """

    model: tyro.conf.Positional[str]
    """The folder of a run or of a converted checkpoint, or a model's name with --weights."""
    out: pathlib.Path
    """The file; .onnx is ONNX, any other name StableHLO."""
    weights: pathlib.Path | None = None
    """A published checkpoint, or a folder as above."""
    size: Size | None = None
    """Height x width of the images; default: any that the model takes (ONNX: 512x512, or a run's)."""
    batch: int | None = None
    """Images at once; default: any number (ONNX: 1)."""
    classes: int | None = None
    """Number of classes, to be sure: the weights say it, and another number is an error."""
    platforms: tuple[str, ...] = PLATFORMS
    """What a StableHLO file runs on."""


def _difference(written: np.ndarray, ours: np.ndarray) -> float:
    """The largest, of outputs scaled to order 1; classes and `valid` count as numbers."""
    a, b = np.asarray(written, np.float64), np.asarray(ours, np.float64)
    return float(np.abs(a - b).max(initial=0.0) / max(1.0, float(np.std(b)) if b.size else 1.0))


def _example(model: Any, n: int, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Noise of the images' size, or of what the model takes instead.

    A detector is told that the lower quarter is padding, and where to look.
    """
    rng = np.random.default_rng(0)
    images = rng.standard_normal((n, *size, 3), np.float32)
    if not hasattr(model, "detect_boxes"):
        shape = jax.ShapeDtypeStruct(images.shape, np.float32)
        inputs = model.inputs(shape) if hasattr(model, "inputs") else (shape,)  # a generator's are latents
        return tuple(  # and perhaps classes
            np.zeros(x.shape, x.dtype) if x.dtype.kind == "i" else rng.standard_normal(x.shape, np.float32)
            for x in inputs
        )
    height, width = max(size[0] * 3 // 4, 1), size[1]
    sizes = np.tile(np.array([height, width], np.int32), (n, 1))
    if hasattr(model, "propose"):
        return images, sizes
    corners = rng.random((n, model.max_proposals, 2, 2), np.float32) * np.array([width, height], np.float32)
    return images, sizes, np.sort(corners, 2).reshape(n, -1, 4)


def _platform() -> str:
    """This machine's, by the names of PLATFORMS."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version else "cuda"


def _in_places_of(ours: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of `found` the detection nearest to each of `ours`: rounding orders those of nearly the same score."""
    a, b = ours, found
    apart = np.abs(a["boxes"][:, :, None] - b["boxes"][:, None]).max(-1)
    other = (a["classes"][:, :, None] != b["classes"][:, None]) | (a["valid"][:, :, None] != b["valid"][:, None])
    nearest = np.where(other, np.inf, apart).argmin(2)
    return {name: np.stack([x[i] for x, i in zip(array, nearest, strict=True)]) for name, array in b.items()}


def _worst(written: Any, ours: Any) -> float:
    if isinstance(ours, dict) and "valid" in ours:  # both ways, for none may be too many
        pairs = [(_in_places_of(ours, written), ours), (written, _in_places_of(written, ours))]
    else:
        pairs = [(written, ours)]
    return max(
        _difference(a, b)
        for one, other in pairs
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def _checked(path: pathlib.Path, model: Any, variables: Any, n: int, size: tuple[int, int]) -> tuple[str, float]:
    """The shapes of what the file gives, and how far it is from the model. Raises ValueError beyond TOLERANCE."""
    given = _example(model, n, size)
    written = run_artifact(path, *given)
    worst = _worst(written, jax.tree.map(np.asarray, jax.jit(forward(model, variables))(*given)))
    if not worst <= TOLERANCE:
        raise ValueError(
            f"what was exported differs from the model by {worst:.1e}, more than {TOLERANCE:.0e}: nothing is written"
        )
    return " ".join(str(x.shape) for x in jax.tree.leaves(written)), worst


def export_command(config: Annotated[Export, tyro.conf.arg(name="")]) -> int:
    """Export a model with its weights, and check what was written."""
    demand_positive(batch=config.batch)
    demand_output(config.out, file=True)
    onnx = config.out.suffix == ".onnx"
    if onnx and config.platforms != PLATFORMS:
        raise ValueError("--platforms are of StableHLO; an ONNX file has none")
    if config.model in DETECTORS and config.weights is not None and config.weights.is_file():
        model, variables = load_detector(config.model, config.weights, config.classes)
        if config.size is None:
            raise ValueError(f"{config.model} has anchors for one size: give --size, a canvas such as 800x1344")
        size = config.size
    else:
        model, variables, trained_size, _ = load_trained(config.model, config.weights, config.classes, None)
        side = getattr(model, "resolution", None)
        if side is not None and config.size not in (None, (side, side)):
            wrong = "x".join(map(str, config.size))
            raise ValueError(f"{config.model} makes or sees {side}x{side}, not {wrong}: leave --size out")
        size = config.size or trained_size
    data: bytes | bytearray
    if onnx:
        data = export_onnx(model, variables, size=size, batch=config.batch or 1)
        shape = " ".join(jax.typeof(x).str_short() for x in _example(model, config.batch or 1, size))
    else:
        program = export_stablehlo(model, variables, size=config.size, batch=config.batch, platforms=config.platforms)
        data, shape = program.serialize(), " ".join(aval.str_short() for aval in program.in_avals)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    staged = config.out.with_stem(config.out.stem + ".tmp")
    try:
        try:
            staged.write_bytes(data)
        except OSError as error:  # a full disk names no file
            raise OSError(f"{config.out} cannot be written ({error.strerror}): nothing is") from error
        checked = (
            _checked(staged, model, variables, config.batch or 1, size)
            if onnx or _platform() in config.platforms
            else None
        )
        os.replace(staged, config.out)
    finally:
        staged.unlink(missing_ok=True)
    print(f"wrote {config.out}, {len(data) / 1e6:.1f} MB: {shape}{'' if checked is None else ' -> ' + checked[0]}")
    if checked is None:
        print(f"not run: it is for {', '.join(config.platforms)}, and this is {_platform()}")
    else:
        noise = " ".join(jax.typeof(x).str_short() for x in _example(model, config.batch or 1, size))
        print(f"run on noise, {noise}, it is within {checked[1]:.1e} of the model")
    return 0
