"""The training seam: a NamedTuple of pure functions, after Optax. `fit` runs them and knows no model."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxseg.data.augment import normalize
from jaxseg.metrics.confusion import confusion_matrix, mean_iou, named_scores
from jaxseg.ops.batch import batch_mean, batch_sum, example_index
from jaxseg.ops.logits import two_class_logits

__all__ = [
    "TrainFns",
    "TrainState",
    "adamw_cosine",
    "augmented",
    "draw_variables",
    "first_stages",
    "frozen_in",
    "sgd_poly",
    "sgd_steps",
    "slower",
    "supervised",
    "without",
]


class TrainFns(NamedTuple):
    """What a run does, as pure functions; `fit` compiles and places them."""

    init: Callable[..., PyTree]  # (key, batch) -> state: any pytree of arrays
    update: Callable[..., tuple[PyTree, PyTree]]  # (state, batch, key) -> (state, scalar metrics)
    evaluate: Callable[..., PyTree]  # (state, batch) -> sums, additive over batches, shards and hosts
    summarize: Callable[..., Mapping[str, float]]  # summed sums, on the host -> scores by name
    watch: Callable[[Mapping[str, float]], None] = lambda metrics: None  # a step's, on the host: warns of what they say


@flax.struct.dataclass
class TrainState:
    """One network in training. The field names are those of a checkpoint."""

    step: Any  # int32 []
    params: PyTree
    model_state: PyTree  # every collection that is not params
    opt_state: PyTree
    ema_params: PyTree | None


def sgd_poly(
    peak: float,
    steps: int,
    *,
    power: float = 0.9,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum under the "poly" schedule peak (1 - step/steps)^power (Chen et al. 2017, sec. 4.1).

    Weight decay is added to the gradient, as in Caffe and PyTorch, and spares biases and norms (rank < 2).
    With `clip` the global norm of the gradient is clipped first.
    """
    return _sgd(optax.polynomial_schedule(peak, 0.0, power, steps), momentum, weight_decay, clip)


def sgd_steps(
    peak: float,
    milestones: Sequence[int],
    *,
    warmup: int = 1000,
    warmup_factor: float = 1e-3,
    factor: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum whose rate falls to `factor` of itself at each of `milestones`, as detectors are trained.

    Over the first `warmup` steps the rate rises linearly from `warmup_factor` of itself (Goyal et al. 2017, section
    2.2; the numbers are Detectron2's and torchvision's). Weight decay and `clip` are as in `sgd_poly`. Raises
    ValueError for milestones that are not in order.
    """
    if list(milestones) != sorted(set(milestones)):
        raise ValueError(f"sgd_steps needs milestones in order, each once, got {tuple(milestones)}")

    def schedule(step: Any) -> Any:
        done = jnp.minimum(step / max(warmup, 1), 1.0) if warmup else 1.0
        falls = sum(jnp.where(step >= m, 1.0, 0.0) for m in milestones)
        return peak * (warmup_factor + (1 - warmup_factor) * done) * factor**falls

    return _sgd(schedule, momentum, weight_decay, clip)


def _sgd(schedule: Any, momentum: float, weight_decay: float, clip: float | None) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
    sgd = optax.sgd(schedule, momentum)
    return optax.chain(*() if clip is None else (optax.clip_by_global_norm(clip),), decay, sgd)


def adamw_cosine(
    peak: float, steps: int, *, warmup: int | None = None, weight_decay: float = 1e-4, clip: float | None = 1.0
) -> optax.GradientTransformation:
    """AdamW under linear warm-up (by default a twentieth of the steps) and cosine decay to zero.

    The global norm of the gradient is clipped at `clip`; weight decay spares biases and norms (rank < 2).
    """
    warmup = max(steps // 20, 1) if warmup is None else warmup
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, min(warmup, steps - 1), steps)
    adamw = optax.adamw(schedule, weight_decay=weight_decay, mask=_kernels)
    return adamw if clip is None else optax.chain(optax.clip_by_global_norm(clip), adamw)


def _kernels(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.ndim > 1, params)


Modules = Sequence[str] | Callable[[PyTree], Sequence[str]]  # paths such as "encoder" or "backbone/body/conv1"


def _names(params: PyTree, modules: Modules) -> Sequence[str]:
    """The paths of `modules`. Raises ValueError for one that is not there."""
    names = modules(params) if callable(modules) else modules
    for name in names:
        tree = params
        for part in name.split("/"):
            if part not in tree:
                raise ValueError(f'the model has no submodule "{name}"; it has {", ".join(sorted(tree))}')
            tree = tree[part]
    return names


def _inside(path: Sequence[str], names: Sequence[str]) -> bool:
    return any(tuple(path[: name.count("/") + 1]) == tuple(name.split("/")) for name in names)


def _lies_in(params: PyTree, modules: Modules) -> PyTree:
    """A mask over `params`: what belongs to the submodules of those paths."""
    names = _names(params, modules)
    return jax.tree_util.tree_map_with_path(lambda path, _: _inside([k.key for k in path], names), params)


def first_stages(count: int) -> Callable[[PyTree], Sequence[str]]:
    """For `frozen`: the first stages of a detector's body, 2 being the stem and the first stage behind it.

    As FREEZE_AT of Detectron, for ResNet (conv1 is 1, res2 is 2) and VGG (conv1_x, conv2_x). Raises ValueError where
    the model has no such body.
    """

    def names(params: PyTree) -> Sequence[str]:
        body = params.get("backbone", {}).get("body", {})
        stages = {}
        for name in body:
            if found := re.fullmatch(r"layer(\d+)_\d+", name):
                stages[name] = int(found[1]) + 1
            elif found := re.fullmatch(r"(?:conv|bn)(\d+)(?:_\d+)?", name):
                stages[name] = int(found[1]) if "_" in name else 1
        if count and not stages:
            raise ValueError(
                f"first_stages knows ResNet and VGG as backbone/body; this model has {sorted(body) or 'none'}"
            )
        return [f"backbone/body/{name}" for name, stage in sorted(stages.items()) if stage <= count]

    return names


def slower(optimizer: optax.GradientTransformation, factor: float, modules: Modules) -> optax.GradientTransformation:
    """`optimizer` with `factor` times its learning rate, weight decay's share included, in the submodules named."""
    return optax.chain(optimizer, optax.masked(optax.scale(factor), lambda params: _lies_in(params, modules)))


def without(optimizer: optax.GradientTransformation, modules: Modules) -> optax.GradientTransformation:
    """`optimizer` without state, decay or update for the submodules named."""

    def labels(params: PyTree) -> PyTree:
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", _lies_in(params, modules))

    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


@contextlib.contextmanager
def frozen_in(params: PyTree, modules: Modules) -> Iterator[PyTree]:
    """Gives `params` without gradients in the submodules named, which run with `train=False`, whatever is asked."""
    names = _names(params, modules)

    def interceptor(call: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        if "train" in kwargs and _inside(context.module.path, names):
            kwargs = kwargs | {"train": False}
        return call(*args, **kwargs)

    stopped = jax.tree.map(lambda x, inside: jax.lax.stop_gradient(x) if inside else x, params, _lies_in(params, names))
    with nn.intercept_methods(interceptor):
        yield stopped


def draw_variables(init: Callable[[jax.Array], PyTree], key: jax.Array) -> PyTree:
    """`init(key)`, compiled."""
    # on CPU, LLVM's optimiser takes most of what drawing parameters costs: 13 s of 15 for a small U-Net
    unoptimized = jax.default_backend() == "cpu" and not isinstance(key, jax.core.Tracer)
    options = {"xla_backend_optimization_level": 0} if unoptimized else None
    return jax.jit(init, compiler_options=options)(key)


def augmented(augment: Sequence[Callable], key: jax.Array, example: dict[str, Array]) -> dict[str, Array]:
    """Applies each augmentation to each example with a key of the example's place in the global batch."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index(example["image"].shape[0]))
    for position, transform in enumerate(augment):
        example = jax.vmap(lambda k, e, f=transform, i=position: f(jax.random.fold_in(k, i), e))(keys, example)
    return example


def _crop_like(x: Array, like: tuple[int, int]) -> Array:
    """The centre of `x [N, H, W, ...]`: what the valid convolutions of the 2015 U-Net see of a label map."""
    top, left = (x.shape[1] - like[0]) // 2, (x.shape[2] - like[1]) // 2
    return x[:, top : top + like[0], left : left + like[1]]


def _confusion_of(logits: Float[Array, "n h w k"], labels: Array) -> Array:
    logits = two_class_logits(logits)
    return confusion_matrix(jnp.argmax(logits, -1), labels, logits.shape[-1])


def supervised(
    model: nn.Module,
    *,
    loss: Callable[..., Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    augment: Sequence[Callable] = (),
    aux_weight: float = 0.4,
    ema_decay: float | None = None,
    accumulate: int = 1,
    pretrained: Callable[[PyTree], PyTree] | None = None,
    frozen: Modules = (),
) -> TrainFns:
    """Semantic segmentation as `TrainFns`.

    A batch holds `image` uint8 `[N, H, W, 3]` and `label` int32 `[N, H, W]`, and may hold pixel weights
    `weight [N, H, W]`, which then go to the loss as `pixel_weights`. `loss(logits, labels)` is a mean over the
    global batch (`jaxseg.losses`); one logit is scored as two classes, 1 where it is above 0. `augment` are
    functions of (key, example), run on the device in order, on images in [0, 1]; the model sees ImageNet-normalised
    images.

    `accumulate` splits the batch into that many microbatches, one in memory at a time: the forward pass is
    recomputed in the backward pass, and the loss is still that of the whole batch (batch norm sees
    microbatches). `pretrained` maps fresh variables to variables with published weights in them.

    `frozen` names submodules of the model, such as "encoder" or "encoder/conv1_1", that stay bit for bit as they
    start: no gradient goes through them, the optimizer and its weight decay pass them by, and they run in eval mode,
    so that their batch norms use, and keep, the running statistics.
    """
    if callable(frozen) or frozen:
        optimizer = without(optimizer, frozen)

    def apply(params: PyTree, model_state: PyTree, images: Array, key: jax.Array) -> tuple[Any, PyTree]:
        with frozen_in(params, frozen) as params:
            return model.apply(
                {"params": params, **model_state},
                images,
                train=True,
                rngs={"dropout": key},
                mutable=list(model_state) or ["batch_stats"],
            )

    def apply_in_microbatches(params: PyTree, model_state: PyTree, images: Array, key: jax.Array) -> tuple[Any, PyTree]:
        n = images.shape[0]
        if n % accumulate:
            raise ValueError(f"a batch of {n} does not split into accumulate={accumulate} microbatches")
        # strided, so that each microbatch lies on every device
        parts = images.reshape(n // accumulate, accumulate, *images.shape[1:]).swapaxes(0, 1)

        @jax.checkpoint
        def one(model_state: PyTree, part: tuple[Array, Array]) -> tuple[PyTree, Any]:
            output, model_state = apply(params, model_state, part[0], jax.random.fold_in(key, part[1]))
            return model_state, output

        model_state, outputs = jax.lax.scan(one, model_state, (parts, jnp.arange(accumulate)))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(n, *x.shape[2:]), outputs), model_state

    def init(key: jax.Array, batch: PyTree) -> TrainState:
        shape = (1, *batch["image"].shape[1:])
        variables = draw_variables(lambda k: model.init(k, jnp.zeros(shape), train=False), key)
        if pretrained is not None:
            variables = pretrained(variables)
        params, model_state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        ema_params = None if ema_decay is None else jax.tree.map(jnp.copy, params)
        return TrainState(jnp.int32(0), params, model_state, optimizer.init(params), ema_params)

    def update(state: TrainState, batch: PyTree, key: jax.Array) -> tuple[TrainState, PyTree]:
        augment_key, dropout_key = jax.random.split(key)
        example = {k: jnp.asarray(batch[k]) for k in ("label", "weight") if k in batch}
        example["image"] = jnp.asarray(batch["image"], jnp.float32) / 255
        example = augmented(augment, augment_key, example)
        images, labels = normalize(example["image"]), example["label"]

        def loss_of(params: PyTree) -> tuple[Array, tuple[Array, Array, PyTree]]:
            forward = apply if accumulate == 1 else apply_in_microbatches
            output, model_state = forward(params, state.model_state, images, dropout_key)
            seen = _crop_like(labels, output.logits.shape[1:3])
            weights = {}
            if "weight" in example:
                weights["pixel_weights"] = _crop_like(example["weight"], output.logits.shape[1:3])
            value = loss(output.logits, seen, **weights)
            if output.aux_logits is not None:
                value = value + aux_weight * loss(output.aux_logits, seen, **weights)
            return value, (output.logits, seen, model_state)

        (value, (logits, seen, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        grads = batch_mean(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_decay is not None:
            ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay)
            # of what is frozen the mean is itself, but for rounding
            ema_params = jax.tree.map(
                lambda mean, x, inside: x if inside else mean, ema_params, params, _lies_in(params, frozen)
            )
        confusion = batch_sum(_confusion_of(logits, seen))
        metrics = {"loss": value, "miou": mean_iou(confusion), "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, model_state, opt_state, ema_params), metrics

    def evaluate(state: TrainState, batch: PyTree) -> PyTree:
        params = state.params if state.ema_params is None else state.ema_params
        images = normalize(jnp.asarray(batch["image"], jnp.float32) / 255)
        output: Any = model.apply({"params": params, **state.model_state}, images, train=False)
        logits = output.logits
        labels = jnp.asarray(batch["label"])
        if logits.shape[1:3] != images.shape[1:3]:
            labels = _crop_like(labels, logits.shape[1:3])
        elif logits.shape[1:3] != labels.shape[1:3]:  # labels kept at their own resolution
            shape = (logits.shape[0], *labels.shape[1:], logits.shape[-1])
            logits = jax.image.resize(logits, shape, "bilinear", antialias=False)
        confusion = _confusion_of(logits, labels)
        pixels = jnp.sum(confusion).astype(jnp.float32)
        # the loss is a mean over the global batch, so its weight is the global count and each device adds a share
        share = loss(logits, labels) * pixels
        return batch_sum({"confusion": confusion, "loss": share, "pixels": pixels})

    def summarize(sums: PyTree) -> dict[str, float]:
        loss = float(sums["loss"] / max(float(sums["pixels"]), 1))
        return {"loss": loss, **named_scores(sums["confusion"])}

    return TrainFns(init, update, evaluate, summarize)
