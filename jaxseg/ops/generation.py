"""Operations of ProGAN and StyleGAN on `[N, H, W, C]` arrays."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.ops.batch import BATCH_AXIS, in_mapped_batch

__all__ = ["average_pool", "blur", "minibatch_stddev", "pixel_norm"]


def pixel_norm(x: Float[Array, "*n c"], epsilon: float = 1e-8) -> Float[Array, "*n c"]:
    """Each pixel's features over the root of their mean square, float32 inside (Karras et al. 2018, sec. 4.2)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + epsilon)).astype(x.dtype)


def blur(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """The separable filter (1, 2, 1) / 4 over height and width, with zeros beyond the border."""
    for axis in (1, 2):
        n = x.shape[axis]
        pad = [(0, 0)] * x.ndim
        pad[axis] = (1, 1)
        padded = jnp.pad(x, pad)
        before, after = (jax.lax.slice_in_dim(padded, i, i + n, axis=axis) for i in (0, 2))
        x = 0.25 * (before + after) + 0.5 * x
    return x


def average_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Means of 2x2 pixels. Raises ValueError for an odd height or width."""
    n, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"average_pool needs h, w divisible by 2, got ({h}, {w}); pad to ({h + h % 2}, {w + w % 2})")
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def minibatch_stddev(
    x: Float[Array, "n h w c"], group_size: int = 4, epsilon: float = 1e-8
) -> Float[Array, "n h w c1"]:
    """`x` with a feature map more: the mean deviation within groups of examples (Karras et al. 2018, sec. 3).

    Examples i, i + m, i + 2 m, ... of the global batch form group i, with m groups of `group_size`, or one
    group where the batch is smaller. Raises ValueError where groups do not fill the batch.
    """
    if group_size < 1:
        raise ValueError(f"minibatch_stddev takes groups of 1 example or more, got {group_size}")
    every = jax.lax.all_gather(x, BATCH_AXIS, tiled=True) if in_mapped_batch() else x
    n = every.shape[0]
    if n == 0:
        raise ValueError("minibatch_stddev needs a batch of one image or more, got none")
    size = min(group_size, n)
    if n % size:
        raise ValueError(
            f"minibatch_stddev takes groups of {size} examples, got {n}; use a batch of {-(-n // size) * size}"
        )
    groups = every.astype(jnp.float32).reshape(size, n // size, *x.shape[1:])
    var = jnp.mean(jnp.square(groups - groups.mean(0)), 0)
    deviation = jnp.tile(jnp.sqrt(var + epsilon).mean((1, 2, 3)), size)
    if in_mapped_batch():
        deviation = jax.lax.dynamic_slice_in_dim(deviation, jax.lax.axis_index(BATCH_AXIS) * x.shape[0], x.shape[0])
    plane = jnp.broadcast_to(deviation[:, None, None, None], (*x.shape[:3], 1))
    return jnp.concatenate([x, plane.astype(x.dtype)], -1)
