"""segmentation-models-pytorch's names: `encoder`, `decoder` and `segmentation_head`."""

from jaxseg.models.deeplabv3 import DeepLabV3
from jaxseg.models.deeplabv3plus import DeepLabV3Plus
from jaxseg.models.pspnet_smp import EncoderPSPNet
from jaxseg.models.unet_encoder import EncoderUNet
from jaxseg.weights.torchvision import CONV_NORM, MOBILE_V2, NUMBERED, Layout, Publisher

__all__ = ["SMP"]

ASPP: Layout = (
    (r"^aspp/image_pooling/conv$", "aspp/convs/4/1"),
    (r"^aspp/image_pooling/bn$", "aspp/convs/4/2"),
    (r"/depthwise$", "/0/0"),
    (r"/pointwise/conv$", "/0/1"),
    (r"/pointwise/bn$", "/1"),
)

SMP = Publisher(
    "segmentation-models-pytorch",
    {
        EncoderUNet: (
            *MOBILE_V2,
            (r"^blocks_(\d)_(conv\d)", r"decoder/blocks/\1/\2"),
            (r"^center_(\d)", r"decoder/center/\1"),
            (r"^logits$", "segmentation_head/0"),
            *NUMBERED,
            *CONV_NORM,
        ),
        EncoderPSPNet: (
            *MOBILE_V2,
            (r"^psp_(\d)$", r"decoder/psp/blocks/\1/pool/1/conv"),
            (r"^psp_(\d)/", r"decoder/psp/blocks/\1/pool/1/"),
            (r"^conv/", "decoder/conv/"),
            (r"^logits$", "segmentation_head/0"),
            *NUMBERED,
            *CONV_NORM,
        ),
        DeepLabV3: (
            *MOBILE_V2,
            (r"^block/", "decoder/"),
            (r"^logits$", "segmentation_head/0"),
            (r"^backbone/", "encoder/"),
            *ASPP,
            (r"^(aspp/.*)/conv$", r"decoder/\1/0"),
            (r"^(aspp/.*)/bn$", r"decoder/\1/1"),
            (r"^aspp/", "decoder/aspp/"),
            *NUMBERED,
        ),
        DeepLabV3Plus: (
            *MOBILE_V2,
            (r"^backbone/", "encoder/"),
            (r"^logits$", "segmentation_head/0"),
            (r"^block/depthwise$", "decoder/aspp/1/0"),
            (r"^block/pointwise/conv$", "decoder/aspp/1/1"),
            (r"^block/pointwise/bn$", "decoder/aspp/2"),
            *ASPP,
            (r"^aspp/", "decoder/aspp/0/"),
            (r"^(block\d/)", r"decoder/\1"),
            *NUMBERED,
            *CONV_NORM,
        ),
    },
    renamed=(
        (r"^decoder\.0\.", "decoder.aspp."),  # DeepLabV3 before 0.4
        (r"^decoder\.1\.", "decoder.conv."),
        (r"^decoder\.2\.", "decoder.bn."),
    ),
    fields={DeepLabV3: {"aux": None, "align_corners": True, "dilate_first": True}},
)
