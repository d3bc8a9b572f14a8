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

from jaxseg.runs import load_variables
from jaxseg.weights import WeightsMismatch, from_published, load_encoder, load_published, read_weights

__all__ = ["start_from"]


def _backbone_from(path: pathlib.Path, model: nn.Module, variables: PyTree) -> PyTree:
    """`variables` with the backbone's from a file of ImageNet's classification weights, by its publisher's names."""
    found: dict[str, nn.Module] = {}

    def note(call: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        if context.method_name == "__call__" and context.module.path in (("backbone",), ("encoder",)):
            found[context.module.name] = context.module.clone(parent=None, name=None)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):  # the backbone as the model makes it: its stem, its dilations
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    if not found:
        raise WeightsMismatch(f"{type(model).__name__} has no backbone")
    name, backbone = found.popitem()
    own = {collection: tree[name] for collection, tree in variables.items() if name in tree}
    loaded = from_published(read_weights(path), backbone, own, where=str(path)).variables
    return {c: tree | {name: loaded[c]} if name in tree else tree for c, tree in variables.items()}


def start_from(path: pathlib.Path, model: nn.Module) -> Callable[[PyTree], PyTree]:
    """A function from fresh variables to variables with what a run's folder or a published file holds.

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
                return load(path, variables=variables), f"started from the backbone in {path}"
            except WeightsMismatch as backbone:
                raise WeightsMismatch(
                    f"{path} fits neither the model ({whole}) nor its backbone ({backbone})"
                ) from None
        return loaded.variables, loaded.left_out or f"started from {path}, {loaded.publisher}'s"

    def start(variables: PyTree) -> PyTree:
        variables, said = (from_run if path.is_dir() else from_file)(variables)
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(variables)):
            print(said, flush=True)
        return variables

    return start
