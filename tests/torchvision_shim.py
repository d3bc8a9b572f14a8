"""torchvision beside a CPU build of PyTorch: its compiled operators declared in Python before it is imported.

torchvision's wheel is compiled against a CUDA build; beside another its extension does not load and the import
stops at `torch.ops.torchvision.nms`. No segmentation model needs those operators.
"""

import importlib

import pytest

__all__ = ["torchvision"]

torch = pytest.importorskip("torch")

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)


def _nms(boxes, scores, threshold):
    """Greedy suppression, by definition."""
    order, kept = scores.argsort(descending=True).tolist(), []
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for i in order:
        corner = torch.maximum(boxes[i, :2], boxes[kept, :2]), torch.minimum(boxes[i, 2:], boxes[kept, 2:])
        shared = (corner[1] - corner[0]).clamp(min=0).prod(1)
        if not (shared / (area[i] + area[kept] - shared) > threshold).any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def _import():
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    library.impl("nms", _nms, "CPU")
    module = pytest.importorskip("torchvision")
    from torchvision.ops import boxes

    if not module.extension._has_ops():
        boxes._assert_has_ops = lambda: None
        align = importlib.import_module("torchvision.ops.roi_align")
        align._assert_has_ops = lambda: None
        library.impl("roi_align", align._roi_align, "CPU")
    return module, library


torchvision, _library = _import()  # a library's operators live as long as it does
