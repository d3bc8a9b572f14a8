"""genforce's names and layouts of ProGAN and StyleGAN: state_dicts to variables and back.

`synthesis.layer{n}`: n counts the layers from 4x4 up, `output{k}` the resolutions; a discriminator's `input{k}` and
`layer{n}` count from the images down. A convolution after a doubling at 128x128 and above was trained as a
transposed one, whose kernel is the convolution's, flipped in height and width.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxseg.models.progan import GrowingDiscriminator, ProGANGenerator
from jaxseg.models.stylegan import StyleGANGenerator
from jaxseg.weights.wrapped import WeightsMismatch, bare_entries

__all__ = [
    "blank_variables",
    "demand_variables",
    "from_genforce",
    "genforce_fields",
    "genforce_has",
    "network_of",
    "to_genforce",
]

FUSED_FROM = 128  # resolution

Path = tuple[str, ...]


class Entry(NamedTuple):
    """A variable's path, and how the published array becomes ours and ours the published one."""

    path: Path
    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


def _same(path: Path) -> Entry:
    return Entry(path, lambda a: a, lambda a: a)


def _dense(path: Path) -> Entry:
    return Entry(path, np.transpose, np.transpose)


def _conv(path: Path, flip: bool = False) -> Entry:
    turn = (lambda a: a[::-1, ::-1]) if flip else (lambda a: a)
    return Entry(path, lambda a: turn(a.transpose(2, 3, 1, 0)), lambda a: turn(a).transpose(3, 2, 0, 1))


def _map(path: Path) -> Entry:
    return Entry(path, lambda a: a.transpose(0, 2, 3, 1), lambda a: a.transpose(0, 3, 1, 2))


def _first(path: Path) -> Entry:
    """A dense layer to 4x4, published as a convolution of one padded pixel, which sees its kernel flipped."""
    return Entry(
        path,
        lambda a: a[..., ::-1, ::-1].transpose(1, 2, 3, 0).reshape(a.shape[1], -1),
        lambda a: a.reshape(a.shape[0], 4, 4, -1).transpose(3, 0, 1, 2)[..., ::-1, ::-1],
    )


def _module(name: str, path: Path, weight: Callable[[Path], Entry] = _conv) -> Iterator[tuple[str, Entry]]:
    yield f"{name}.weight", weight((*path, "kernel"))
    yield f"{name}.bias", _same((*path, "bias"))


def _stylegan(model: StyleGANGenerator) -> Iterator[tuple[str, Entry]]:
    synthesis = ("params", "synthesis")
    for i in range(model.mapping_layers):
        yield from _module(f"mapping.dense{i}", ("params", "mapping", f"dense_{i}"), _dense)
    if model.num_classes:
        yield "mapping.label_weight", _same(("params", "mapping", "label_embedding"))
    yield "truncation.w_avg", _same(("w_average", "mean"))
    for n in range(model.layers):
        size, half, name = 4 << n // 2, n % 2, f"synthesis.layer{n}"
        layer = f"layer_{size}_{half}"
        if n:
            fused = half == 0 and size >= FUSED_FROM
            yield f"{name}.weight", _conv((*synthesis, f"conv_{size}_{half}", "kernel"), fused)
        elif model.constant_input:
            yield f"{name}.const", _map((*synthesis, "const"))
        else:
            yield f"{name}.weight", _first((*synthesis, "dense", "kernel"))
        yield f"{name}.bias", _same((*synthesis, layer, "bias"))
        yield from _module(f"{name}.style", (*synthesis, layer, "style"), _dense)
        if model.noise:
            yield f"{name}.apply_noise.weight", _same((*synthesis, layer, "noise_strength"))
            yield f"{name}.apply_noise.noise", _map(("noise", "synthesis", layer, "map"))
        if half:
            yield from _module(f"synthesis.output{n // 2}", (*synthesis, f"to_rgb_{size}"))


def _progan(model: ProGANGenerator) -> Iterator[tuple[str, Entry]]:
    if model.blur:
        raise WeightsMismatch("genforce's ProGAN has no blur; create the model with blur=False")
    if model.num_classes and not model.norm_before_class:
        raise WeightsMismatch(
            "genforce's ProGAN appends the class to a normalised latent; create the model with norm_before_class=True"
        )
    for block in range(model.resolution.bit_length() - 2):
        size = 4 << block
        if block == 0:
            yield "layer0.weight", _first(("params", "dense", "kernel"))
            yield "layer0.bias", _same(("params", "dense_bias"))
        else:
            yield from _module(f"layer{2 * block}", ("params", f"conv_{size}_0"))
        yield from _module(f"layer{2 * block + 1}", ("params", f"conv_{size}_1"))
        yield from _module(f"output{block}", ("params", f"to_rgb_{size}"))


def _discriminator(model: GrowingDiscriminator) -> Iterator[tuple[str, Entry]]:
    if model.condition == "planes" and model.num_classes:
        raise WeightsMismatch("genforce's discriminators have no class planes; use condition score or auxiliary")
    blocks = model.resolution.bit_length() - 2
    for block in range(blocks):
        size = model.resolution >> block
        yield from _module(f"input{block}", ("params", f"from_rgb_{size}"))
        if size > 4:
            yield from _module(f"layer{2 * block}", ("params", f"conv_{size}_0"))
            yield from _module(f"layer{2 * block + 1}", ("params", f"conv_{size}_1"))
    n = 2 * (blocks - 1)
    yield from _module(f"layer{n}", ("params", "conv_4"))
    yield from _module(f"layer{n + 1}", ("params", "dense_0"), _dense)
    yield from _module(f"layer{n + 2}", ("params", "dense_1"), _dense)


def genforce_has(model: nn.Module) -> bool:
    """Whether such a network has a layout there.

    ProGAN with blur has none, nor one that appends the class to the latent as it is, nor a discriminator with class
    planes or half of what StyleGAN's differs by.
    """
    if isinstance(model, GrowingDiscriminator):
        return model.blur == model.pool_first and not (model.condition == "planes" and model.num_classes)
    if isinstance(model, ProGANGenerator):
        return not model.blur and (model.norm_before_class or not model.num_classes)
    return True


def genforce_fields(state: Mapping[str, np.ndarray], model: nn.Module) -> dict[str, Any]:
    """The fields of the network in genforce's layout that is of the model's kind: resolution, classes (0: none)."""
    parts = {name.removeprefix("synthesis.") for name in state}
    blocks = sum(name.startswith(("output", "input")) and name.endswith(".weight") for name in parts)
    if not blocks:
        raise WeightsMismatch(f"no generator or discriminator of genforce's: it has {', '.join(sorted(state)[:3])} ...")
    found: dict[str, Any] = {"resolution": 2 << blocks, "num_classes": 0}

    def size(name: str, axis: int) -> int:
        """0 where there is none: `from_genforce` says so, and what else there is not."""
        return sum(np.shape(state.get(name, ()))[axis : axis + 1])

    if "mapping.label_weight" in state:
        found["num_classes"] = size("mapping.label_weight", 0)
    elif any(name.startswith("input") for name in parts):
        scores = size(f"layer{2 * blocks}.weight", 0)
        found["num_classes"] = scores if scores > 1 else 0
    elif isinstance(model, ProGANGenerator):
        classes = size("layer0.weight", 1) - model.latent_features
        found |= {"num_classes": classes, "norm_before_class": True} if classes > 0 else {}
    return found


def _entries(model: nn.Module) -> dict[str, Entry]:
    if isinstance(model, StyleGANGenerator):
        return dict(_stylegan(model))
    if isinstance(model, ProGANGenerator):
        return dict(_progan(model))
    if isinstance(model, GrowingDiscriminator):
        return dict(_discriminator(model))
    raise WeightsMismatch(f"genforce published no {type(model).__name__}; there are ProGAN's and StyleGAN's networks")


def blank_variables(model: nn.Module) -> dict[str, Any]:
    """Shapes and dtypes of a generator's or discriminator's variables."""
    inputs = model.inputs(jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))  # type: ignore[attr-defined]
    keys = {"params": jax.random.key(0)}
    return dict(jax.eval_shape(lambda *x: model.init(keys, *x, train=False), *inputs))


def network_of(state: Mapping[str, np.ndarray], model: nn.Module) -> Mapping[str, np.ndarray]:
    """The model's arrays by genforce's names, without DataParallel's prefix.

    Of a checkpoint with several networks, and of generators, the averaged one, where there is one.
    """
    discriminates = isinstance(model, GrowingDiscriminator)
    state = bare_entries(state)
    for network in ("discriminator.",) if discriminates else ("generator_smooth.", "generator."):
        if any(name.startswith(network) for name in state):
            return bare_entries({n.removeprefix(network): a for n, a in state.items() if n.startswith(network)})
    return state


def _constant(name: str) -> bool:
    """Entries that hold no weights: the stage of growth, and the blur's kernel."""
    return name.endswith("lod") or name.endswith("blur.kernel")


def _demand_blur(state: Mapping[str, np.ndarray], model: nn.Module, where: str) -> None:
    """Raises where a discriminator's weights would fit and its scores would not be the publisher's."""
    kernels = any(name.endswith("blur.kernel") for name in state)
    if not isinstance(model, GrowingDiscriminator) or not (kernels or "lod" in state):  # NVlabs' has neither
        return
    if (model.blur, model.pool_first) != (kernels, kernels):
        kind, other = ("StyleGAN", "stylegan_discriminator") if kernels else ("ProGAN", "progan_discriminator")
        raise WeightsMismatch(
            f"{where} is {kind}'s discriminator, with blur={kernels} and pool_first={kernels}, and this one has "
            f"blur={model.blur} and pool_first={model.pool_first}; create {other}"
        )


def from_genforce(
    state: Mapping[str, np.ndarray], model: nn.Module, *, where: str = "the state_dict"
) -> dict[str, Any]:
    """Variables of a ProGAN or StyleGAN network with the values of genforce's state_dict.

    The published checkpoints hold a generator, its average and a discriminator: `network_of` takes the model's.
    Raises WeightsMismatch with the names of what is missing, unexpected or misshapen, and for a discriminator of
    the other kind, whose weights have the same names and shapes.
    """
    state = network_of(state, model)
    _demand_blur(state, model, where)
    entries, shapes = _entries(model), traverse_util.flatten_dict(blank_variables(model))
    given = {name: array for name, array in state.items() if not _constant(name)}
    flat, misshapen = {}, []
    for name in sorted(entries.keys() & given.keys()):
        path, ours, _ = entries[name]
        array = np.asarray(given[name])
        try:
            converted = ours(array)
        except (ValueError, IndexError):
            converted = array
        if converted.shape == shapes[path].shape:
            flat[path] = jnp.asarray(converted, jnp.float32)
        else:
            misshapen.append(f"{name} {array.shape} for {'/'.join(path)} {shapes[path].shape}")
    problems = {
        "missing": sorted(entries.keys() - given.keys()),
        "unexpected": sorted(given.keys() - entries.keys()),
        "misshapen": misshapen,
    }
    if any(problems.values()):
        lists = "; ".join(f"{what}: {', '.join(which)}" for what, which in problems.items() if which)
        raise WeightsMismatch(f"{where} is not genforce's {type(model).__name__} at {_resolution(model)}: {lists}")
    return traverse_util.unflatten_dict(flat)


def _resolution(model: Any) -> str:
    return f"{model.resolution}x{model.resolution}"


def demand_variables(model: nn.Module, shapes: Mapping[Path, Any], flat: Mapping[Path, Any]) -> None:
    """Raises WeightsMismatch where variables, by their paths, are not those of the model, which have `shapes`."""
    if wrong := [
        path for path in shapes.keys() | flat.keys() if path not in flat or shapes.get(path) != flat[path].shape
    ]:
        shown = ", ".join(sorted("/".join(path) for path in wrong)[:5])
        raise WeightsMismatch(
            f"these are not the variables of this {type(model).__name__}: {len(wrong)} differ, {shown}"
        )


def to_genforce(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """genforce's state_dict of `variables`, which its `load_state_dict` takes whole.

    Raises WeightsMismatch where they are not those of the model.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    shapes = traverse_util.flatten_dict(blank_variables(model))
    demand_variables(model, {path: x.shape for path, x in shapes.items()}, flat)
    state = {n: np.ascontiguousarray(e.theirs(np.asarray(flat[e.path]))) for n, e in _entries(model).items()}
    kernel = np.outer((1, 2, 1), (1, 2, 1)).astype(np.float32)[None, None] / 16
    if isinstance(model, StyleGANGenerator):
        blurred = {f"synthesis.layer{n}": state[f"synthesis.layer{n}.bias"] for n in range(2, model.layers, 2)}
    elif isinstance(model, GrowingDiscriminator) and model.blur:
        last = 2 * (model.resolution.bit_length() - 3)
        blurred = {f"layer{n}": state[f"layer{n}.weight"][0] for n in range(1, last, 2)}
    else:
        blurred = {}
    state |= {f"{name}.blur.kernel": np.tile(kernel, (len(like), 1, 1, 1)) for name, like in blurred.items()}
    state["synthesis.lod" if isinstance(model, StyleGANGenerator) else "lod"] = np.zeros((), np.float32)
    return state
