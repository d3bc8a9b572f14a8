"""From a photograph of any size to a label map of that size, by compiled programs of fixed shapes.

Images are RGB, uint8, and normalised by ImageNet's mean and standard deviation on the device: what torchvision,
segmentation-models-pytorch and semseg all do (semseg writes the same numbers times 255). Caffe's VGG weights, which
want BGR less a mean, take the difference into their first layer when they load (`jaxseg.weights.load_encoder`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
