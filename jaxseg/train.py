"""The training seam: a NamedTuple of pure functions, after Optax. `fit` runs them and knows no model."""

from collections.abc import Callable, Mapping, Sequence
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

__all__ = [
    "TrainFns",
    "TrainState",
    "adamw_cosine",
    "augmented",
    "draw_variables",
    "sgd_poly",
    "slower",
    "supervised",
]


class TrainFns(NamedTuple):
    """What a run does, as pure functions; `fit` compiles and places them."""

    init: Callable[..., PyTree]  # (key, batch) -> state: any pytree of arrays
    update: Callable[..., tuple[PyTree, PyTree]]  # (state, batch, key) -> (state, scalar metrics)
    evaluate: Callable[..., PyTree]  # (state, batch) -> sums, additive over batches, shards and hosts
    summarize: Callable[..., Mapping[str, float]]  # summed sums, on the host -> scores by name


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
    decay = optax.add_decayed_weights(weight_decay, mask=_kernels)
    sgd = optax.sgd(optax.polynomial_schedule(peak, 0.0, power, steps), momentum)
    return optax.chain(*() if clip is None else (optax.clip_by_global_norm(clip),), decay, sgd)


def adamw_cosine(
    peak: float, steps: int, *, warmup: int | None = None, weight_decay: float = 1e-4, clip: float | None = 1.0
) -> optax.GradientTransformation:
    """AdamW under linear warm-up (by default a twentieth of the steps) and cosine decay to zero.

    The global norm of the gradient is clipped at `clip`; weight decay spares biases and norms (rank < 2).
    """
    warmup = max(steps // 20, 1) if warmup is None else warmup
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, min(warmup, max(steps - 1, 1)), steps)
    adamw = optax.adamw(schedule, weight_decay=weight_decay, mask=_kernels)
    return adamw if clip is None else optax.chain(optax.clip_by_global_norm(clip), adamw)


def _kernels(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _lies_in(params: PyTree, modules: Sequence[str]) -> PyTree:
    """A mask over `params`: what belongs to the submodules of those names. Raises ValueError for one not there."""
    for name in modules:
        if name not in params:
            raise ValueError(f'the model has no submodule "{name}"; it has {", ".join(sorted(params))}')
    return {name: jax.tree.map(lambda _, inside=name in modules: inside, part) for name, part in params.items()}


def slower(
    optimizer: optax.GradientTransformation, factor: float, modules: Sequence[str]
) -> optax.GradientTransformation:
    """`optimizer` with `factor` times its learning rate, weight decay's share included, in the submodules named."""
    return optax.chain(optimizer, optax.masked(optax.scale(factor), lambda params: _lies_in(params, modules)))


def _without(optimizer: optax.GradientTransformation, modules: Sequence[str]) -> optax.GradientTransformation:
    """`optimizer` without state, decay or update for the submodules named."""

    def labels(params: PyTree) -> PyTree:
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", _lies_in(params, modules))

    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _in_eval_mode(modules: Sequence[str]) -> Callable[..., Any]:
    """An interceptor for `nn.intercept_methods`: the submodules named run with `train=False`, whatever is asked."""

    def interceptor(call: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        if context.module.path and context.module.path[0] in modules and "train" in kwargs:
            kwargs = kwargs | {"train": False}
        return call(*args, **kwargs)

    return interceptor


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
    frozen: Sequence[str] = (),
) -> TrainFns:
    """Semantic segmentation as `TrainFns`.

    A batch holds `image` uint8 `[N, H, W, 3]` and `label` int32 `[N, H, W]`, and may hold pixel weights
    `weight [N, H, W]`, which then go to the loss as `pixel_weights`. `loss(logits, labels)` is a mean over the
    global batch (`jaxseg.losses`). `augment` are functions of (key, example), run on the device in order, on
    images in [0, 1]; the model sees ImageNet-normalised images.

    `accumulate` splits the batch into that many microbatches, one in memory at a time: the forward pass is
    recomputed in the backward pass, and the loss is still that of the whole batch (batch norm sees
    microbatches). `pretrained` maps fresh variables to variables with published weights in them.

    `frozen` names submodules of the model, such as "encoder", that stay bit for bit as they start: no gradient
    goes through them, the optimizer and its weight decay pass them by, and they run in eval mode, so that
    their batch norms use, and keep, the running statistics.
    """
    if frozen:
        optimizer = _without(optimizer, frozen)

    def apply(params: PyTree, model_state: PyTree, images: Array, key: jax.Array) -> tuple[Any, PyTree]:
        params = {k: jax.lax.stop_gradient(v) if k in frozen else v for k, v in params.items()}
        with nn.intercept_methods(_in_eval_mode(frozen)):
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
            raise ValueError(f"a batch of {n} a device does not split into accumulate={accumulate} microbatches")
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
            ema_params |= {name: params[name] for name in frozen}  # which their mean would be, but for rounding
        confusion = batch_sum(confusion_matrix(jnp.argmax(logits, -1), seen, logits.shape[-1]))
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
        confusion = confusion_matrix(jnp.argmax(logits, -1), labels, logits.shape[-1])
        pixels = jnp.sum(confusion).astype(jnp.float32)
        # the loss is a mean over the global batch, so its weight is the global count and each device adds a share
        share = loss(logits, labels) * pixels
        return batch_sum({"confusion": confusion, "loss": share, "pixels": pixels})

    def summarize(sums: PyTree) -> dict[str, float]:
        loss = float(sums["loss"] / max(float(sums["pixels"]), 1))
        return {"loss": loss, **named_scores(sums["confusion"])}

    return TrainFns(init, update, evaluate, summarize)
