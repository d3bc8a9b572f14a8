"""Sources of labelled images, batches of fixed shape, and augmentation on the device."""

from jaxseg.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    color_jitter,
    elastic,
    flip,
    normalize,
    rotate,
    scale_crop,
)
from jaxseg.data.canvas import MEAN_COLOUR, Fit, fit_geometry, fit_image, fit_map, fit_to
from jaxseg.data.check import DataReport, check_data, median_frequency
from jaxseg.data.folder import FolderSource, folder, folder_splits
from jaxseg.data.images import IMAGE_SUFFIXES, read_image, read_mask
from jaxseg.data.official import OfficialSource, ade20k, cityscapes, oxford_pets, voc
from jaxseg.data.pictures import PictureSource, centre_square, pictures
from jaxseg.data.pipeline import batch_names, eval_batches, train_batches
from jaxseg.data.shapes_tfds import ShapesSource, default_data_dir, prepare_shapes, shapes
from jaxseg.data.source import IGNORE, DataError, Example, Source, voc_palette
from jaxseg.data.weight_map import border_weights, with_border_weights

__all__ = [
    "IGNORE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_SUFFIXES",
    "MEAN_COLOUR",
    "Augmentation",
    "DataError",
    "DataReport",
    "Example",
    "Fit",
    "FolderSource",
    "OfficialSource",
    "PictureSource",
    "ShapesSource",
    "Source",
    "ade20k",
    "batch_names",
    "border_weights",
    "centre_square",
    "check_data",
    "cityscapes",
    "color_jitter",
    "default_data_dir",
    "elastic",
    "eval_batches",
    "fit_geometry",
    "fit_image",
    "fit_map",
    "fit_to",
    "flip",
    "folder",
    "folder_splits",
    "median_frequency",
    "normalize",
    "oxford_pets",
    "pictures",
    "prepare_shapes",
    "read_image",
    "read_mask",
    "rotate",
    "scale_crop",
    "shapes",
    "train_batches",
    "voc",
    "voc_palette",
    "with_border_weights",
]
