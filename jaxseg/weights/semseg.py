"""hszhao/semseg's names: PSPNet with the deep stem as `layer0`, saved from DataParallel."""

from jaxseg.models.pspnet import PSPNet
from jaxseg.weights.torchvision import HEAD, NUMBERED, Publisher

__all__ = ["SEMSEG"]

SEMSEG = Publisher(
    "semseg",
    {
        PSPNet: (
            *((rf"^backbone/conv{i}$", f"layer0/{3 * i - 3}") for i in (1, 2, 3)),
            *((rf"^backbone/bn{i}$", f"layer0/{3 * i - 2}") for i in (1, 2, 3)),
            (r"^backbone/", ""),
            (r"^aux_classifier", "aux"),
            (r"^(ppm/features_\d+)/conv$", r"\1/1"),  # 0 is the pooling
            (r"^(ppm/features_\d+)/bn$", r"\1/2"),
            *HEAD,
            *NUMBERED,
        )
    },
    prefix="module.",
)
