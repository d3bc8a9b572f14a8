"""Where PyTorch computes beside JAX: on the same device, with what its users set there."""

from collections.abc import Callable
from typing import Any

import jax
import torch

__all__ = ["autocast", "beside_jax", "finished", "images_first"]


def beside_jax() -> None:
    """Puts what PyTorch makes from here on onto JAX's device; raises ImportError where it has none of that kind.

    On a GPU cuDNN tries its algorithms, and float32 products are TensorFloat-32's, as JAX's are by default.
    """
    if jax.default_backend() == "cpu":
        return
    if not torch.cuda.is_available():
        raise ImportError(f"JAX computes on {jax.devices()[0].device_kind}, and this PyTorch has no GPU")
    torch.set_default_device("cuda")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


def on_gpu() -> bool:
    """Whether `beside_jax` found one."""
    return torch.get_default_device().type == "cuda"


def autocast(dtype: str) -> torch.autocast:
    """PyTorch's mixed precision, for "bfloat16"."""
    return torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=dtype == "bfloat16")


def finished(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call`, and the device's end of it."""
    if not on_gpu():
        return call

    def run() -> Any:
        output = call()
        torch.cuda.synchronize()
        return output

    return run


def images_first(images: Any) -> torch.Tensor:
    """`[N, H, W, C]` as PyTorch's `[N, C, H, W]`; on a GPU it keeps the order in memory (channels_last), as is fast."""
    images = torch.tensor(images).permute(0, 3, 1, 2)
    return images if on_gpu() else images.contiguous()
