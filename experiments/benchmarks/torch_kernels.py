"""What `jaxseg bench` measures beside jaxseg's kernels: the same on the same arrays by PyTorch, scikit-learn, SciPy."""

import importlib.util
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
import torch_device
from torch.nn import functional

from jaxseg.bench.kernels import CLUSTERS, EIGENVECTORS, ITERATIONS, TOLERANCE
from jaxseg.clustering import graph

sys.path.append(str(pathlib.Path(__file__).parents[2] / "tests"))
from golden import adain, generation

__all__ = ["kernel_calls"]

Calls = dict[str, Callable[[], Any]]


def _tensor(x: Any, dtype: str) -> torch.Tensor:
    """Channels first where it is a batch of maps."""
    x = np.asarray(x, np.float32)
    return (torch_device.images_first(x) if x.ndim == 4 else torch.tensor(x)).to(getattr(torch, dtype))


def _pair(f: Callable[..., torch.Tensor], x: torch.Tensor, *rest: Any) -> Calls:
    """A function of tensors, and the gradient of its squares' sum by the first."""
    leaf = x.clone().requires_grad_()

    def train() -> None:
        torch.autograd.grad(f(leaf, *rest).float().square().sum(), leaf)

    forward = torch.inference_mode()(lambda: f(x, *rest))
    return {"forward": torch_device.finished(forward), "train": torch_device.finished(train)}


def _torchvision(name: str, inputs: Any) -> tuple[str, Calls]:
    from torchvision_shim import torchvision

    what = "torchvision" if torchvision.extension._has_ops() else "torchvision, operators in Python"
    if name == "nms":
        boxes, scores = (torch.tensor(np.asarray(x)) for x in inputs)
        forward = lambda: [torchvision.ops.nms(b, s, 0.7) for b, s in zip(boxes, scores, strict=True)]  # noqa: E731
        return what, {"forward": torch_device.finished(forward)}
    rois = list(torch.tensor(np.asarray(inputs[1], np.float32)))
    return what, _pair(lambda x: torchvision.ops.roi_align(x, rois, 7, 1 / 8, 2), _tensor(inputs[0], "float32"))


def _adain(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    (mean, std), (own_mean, own_std) = adain.moments(style), adain.moments(content)
    return (content - own_mean) / own_std * std + mean


def _scikit_learn(inputs: Any) -> Calls:
    from sklearn.cluster import KMeans

    pixels, init = (np.asarray(x) for x in inputs)
    return {"forward": lambda: KMeans(CLUSTERS, init=init, n_init=1, max_iter=ITERATIONS, tol=0).fit(pixels)}


def _scipy(image: Any) -> Calls:
    """The same eigenpairs of a graph that is there already, as clustering.py has it."""
    from scipy.sparse.linalg import eigsh

    path = pathlib.Path(__file__).with_name("clustering.py")
    spec: Any = importlib.util.spec_from_file_location("clustering_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    matrix = module.normalised_matrix(jax.jit(graph)(image))
    return {"forward": lambda: eigsh(matrix, EIGENVECTORS + 1, which="LA", tol=TOLERANCE)}


def kernel_calls(name: str, inputs: Any, dtype: str) -> Mapping[str, Calls]:
    """`{peer: {task: call}}` for a kernel of `jaxseg.bench.KERNELS` on its inputs; none where nothing is known."""
    if name in ("nms", "roi_align"):
        what, calls = _torchvision(name, inputs)
        return {what: calls}
    if name == "kmeans":
        return {"scikit-learn": _scikit_learn(inputs)}
    if name == "ncut_eigenpairs":
        return {"scipy": _scipy(inputs[0])}
    x = _tensor(inputs[0], dtype)
    weight = None
    if len(inputs) > 1 and name != "adain":
        weight = torch.tensor(np.asarray(inputs[1], np.float32)).permute(3, 2, 0, 1).contiguous().to(x.dtype)
    made: dict[str, Callable[[], Calls]] = {
        "adain": lambda: _pair(_adain, x, _tensor(inputs[1], dtype)),
        "doubling_conv_blur": lambda: _pair(
            lambda x: generation.blurred(functional.conv2d(generation.doubled(x), weight, padding=1)), x
        ),
        "depthwise_3x3": lambda: _pair(lambda x: functional.conv2d(x, weight, padding=1, groups=x.shape[1]), x),
        "max_pool_2x2": lambda: _pair(lambda x: functional.max_pool2d(x, 2), x),
        "bilinear_x2": lambda: _pair(lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"), x),
    }
    return {"torch eager": made[name]()} if name in made else {}
