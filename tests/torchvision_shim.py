"""torchvision beside any build of PyTorch: where its compiled operators do not load, Python ones of the same name.

torchvision's wheel is compiled against a CUDA build; beside another its extension does not load and the import
stops at `torch.ops.torchvision.nms`. Beside the one it was compiled for nothing is declared.
"""

import importlib.util
import pathlib

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
    order = scores.argsort(descending=True, stable=True)
    suppressed = torchvision.ops.box_iou(boxes, boxes)[order][:, order] > threshold
    kept = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if kept[i]:
            kept[i + 1 :] &= ~suppressed[i, i + 1 :]
    return order[kept]


def _compiled():
    """Whether the extension loads; declared a second time by it, an operator would end the process."""
    spec = importlib.util.find_spec("torchvision")
    for path in pathlib.Path(spec.origin).parent.glob("_C*.so") if spec else ():
        try:
            torch.ops.load_library(path)
        except OSError:
            continue
        return True
    return False


def _import():
    if _compiled():
        return importlib.import_module("torchvision"), None
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    library.impl("nms", _nms, "CPU")
    module = pytest.importorskip("torchvision")
    from torchvision.ops import boxes

    boxes._assert_has_ops = lambda: None
    align = importlib.import_module("torchvision.ops.roi_align")
    align._assert_has_ops = lambda: None
    align._roi_align = align._roi_align.__wrapped__  # as it is: compiling it takes minutes
    library.impl("roi_align", align._roi_align, "CPU")
    return module, library


torchvision, _library = _import()  # a library's operators live as long as it does
