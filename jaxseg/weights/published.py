"""Whole published checkpoints to a model's variables and back, by the names that their publisher gave."""

import functools
import os
import pathlib
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxseg.backbones.vgg import VGG, VGGClassifier
from jaxseg.models.adain_transfer import AdaINTransfer
from jaxseg.models.progan import GrowingDiscriminator, ProGANGenerator
from jaxseg.models.stylegan import StyleGANGenerator
from jaxseg.models.unet import UNetValid
from jaxseg.ops.tracing import blank_kernels
from jaxseg.weights.files import read_weights, weights_file
from jaxseg.weights.folder import demand_described
from jaxseg.weights.genforce import demand_variables, from_genforce, genforce_has, to_genforce
from jaxseg.weights.semseg import SEMSEG
from jaxseg.weights.smp import SMP
from jaxseg.weights.torchvision import TORCHVISION, Publisher
from jaxseg.weights.vgg import from_torchvision, to_torchvision, vgg_names
from jaxseg.weights.wrapped import WeightsMismatch, unwrapped

__all__ = [
    "Entry",
    "Loaded",
    "entries_of",
    "from_published",
    "load_published",
    "load_weights",
    "names_of",
    "recognize",
    "save_weights",
    "to_published",
]

PUBLISHERS = (TORCHVISION, SEMSEG, SMP)
JAXSEG = Publisher("jaxseg", {})  # paths and layouts of our own trees, such as params/conv1_1/kernel
GENERATION = (ProGANGenerator, StyleGANGenerator, GrowingDiscriminator)  # whose names are genforce's
MANY = 10_007  # a number of classes, prime, by which the head's variables are told: no width is its multiple
FIELDS = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
    ("batch_stats", "scale"): "weight",  # of frozen norms
    ("batch_stats", "bias"): "bias",
}
SIGNS = {  # entries of a publisher's PSPNet, of which there are two, and the models that they fit
    "decoder.psp.": "SMP's PSPNet, pspnet_smp_resnet34 or pspnet_smp_resnet50",
    "ppm.": "semseg's PSPNet, pspnet_resnet18 to pspnet_resnet152",
}
CLASSIFIERS = ("fc.", "classifier.", "aux1.", "aux2.", "last_linear.")  # of ImageNet's classes, beside a backbone

Path = tuple[str, ...]


class Loaded(NamedTuple):
    """What a file gave: the variables, who published its layout, and what was left out and why."""

    variables: dict[str, Any]
    publisher: str
    left_out: str | None


@functools.lru_cache(maxsize=8)  # tracing a model is what reading small weights takes
def _traced(model: nn.Module) -> dict[Path, jax.ShapeDtypeStruct]:
    size = 572 if isinstance(model, UNetValid) else 512
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    inputs = model.inputs(images) if isinstance(model, (*GENERATION, AdaINTransfer)) else (images,)
    with blank_kernels():
        tree = jax.eval_shape(lambda *inputs: model.init(jax.random.key(0), *inputs, train=False), *inputs)
    return dict(traverse_util.flatten_dict(dict(tree)))


def _for_any_classes(model: nn.Module) -> dict[Path, jax.ShapeDtypeStruct]:
    """The variables of the model with MANY classes, whatever number it has."""
    return _traced(model.clone(num_classes=MANY))


def _shapes(model: nn.Module) -> dict[Path, jax.ShapeDtypeStruct]:
    if isinstance(model, GENERATION) or not getattr(model, "num_classes", None):  # where classes change the network
        return _traced(model)
    count = model.num_classes
    return {
        path: jax.ShapeDtypeStruct(tuple(n if n % MANY else n // MANY * count for n in x.shape), x.dtype)
        for path, x in _for_any_classes(model).items()
    }


def _names(publisher: Publisher, model: nn.Module, paths: Iterable[Path]) -> dict[str, Path]:
    """The publisher's name, without prefix, of every variable."""
    paths = list(paths)
    if publisher is JAXSEG:
        return {"/".join(path): path for path in paths}
    names = {}
    if ("params", "encoder", "conv1_1", "kernel") in paths:  # VGG's places in a Sequential go by its depths
        batch_norm = ("params", "encoder", "bn1_1", "scale") in paths
        names = {f"encoder.{name}": path for name, path in vgg_names(paths, batch_norm=batch_norm)}
    for path in set(paths).difference(names.values()):
        module = "/".join(path[1:-1])
        for pattern, replacement in publisher.layouts[type(model)]:
            module = re.sub(pattern, replacement, module)
        names[f"{module.replace('/', '.')}.{FIELDS[path[0], path[-1]]}"] = path
    return names


def _publishers(model: nn.Module) -> list[Any]:
    found = [publisher for publisher in PUBLISHERS if type(model) in publisher.layouts]
    if not found:
        raise WeightsMismatch(
            f"nobody published weights of {type(model).__name__} in a layout known here (there are "
            f"{', '.join(sorted({c.__name__ for p in PUBLISHERS for c in p.layouts}))}); an encoder's alone load "
            "with jaxseg.weights.load_encoder"
        )
    return found


def _entries(
    publisher: Any, state: Mapping[str, np.ndarray], names: Mapping[str, Path], where: str
) -> dict[str, np.ndarray]:
    """The file's arrays without wrappers, counters and the names of older versions."""
    entries = {}
    for name, array in unwrapped(state, names, where).items():
        for pattern, replacement in publisher.renamed:
            name = re.sub(pattern, replacement, name)
        entries[name] = array
    return entries


def _axes(publisher: Publisher, ndim: int) -> tuple[int, ...]:
    """The axes of a publisher's array in the order of ours."""
    if publisher is JAXSEG:
        return tuple(range(ndim))
    return (2, 3, 1, 0) if ndim == 4 else tuple(reversed(range(ndim)))


def _to_flax(publisher: Publisher, array: np.ndarray) -> np.ndarray:
    return array.transpose(_axes(publisher, array.ndim))


def _to_torch(publisher: Publisher, array: np.ndarray) -> np.ndarray:
    if publisher is not JAXSEG:
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array)


def _has_fields(publisher: Any, model: nn.Module) -> bool:
    return all(getattr(model, k) == v for k, v in publisher.fields.get(type(model), {}).items())


def _demand_fields(publisher: str, model: nn.Module) -> None:
    """Raises where the weights would fit and the outputs would not be the publisher's."""
    wanted = {p.name: p.fields for p in (*PUBLISHERS, JAXSEG)}[publisher].get(type(model), {})
    for field, value in wanted.items():
        if getattr(model, field) != value:
            raise WeightsMismatch(
                f"{publisher}'s {type(model).__name__} has {field}={value}, this one {getattr(model, field)}; "
                f"create it with {', '.join(f'{k}={v}' for k, v in wanted.items())}, as `jaxseg convert` does"
            )


def _head(model: nn.Module) -> set[Path]:
    """Variables whose shape goes by the number of classes."""
    if not hasattr(model, "num_classes"):
        return set()
    return {path for path, x in _for_any_classes(model).items() if any(n % MANY == 0 for n in x.shape)}


def _differs_by_classes(model: nn.Module, place: Path, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a variable of that shape is the model's with another number of classes, which may be on two axes."""
    axes = _for_any_classes(model)[place].shape
    return len(shape) == len(axes) and all(n % MANY == 0 or a == b for n, a, b in zip(axes, shape, wanted, strict=True))


class _Fit(NamedTuple):
    """A file seen as one publisher's: our path of each name that it should have, and its own arrays by name."""

    publisher: Publisher
    names: dict[str, Path]
    entries: dict[str, np.ndarray]


def _fit(state: Mapping[str, np.ndarray], model: nn.Module, shapes: Mapping[Path, Any], where: str) -> _Fit:
    """The publisher with whose names the file shares most."""
    own = any(name.startswith("params/") for name in state)
    candidates = [
        _Fit(publisher, names, _entries(publisher, state, names, where))
        for publisher in ([JAXSEG] if own else _publishers(model))
        for names in [_names(publisher, model, shapes)]
    ]
    best = max(candidates, key=lambda fit: len(fit.names.keys() & fit.entries.keys()))
    if not best.names.keys() & best.entries.keys():
        others = [names for sign, names in SIGNS.items() if any(f".{sign}" in f".{name}" for name in state)]
        raise WeightsMismatch(
            f"{where} is none of {', '.join(fit.publisher.name for fit in candidates)}'s {type(model).__name__}: it "
            f"has {', '.join(sorted(state)[:3])} ..., and {best.publisher.name}'s has "
            f"{', '.join(sorted(best.names)[:3])} ..." + "".join(f"; it fits {names}" for names in others)
        )
    return best


class Recognized(NamedTuple):
    """What a state_dict says of its model: publisher, classes, and fields that its publisher's has."""

    publisher: str
    num_classes: int | None
    fields: Mapping[str, Any]


def no_aux(model: Any) -> bool | None:
    """What the field `aux` of the model is without an auxiliary head."""
    return None if model.aux is None or isinstance(model.aux, str) else False


def recognize(state: Mapping[str, np.ndarray], model: nn.Module, *, where: str = "the state_dict") -> Recognized:
    """What a published state_dict of such a model, with any number of classes, says of it."""
    shapes = _shapes(model)
    publisher, names, entries = _fit(state, model, shapes, where)
    head = _head(model)
    counts = [_to_flax(publisher, entries[n]).shape[-1] for n, p in names.items() if p in head and n in entries]
    return Recognized(publisher.name, max(counts, default=None), publisher.fields.get(type(model), {}))


def from_published(
    state: Mapping[str, np.ndarray],
    model: nn.Module,
    variables: Mapping[str, Any] | None = None,
    *,
    where: str = "the state_dict",
) -> Loaded:
    """Variables of `model` with the values of a published state_dict, as `load_weights` has them from a file."""
    if isinstance(model, VGG | VGGClassifier):
        blank = traverse_util.unflatten_dict(_shapes(model))
        if isinstance(model, VGG):  # which has no use for fc6 and deeper
            state = unwrapped(state, dict(vgg_names(_shapes(model), batch_norm=model.norm is not None)), where)
            state = {name: array for name, array in state.items() if not name.startswith("classifier.")}
        return Loaded(from_torchvision(state, blank), "torchvision", None)
    own = any(name.startswith("params/") for name in state)
    if isinstance(model, GENERATION) and not own:
        return Loaded(from_genforce(state, model, where=where), "genforce", None)
    if isinstance(model, AdaINTransfer) and not own:
        raise WeightsMismatch(
            f"{where} is no AdaINTransfer of jaxseg; pytorch-AdaIN's encoder and decoder are two files: "
            "jaxseg.weights.load_adain_transfer(model, encoder=..., decoder=...)"
        )
    shapes = _shapes(model)
    fit = _fit(state, model, shapes, where)
    publisher, names, entries = fit.publisher.name, fit.names, fit.entries
    _demand_fields(publisher, model)
    fits = names.keys() <= entries.keys() and all(
        _to_flax(fit.publisher, np.asarray(entries[name])).shape == shapes[place].shape for name, place in names.items()
    )
    head = set() if fits else _head(model)
    if not hasattr(model, "num_classes"):
        entries = {name: a for name, a in entries.items() if name in names or not name.startswith(CLASSIFIERS)}
    flat = {p: jnp.zeros(s.shape, s.dtype) for p, s in shapes.items() if p in head}
    if variables is not None:
        flat = dict(traverse_util.flatten_dict(dict(variables)))
    misshapen, other_classes, count = [], [], 0
    for name in sorted(names.keys() & entries.keys()):
        place = names[name]
        array, shape = _to_flax(fit.publisher, np.asarray(entries[name])), shapes[place].shape
        if array.shape == shape:
            flat[place] = jnp.asarray(array, shapes[place].dtype)
        elif place in head and _differs_by_classes(model, place, array.shape, shape):
            other_classes.append("/".join(place[1:]))
            count = array.shape[-1]
        else:
            misshapen.append(f"{name} {tuple(entries[name].shape)} for {'/'.join(place)} {shape}")
    problems = {
        "missing": sorted(names.keys() - entries.keys()),
        "unexpected": sorted(entries.keys() - names.keys()),
        "misshapen": misshapen,
    }
    if any(problems.values()):
        lists = "; ".join(f"{what}: {', '.join(which)}" for what, which in problems.items() if which)
        fix = ""
        if any("aux" in name for name in problems["missing"]):
            fix = f"; it has no auxiliary head (field `aux` of the model): create it with aux={no_aux(model)}"
        elif any("aux" in name for name in problems["unexpected"]):
            fix = "; it has an auxiliary head: leave the field `aux` of the model at its default"
        raise WeightsMismatch(f"{where} does not fit this {type(model).__name__} of {publisher}: {lists}{fix}")
    left_out = None
    if other_classes:
        start = "zero" if variables is None else "as they were"
        left_out = (
            f"{where} scores {count} classes and the model {model.num_classes}: everything is loaded but "
            f"{', '.join(other_classes)}, which are {start}"
        )
    return Loaded(traverse_util.unflatten_dict(flat), publisher, left_out)


class Entry(NamedTuple):
    """Where a file holds a variable: its name, and the axes of its array in the order of the variable's."""

    name: str
    axes: tuple[int, ...]


def entries_of(state: Mapping[str, np.ndarray], model: nn.Module) -> dict[Path, Entry]:
    """The entry of a published state_dict that each variable of `model` loads from; its values are not looked at."""
    given = {id(array): name for name, array in state.items()}
    publisher, names, entries = _fit(state, model, _shapes(model), "the state_dict")
    return {
        place: Entry(given[id(entries[name])], _axes(publisher, np.ndim(entries[name])))
        for name, place in names.items()
        if name in entries
    }


def load_published(path: str | pathlib.Path, model: nn.Module, variables: Mapping[str, Any] | None = None) -> Loaded:
    """What `load_weights` gives, with its publisher and a line on what was left out, and no warning."""
    path = pathlib.Path(path)
    if path.is_dir():
        demand_described(path, model)
        path = weights_file(path)
    return from_published(read_weights(path), model, variables, where=str(path))


def load_weights(
    path: str | pathlib.Path, model: nn.Module, variables: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Variables of `model` from a published checkpoint, whose publisher is found by the names in it.

    `path` is a file that `read_weights` reads, or a folder with one: segmentation-models-pytorch's of the hub, or
    `jaxseg convert`'s. What training put before the names (`module.`, `model.`) is no part of them, and of weights
    and their moving average (`ema`) the average is taken. Values that are not finite load with a warning that names
    the first tensor of them. Where the model scores another number of classes, everything but the head is loaded,
    with a warning that says so; the head is that of `variables`, or zero. Raises WeightsMismatch, with the names,
    where an entry is missing, unexpected or misshapen, or a folder describes another model; ValueError and
    UnsafePickle as `read_weights`.
    """
    loaded = load_published(path, model, variables)
    if loaded.left_out:
        warnings.warn(loaded.left_out, stacklevel=2)
    return loaded.variables


def names_of(model: nn.Module, variables: Mapping[str, Any], publisher: str | None = None) -> dict[str, Path]:
    """Our path of every name that `to_published` gives, less its prefix."""
    chosen = _chosen(model, publisher)
    return _names(chosen, model, traverse_util.flatten_dict(dict(variables)))


def _chosen(model: nn.Module, publisher: str | None) -> Publisher:
    known = {p.name: p for p in (*PUBLISHERS, JAXSEG) if type(model) in p.layouts or p is JAXSEG}
    fitting = [name for name, p in known.items() if _has_fields(p, model)]
    chosen = publisher or fitting[0]
    if chosen not in known:
        raise ValueError(f"{chosen} published no {type(model).__name__}; there is {', '.join(known)}")
    _demand_fields(chosen, model)
    return known[chosen]


def to_published(model: nn.Module, variables: Mapping[str, Any], publisher: str | None = None) -> dict[str, np.ndarray]:
    """Arrays by the publisher's names and in PyTorch's layout.

    `publisher` chooses where there are several, and may be "jaxseg": the paths and layouts of `variables`
    themselves, which is also what a model gets whose weights nobody published. Raises WeightsMismatch where
    `variables` are not those of the model.
    """
    if isinstance(model, VGG | VGGClassifier) and publisher != JAXSEG.name:
        return {name: np.ascontiguousarray(array) for name, array in to_torchvision(variables).items()}
    if isinstance(model, GENERATION) and (publisher != JAXSEG.name if publisher else genforce_has(model)):
        return to_genforce(model, variables)
    own = isinstance(model, (*GENERATION, AdaINTransfer))
    chosen = JAXSEG if own and publisher in (None, JAXSEG.name) else _chosen(model, publisher)
    flat = traverse_util.flatten_dict(dict(variables))
    demand_variables(model, {path: x.shape for path, x in _shapes(model).items()}, flat)
    names = _names(chosen, model, flat)
    return {chosen.prefix + name: _to_torch(chosen, np.asarray(flat[path])) for name, path in names.items()}


def save_weights(
    path: str | pathlib.Path, model: nn.Module, variables: Mapping[str, Any], publisher: str | None = None
) -> None:
    """Writes `variables` of `model` as its publisher would have named them, to a `.safetensors` file.

    What `load_weights` read comes back bit for bit, in float32 and without PyTorch's `num_batches_tracked`,
    which its `load_state_dict` does not ask for. `publisher` chooses as in `to_published`.
    """
    from safetensors.numpy import save

    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        found = path.suffix or "without suffix"
        raise ValueError(f"{path}: published weights are written as .safetensors, not {found}")
    data = save(to_published(model, variables, publisher))
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".tmp")
    try:
        staged.write_bytes(data)  # safetensors' own writing leaves a file that nobody else may read
        os.replace(staged, path)
    except OSError as error:  # a full disk names no file
        staged.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({error.strerror}): nothing is") from error
