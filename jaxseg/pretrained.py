"""Fresh variables with trained ones in them: from a run, a published model, or its backbone alone."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import PyTree

from jaxseg.backbones.resnet import ResNet
from jaxseg.backbones.vgg import VGG
from jaxseg.models import create_model
from jaxseg.runs import load_variables
from jaxseg.weights import (
    WeightsMismatch,
    from_published,
    load_encoder,
    load_published,
    published_arguments,
    read_weights,
)
from jaxseg.weights.files import weights_file

__all__ = ["fields_of", "start_from"]


BACKBONES = (("backbone", "body"), ("backbone",), ("encoder",))  # where a model has what ImageNet's weights are of


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree.get(name) if tree is not None else None
    return tree


def _put(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    return value if not path else {**tree, path[0]: _put(tree[path[0]], path[1:], value)}


def _backbone_from(path: pathlib.Path, model: nn.Module, variables: PyTree) -> PyTree:
    """`variables` with the backbone's from a file of ImageNet's classification weights, by its publisher's names."""
    found: dict[tuple[str, ...], nn.Module] = {}

    def note(call: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        if context.method_name == "__call__" and context.module.path in BACKBONES:
            found[context.module.path] = context.module.clone(parent=None, name=None)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):  # the backbone as the model makes it: its stem, its dilations
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    if not found:
        raise WeightsMismatch(f"{type(model).__name__} has no backbone")
    place = next(p for p in BACKBONES if p in found)  # a pyramid's body before the pyramid
    backbone = found[place]
    if isinstance(backbone, VGG):
        return load_encoder(path, variables)
    state = read_weights(path)
    if isinstance(backbone, ResNet) and len(backbone.depths) < 4:  # C4, whose last stage is the boxes' head
        state = {name: array for name, array in state.items() if not name.startswith("layer4.")}
    own = {c: _at(tree, place) for c, tree in variables.items() if _at(tree, place) is not None}
    loaded = from_published(state, backbone, own, where=str(path)).variables
    return {c: _put(tree, place, loaded[c]) if c in loaded else tree for c, tree in variables.items()}


def fields_of(path: pathlib.Path | None, name: str) -> dict[str, Any]:
    """Fields in which the model at `path`, a published checkpoint or a converted one, differs from that of the name.

    None of them for a run, a backbone alone or no path. Raises ValueError and OSError as `read_weights`.
    """
    if path is None or (path / "checkpoints").is_dir() or path.suffix == ".npz":
        return {}
    try:
        arguments, _ = published_arguments(name, path)
    except WeightsMismatch:  # a backbone's
        return {}
    usual = create_model(name, arguments.pop("num_classes"))
    changed = {k: v for k, v in arguments.items() if k != "name" and getattr(usual, k) != v}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}  # as JSON has them


def start_from(path: pathlib.Path, model: nn.Module) -> Callable[[PyTree], PyTree]:
    """A function from fresh variables to variables with what a run's folder, a converted one or a published file holds.

    Raises WeightsMismatch where it is neither of the model nor of its encoder.
    """

    def from_run(variables: PyTree) -> tuple[PyTree, str]:
        trained = traverse_util.flatten_dict(load_variables(path)[0])
        flat = traverse_util.flatten_dict(variables)
        fits = {k: jnp.asarray(v) for k, v in trained.items() if k in flat and flat[k].shape == v.shape}
        left = ["/".join(k[1:]) for k in flat if k not in fits]
        if len(fits) < len(flat) / 2:
            raise WeightsMismatch(f"{path} is a run of another model: {len(left)} of {len(flat)} entries do not fit")
        said = f"started from {path}" + (f", but for {', '.join(left)}" if left else "")
        return traverse_util.unflatten_dict(flat | fits), said

    def from_file(variables: PyTree) -> tuple[PyTree, str]:
        try:
            loaded = load_published(path, model, variables)
        except WeightsMismatch as whole:
            load = load_encoder if path.suffix == ".npz" else functools.partial(_backbone_from, model=model)
            try:
                file = weights_file(path) if path.is_dir() else path
                return load(file, variables=variables), f"started from the backbone in {path}"
            except WeightsMismatch as backbone:
                raise WeightsMismatch(
                    f"{path} fits neither the model ({whole}) nor its backbone ({backbone})"
                ) from None
        return loaded.variables, loaded.left_out or f"started from {path}, {loaded.publisher}'s"

    def start(variables: PyTree) -> PyTree:
        variables, said = (from_run if (path / "checkpoints").is_dir() else from_file)(variables)
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(variables)):
            print(said, flush=True)
        return variables

    return start
