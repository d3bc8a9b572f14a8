"""Inception-v3, whose pooled features and class scores the published FID and Inception score are made of."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import BatchNorm
from jaxseg.ops.pooling import max_pool

__all__ = ["InceptionOutput", "InceptionV3"]

LEAST = 75  # pixels: four strides of two without padding leave a row


class InceptionOutput(NamedTuple):
    """Float32: means over the last 8x8 features, and class scores from them."""

    pool: Float[Array, "n 2048"]
    logits: Float[Array, "n k"]


class Conv(nn.Module):
    """A convolution without bias, batch norm and ReLU; the name of torchvision's module is the caller's."""

    features: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 c2"]:
        pad = [((k - 1) // 2,) * 2 if self.padded else (0, 0) for k in self.window]
        conv = nn.Conv(
            self.features, self.window, self.stride, padding=pad, use_bias=False, dtype=self.dtype, name="conv"
        )
        return nn.relu(BatchNorm(epsilon=1e-3, dtype=self.dtype, name="bn")(conv(x), train=train))


class Step(NamedTuple):
    """A convolution of a branch."""

    name: str
    features: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1


class Mixed(nn.Module):
    """Branches side by side, each a chain of convolutions, and a pooled one; the table gives their channels.

    A chain's last entry may be a tuple of steps, which all see what comes before them (Szegedy et al. 2016, Figure 7).
    `pooled` is the pooled branch's convolution; without it the pooling halves the image and is followed by none.
    """

    branches: Sequence[Sequence[Any]]
    pooled: Step | None = None
    pooling: str = "mean"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 c2"]:
        def run(x: Array, step: Step) -> Array:
            conv = Conv(step.features, step.window, step.stride, step.stride == 1, self.dtype, name=step.name)
            return conv(x, train=train)

        parts = []
        for branch in self.branches:
            y = x
            for step in branch:
                ends = [run(y, s) for s in ([step] if isinstance(step, Step) else step)]
                y = jnp.concatenate(ends, -1)
            parts.append(y)
        if self.pooled is None:
            return jnp.concatenate([*parts, max_pool(x, 3, 2)], -1)
        if self.pooling == "max":
            y = max_pool(x, 3, 1, 1)
        else:
            counted = self.pooling == "mean"
            y = nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)), count_include_pad=counted)
        return jnp.concatenate([*parts, run(y, self.pooled)], -1)


def _a(pool: int) -> dict[str, Any]:
    return {
        "branches": (
            (Step("branch1x1", 64),),
            (Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5))),
            (
                Step("branch3x3dbl_1", 64),
                Step("branch3x3dbl_2", 96, (3, 3)),
                Step("branch3x3dbl_3", 96, (3, 3)),
            ),
        ),
        "pooled": Step("branch_pool", pool),
    }


def _c(c: int) -> dict[str, Any]:
    row, column = (1, 7), (7, 1)
    return {
        "branches": (
            (Step("branch1x1", 192),),
            (Step("branch7x7_1", c), Step("branch7x7_2", c, row), Step("branch7x7_3", 192, column)),
            (
                Step("branch7x7dbl_1", c),
                Step("branch7x7dbl_2", c, column),
                Step("branch7x7dbl_3", c, row),
                Step("branch7x7dbl_4", c, column),
                Step("branch7x7dbl_5", 192, row),
            ),
        ),
        "pooled": Step("branch_pool", 192),
    }


def _split(name: str) -> tuple[Step, Step]:
    return Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1))


_E = {
    "branches": (
        (Step("branch1x1", 320),),
        (Step("branch3x3_1", 384), _split("branch3x3_2")),
        (Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, (3, 3)), _split("branch3x3dbl_3")),
    ),
    "pooled": Step("branch_pool", 192),
}

TABLE: dict[str, dict[str, Any]] = {  # Szegedy et al. 2016, Table 1, with torchvision's names
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": {
        "branches": (
            (Step("branch3x3", 384, (3, 3), 2),),
            (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3), 2)),
        )
    },
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": {
        "branches": (
            (Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2)),
            (
                Step("branch7x7x3_1", 192),
                Step("branch7x7x3_2", 192, (1, 7)),
                Step("branch7x7x3_3", 192, (7, 1)),
                Step("branch7x7x3_4", 192, (3, 3), 2),
            ),
        )
    },
    "Mixed_7b": _E,
    "Mixed_7c": _E,
}


class InceptionV3(nn.Module):
    """Inception-v3 (Szegedy et al. 2016, Table 1), torchvision's in every number, without the auxiliary classifier.

    Images `[n, h, w, 3]` in [-1, 1], 299x299 as published, to an `InceptionOutput`. `fid` makes it the network of
    2015 that FID is measured with (1008 classes): its mean poolings leave the border out, and the last block pools
    by maxima. Raises ValueError for images below 75 pixels.
    """

    num_classes: int = 1000
    fid: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"], *, train: bool) -> InceptionOutput:
        if min(images.shape[1:3]) < LEAST:
            raise ValueError(f"InceptionV3 needs h, w of at least {LEAST}, got {images.shape[1:3]}; resize to 299")
        x = images.astype(self.dtype)
        for name, features, window, stride, padded in (
            ("Conv2d_1a_3x3", 32, 3, 2, False),
            ("Conv2d_2a_3x3", 32, 3, 1, False),
            ("Conv2d_2b_3x3", 64, 3, 1, True),
            ("Conv2d_3b_1x1", 80, 1, 1, False),
            ("Conv2d_4a_3x3", 192, 3, 1, False),
        ):
            x = Conv(features, (window, window), stride, padded, self.dtype, name=name)(x, train=train)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = max_pool(x, 3, 2)
        for name, table in TABLE.items():
            pooling = "mean"
            if self.fid:
                pooling = "max" if name == "Mixed_7c" else "inner mean"
            x = Mixed(**table, pooling=pooling, dtype=self.dtype, name=name)(x, train=train)
        pool = x.astype(jnp.float32).mean((1, 2))
        return InceptionOutput(pool, nn.Dense(self.num_classes, name="fc")(pool))
