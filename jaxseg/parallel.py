"""Where a run's arrays live: jit over a named mesh, or pmap. The only file that names meshes, pmap and devices.

Both take the same pure `update(state, batch, key)`. A `Placement` is what `fit` needs of either.
"""

import functools
import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxseg.ops.batch import BATCH_AXIS
from jaxseg.ops.conv import WIDTH_AXIS

__all__ = ["Placement", "make_mesh", "of_this_process", "over_mesh", "over_pmap", "topology_devices"]

FSDP_MINIMUM = 2**14  # elements; smaller arrays cost more to gather than to hold


class Placement(NamedTuple):
    """How a run is laid out on devices."""

    name: str  # for the log: "jit data=4 fsdp=2"
    batch_devices: int  # the global batch divides by this
    image_devices: tuple[int, int]  # and images' height and width by these
    put_batch: Callable[[Mapping[str, np.ndarray]], PyTree]  # this process's slice of the batch -> device arrays
    put_state: Callable[[PyTree], PyTree]  # a state on the host or one device -> placed; never aliases its input
    shape_batch: Callable[[PyTree], PyTree]  # shapes of the global batch -> shapes with shardings, to compile ahead
    shape_saved: Callable[[PyTree], PyTree]  # shapes -> shapes with shardings, the template of a restore
    to_saved: Callable[[PyTree], PyTree]  # a placed state -> global arrays, which a checkpoint is made of
    from_saved: Callable[[PyTree], PyTree]  # what was restored to the template -> a placed state
    compile_update: Callable[[Callable], Callable]  # update -> (state, batch, key, step) -> (state, metrics)
    compile_evaluate: Callable[[Callable], Callable]  # evaluate -> (state, batch) -> sums


def make_mesh(
    data: int = -1, fsdp: int = 1, spatial: int = 1, width: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of axes `data` (batch), `fsdp` (batch, parameters, optimizer state), `spatial` (height) and `width`.

    `data=-1` takes the devices that the other axes leave. Raises ValueError for an axis below 1, and where the
    axes do not multiply to the devices there are.
    """
    devices = jax.devices() if devices is None else devices
    others = {"fsdp": fsdp, "spatial": spatial, WIDTH_AXIS: width}
    if data == -1:
        data = max(len(devices) // max(math.prod(others.values()), 1), 1)
    axes = {"data": data, **others}
    said = " ".join(f"{name}={size}" for name, size in axes.items())
    if min(axes.values()) < 1:
        raise ValueError(f"axes of a mesh are 1 or more, got {said}")
    if (product := math.prod(axes.values())) != len(devices):
        raise ValueError(
            f"a mesh of {said} needs {product} devices, there are {len(devices)}; make the product equal to it"
        )
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes), devices=list(devices))


_NO_TPU = {  # what libtpu would ask of a cloud machine, and say at length that it is none
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is used: the lock on it is not ours to want
}


def _host_of(topology: str) -> dict[str, Any]:
    """What the compiler does not take from a topology's name: a part of a host's chips, and v4's cores as one chip."""
    chip, _, shape = topology.partition(":")
    sides = [int(n) for n in shape.split("x") if n.isdecimal()]
    options: dict[str, Any] = {"chip_config_name": "megacore"} if chip == "v4" else {}
    if sides and 0 < np.prod(sides) < 4:
        options["chips_per_host_bounds"] = [*sides, 1, 1][:3]
    return options


def topology_devices(name: str) -> Sequence[Any]:
    """The devices of a TPU topology such as `v5e:2x4`, to compile for without having them.

    Raises ImportError that names the extra where libtpu is not installed, ValueError for a topology that it
    does not know.
    """
    from jax.experimental import topologies

    for variable, value in _NO_TPU.items():
        os.environ.setdefault(variable, value)
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError("compiling for a TPU needs its compiler: pip install 'jaxseg[tpu]'")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **_host_of(name)).devices
    except Exception as error:  # the runtime's own type is not public
        raise ValueError(f"no TPU topology {name!r} ({error}); name one such as v5e:2x4 or v5p:2x2x1") from error


def of_this_process(tree: PyTree) -> PyTree:
    """Arrays that all devices hold whole, such as a run's parameters, for what each of several processes does alone.

    As they are where there is one process.
    """
    if jax.process_count() == 1:
        return tree
    return jax.device_put(jax.device_get(tree), jax.local_devices()[0])


def _fsdp_spec(shape: tuple[int, ...], size: int) -> PartitionSpec:
    """Shards the largest axis that divides; small arrays are replicated."""
    if size == 1 or int(np.prod(shape)) < FSDP_MINIMUM:
        return PartitionSpec()
    axes = [a for a in np.argsort(shape)[::-1] if shape[a] % size == 0]
    if not axes:
        return PartitionSpec()
    return PartitionSpec(*("fsdp" if a == axes[0] else None for a in range(len(shape))))


def over_mesh(mesh: Mesh) -> Placement:
    """One program over a mesh that `make_mesh` made.

    The batch lies over `data` and `fsdp`, parameters over `fsdp`, images' height over `spatial`, width over `width`.
    Beside images in shares parameters are in shares between the steps, and whole within one, which is mapped over the
    batch: sums over examples are those of `jaxseg.ops.batch`, as under pmap.
    Placing a batch raises ValueError for an "image" whose height or width does not divide.
    """
    sizes = dict(mesh.shape)
    name = "jit " + (" ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "1 device")
    replicated = NamedSharding(mesh, PartitionSpec())
    image_devices = sizes["spatial"], sizes[WIDTH_AXIS]
    examples = mesh.devices.reshape(-1, math.prod(image_devices))  # those of a row share the same images
    grouped = Mesh(mesh.devices.reshape(-1, *image_devices), (BATCH_AXIS, "spatial", WIDTH_AXIS))
    across = any(len({device.process_index for device in row}) > 1 for row in examples)

    def state_sharding(x: Any) -> NamedSharding:
        return NamedSharding(mesh, _fsdp_spec(x.shape, sizes["fsdp"]))

    def put_leaf(x: Any) -> jax.Array:
        host = np.array(x)  # a copy: donating the placed state must not touch what came in
        # by callback, so that each process gives its own devices their part
        return jax.make_array_from_callback(host.shape, state_sharding(host), lambda index: host[index])

    def batch_sharding(x: Any) -> NamedSharding:
        # an object's places may be fewer than the devices, and the labels of another size than the images
        by_axis = zip(("spatial", WIDTH_AXIS), x.shape[1:3], strict=False)
        shares = [axis if sizes[axis] > 1 and side % sizes[axis] == 0 else None for axis, side in by_axis]
        while shares and (x.ndim < 3 or shares[-1] is None):
            shares.pop()
        return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *shares))

    def put_batch(batch: Mapping[str, np.ndarray]) -> PyTree:
        height, width = batch["image"].shape[1:3] if "image" in batch else image_devices
        if height % image_devices[0] or width % image_devices[1]:
            good = "x".join(str(-(-n // k) * k) for n, k in zip((height, width), image_devices, strict=True))
            raise ValueError(f"images of {height}x{width} do not divide over {name}; use such as {good}")
        if not across:
            return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch_sharding(x), x), dict(batch))
        # each process has examples whose rows lie on the devices of others, too
        every = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), multihost_utils.process_allgather(dict(batch)))
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, batch_sharding(x), lambda index: x[index]), every
        )

    def shaped(sharding: Callable[[Any], NamedSharding], shapes: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)), shapes)

    def compile_update(update: Callable) -> Callable:
        def step_update(state: PyTree, batch: PyTree, key: jax.Array, step: Any) -> tuple[PyTree, PyTree]:
            if math.prod(image_devices) > 1 and len(examples) > 1:
                # mapped over the batch, as by pmap, so that XLA shares out the images alone: of a batch or parameters
                # in shares beside images in shares it (jax 0.10.2) makes gradients up to 40 times what they are
                mapped = jax.shard_map(
                    update,
                    mesh=grouped,
                    in_specs=(PartitionSpec(), PartitionSpec(BATCH_AXIS), PartitionSpec()),
                    out_specs=PartitionSpec(),
                    axis_names={BATCH_AXIS},
                    check_vma=False,
                )
                state, metrics = mapped(state, batch, jax.random.fold_in(key, step))
            else:
                with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `conv` to see
                    state, metrics = update(state, batch, jax.random.fold_in(key, step))
            # an output left to XLA may come back in another layout, and the second call would recompile
            placed = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, state_sharding(x)), state)
            return placed, jax.lax.with_sharding_constraint(metrics, replicated)

        return jax.jit(step_update, donate_argnums=0)

    def compile_evaluate(evaluate: Callable) -> Callable:
        return jax.jit(evaluate, out_shardings=replicated)

    return Placement(
        name=name,
        batch_devices=sizes["data"] * sizes["fsdp"],
        image_devices=image_devices,
        put_batch=put_batch,
        put_state=lambda state: jax.tree.map(put_leaf, state),
        shape_batch=functools.partial(shaped, batch_sharding),
        shape_saved=functools.partial(shaped, state_sharding),
        to_saved=lambda state: state,
        from_saved=lambda state: state,
        compile_update=compile_update,
        compile_evaluate=compile_evaluate,
    )


def over_pmap(devices: Sequence[Any] | None = None) -> Placement:
    """Data parallelism by `jax.pmap`: each device updates a whole copy of the state with its slice of the batch."""
    every = list(jax.devices() if devices is None else devices)
    local = [d for d in every if d.process_index == jax.process_index()]

    # what pmap itself returns for out_axes=None; a state placed otherwise would compile the step twice
    whole = NamedSharding(Mesh(np.array(local), (BATCH_AXIS,)), PartitionSpec())
    # a process's pmap holds host-local arrays; a checkpoint of several processes is of global ones
    everywhere = NamedSharding(Mesh(np.array(every), (BATCH_AXIS,)), PartitionSpec())

    def to_saved(state: PyTree) -> PyTree:
        if len(every) == len(local):
            return state
        as_global = lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda index: np.asarray(x)[index])  # noqa: E731
        return jax.tree.map(as_global, state)

    def from_saved(state: PyTree) -> PyTree:
        if len(every) == len(local):
            return state
        return put_state(jax.tree.map(lambda x: x.addressable_data(0), state))

    def put_state(state: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jax.device_put(np.array(x), whole, may_alias=False), state)

    def put_batch(batch: Mapping[str, np.ndarray]) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(len(local), -1, *x.shape[1:]), dict(batch))

    def mapped(f: Callable, in_axes: tuple, out_axes: Any, **options: Any) -> Callable:
        chosen = None if devices is None else local
        return jax.pmap(f, axis_name=BATCH_AXIS, in_axes=in_axes, out_axes=out_axes, devices=chosen, **options)

    def compile_update(update: Callable) -> Callable:
        def step_update(state: PyTree, batch: PyTree, key: jax.Array, step: Any) -> tuple[PyTree, PyTree]:
            return update(state, batch, jax.random.fold_in(key, step))

        return mapped(step_update, (None, 0, None, None), None, donate_argnums=0)

    return Placement(
        name=f"pmap over {len(every)} device{'s' * (len(every) > 1)}",
        batch_devices=len(every),
        image_devices=(1, 1),
        put_batch=put_batch,
        put_state=put_state,
        shape_batch=lambda shapes: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((len(local), x.shape[0] // len(every), *x.shape[1:]), x.dtype), shapes
        ),
        shape_saved=lambda shapes: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
        ),
        to_saved=to_saved,
        from_saved=from_saved,
        compile_update=compile_update,
        compile_evaluate=lambda evaluate: mapped(evaluate, (None, 0), None),
    )
