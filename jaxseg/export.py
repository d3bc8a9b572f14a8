"""A model with its weights as one program that runs without jaxseg: StableHLO by jax.export, or ONNX.

The program maps images as the model takes them (float32 `[n, h, w, 3]`, RGB, normalised) to its logits, or, of a
detector, to its boxes, scores, classes, masks and `valid`, suppression included; a generator's takes latents.

Beside the images a detector's program takes their true sizes, int32 `[n, 2]` (h, w), below and to the right of which
they are padding; that of one without proposals of its own (R-CNN, Fast R-CNN) also boxes, float32
`[n, max_proposals, 4]`, of which those without area are padding.
"""

import dataclasses
import operator
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import PyTree

from jaxseg.ops.boxes import given_proposals

__all__ = ["PLATFORMS", "export_onnx", "export_stablehlo", "forward", "run_artifact"]

PLATFORMS = ("cpu", "cuda", "tpu")
OPEN_SIZES = ("h, w", "32*h, 32*w")  # the first that a model traces with: any size, or whole multiples of its stride


def forward(model: nn.Module, variables: PyTree) -> Callable[..., Any]:
    """Images to logits, or to a dict of arrays for a model with several outputs; the weights are constants of it."""

    def apply(*inputs: Any) -> Any:
        if hasattr(model, "detect_boxes") and len(inputs) == 3:
            inputs = (*inputs[:2], given_proposals(inputs[2]))
        output: Any = model.apply(variables, *inputs, train=False)
        if hasattr(output, "logits"):
            return output.logits
        if not dataclasses.is_dataclass(output):  # an image
            return output
        named = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
        return {name: array for name, array in named.items() if array is not None}

    return apply


def _inputs(
    model: nn.Module, size: tuple[int, int] | None, batch: int | None
) -> Iterator[tuple[jax.ShapeDtypeStruct, ...]]:
    """What the inputs may be, the most open form first."""
    n = "n" if batch is None else str(batch)
    for hw in OPEN_SIZES if size is None else (f"{size[0]}, {size[1]}",):
        images = jax.ShapeDtypeStruct(export.symbolic_shape(f"{n}, {hw}, 3"), jnp.float32)
        if hasattr(model, "detect_boxes"):
            yield images, *_with_images(model, images.shape[0])
        else:
            yield model.inputs(images) if hasattr(model, "inputs") else (images,)


def _with_images(detector: Any, n: Any) -> Iterator[jax.ShapeDtypeStruct]:
    """What a detector is told beside its `n` images."""
    yield jax.ShapeDtypeStruct((n, 2), jnp.int32)
    if not hasattr(detector, "propose"):
        yield jax.ShapeDtypeStruct((n, detector.max_proposals, 4), jnp.float32)


def export_stablehlo(
    model: nn.Module,
    variables: PyTree,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """One program for all `platforms`, weights included; `.serialize()` gives the bytes of a file.

    `size` (h, w) and `batch` are left open where they are None: the program then takes any batch, and any size
    or, where the model's own arithmetic needs it, multiples of 32; `.in_avals` says which. Raises ValueError
    for a model that fixes its size, such as a U-Net of valid convolutions, when `size` is None, and for an
    unknown platform.
    """
    unknown = sorted(set(platforms) - {*PLATFORMS, "rocm"})
    if unknown or not platforms:
        raise ValueError(f"no platform {', '.join(unknown) or 'named'}; there are {', '.join(PLATFORMS)}, rocm")
    program = export.export(jax.jit(forward(model, variables)), platforms=tuple(platforms))
    failure: Exception | None = None
    for inputs in _inputs(model, size, batch):
        try:
            return program(*inputs)
        except (jax.errors.InconclusiveDimensionOperation, jax.errors.ConcretizationTypeError, TypeError) as error:
            failure = error
        except ValueError as error:  # the model refuses this size, in its own words
            if size is not None:
                raise
            failure = error
    raise ValueError(
        f"{type(model).__name__} does not trace with an open size ({str(failure).splitlines()[0]}); "
        "give the size, and of a discriminator the batch, that the program shall have"
    ) from failure


def _onnx_form(*arguments: Any, default: Callable, onnx: Callable | None = None, **platforms: Callable) -> Any:
    return (onnx or default)(*arguments)


def _one_by_one(f: Callable, *axes: Any, _vmap: Callable = jax.vmap, **named_axes: Any) -> Callable:
    """`jax.vmap`, which over first axes alone is unrolled."""
    if axes or named_axes:
        return _vmap(f, *axes, **named_axes)

    def each(*batches: Any) -> Any:
        n = len(jax.tree.leaves(batches)[0])
        outputs = [f(*jax.tree.map(operator.itemgetter(i), batches)) for i in range(n)]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)

    return each


def export_onnx(model: nn.Module, variables: PyTree, *, size: tuple[int, int], batch: int = 1) -> bytes:
    """The model with its weights as an ONNX file of fixed shapes, NHWC, by jax2onnx.

    A detector's inputs are named `images`, `sizes` and, without proposals of its own, `proposals`; several outputs have
    the names that `forward` gives them. Raises ImportError that names the extra where jax2onnx is not installed, and
    ValueError for a model that it cannot say in ONNX.
    """
    try:
        import onnx_ir
        from jax2onnx import to_onnx
        from onnx_ir.passes import common
    except ImportError as error:
        raise ImportError(
            "ONNX needs the converter: pip install 'jaxseg[onnx]' && pip install --no-deps jax2onnx"
        ) from error
    shapes = list(next(_inputs(model, size, batch)))
    apply = forward(model, variables)
    numpy = dict(vars(jnp))

    def traced(*inputs: Any) -> Any:
        # ONNX has no platforms to choose by, and the converter no such primitive, nor a gather that is batched
        # and within a loop; its own jax.numpy loses the type that a number takes from the array beside it
        with (
            mock.patch.object(jax.lax, "platform_dependent", _onnx_form),
            mock.patch.object(jax, "vmap", _one_by_one),
            mock.patch.dict(vars(jnp), numpy),
        ):
            return apply(*inputs)

    names: dict[str, Any] = {}
    outputs = jax.eval_shape(apply, *shapes)
    if isinstance(outputs, dict):
        names["output_names"] = sorted(outputs)  # as jax flattens them
    if hasattr(model, "detect_boxes"):
        names["input_names"] = ["images", "sizes", "proposals"][: len(shapes)]
    try:
        model_ir: Any = to_onnx(traced, inputs=shapes, return_mode="ir", **names)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(
            f"jax2onnx cannot say {type(model).__name__} in ONNX ({said}); export StableHLO: a name without .onnx"
        ) from error
    common.RemoveUnusedNodesPass()(model_ir)
    common.LiftSubgraphInitializersToMainGraphPass()(model_ir)
    common.DeduplicateInitializersPass(size_limit=2**31)(model_ir)  # kernels of all levels, tables of all loops
    return onnx_ir.to_proto(model_ir).SerializeToString()


def run_artifact(path: str | os.PathLike, *inputs: Any) -> Any:
    """Outputs of an exported file, several of them by name: by jax alone, or by onnxruntime for a `.onnx`."""
    path = pathlib.Path(path)
    if path.suffix != ".onnx":
        return jax.tree.map(np.asarray, export.deserialize(bytearray(path.read_bytes())).call(*inputs))
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("running ONNX needs onnxruntime: pip install 'jaxseg[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, and not each constant that it folds
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    outputs = session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))
    return outputs[0] if len(outputs) == 1 else {x.name: y for x, y in zip(session.get_outputs(), outputs, strict=True)}
