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
from jaxseg.data.coco import CocoSource, coco
from jaxseg.data.copy_paste import copy_paste, paste_objects, scale_jitter
from jaxseg.data.folder import FolderSource, folder, folder_splits
from jaxseg.data.images import IMAGE_SUFFIXES, count_frames, read_frames, read_image, read_mask
from jaxseg.data.instances import InstanceFolder, instance_folder
from jaxseg.data.objects import ObjectSource, PaddedObjects, object_masks, padded_objects
from jaxseg.data.official import OfficialSource, ade20k, camvid, cityscapes, oxford_pets, voc
from jaxseg.data.pictures import PictureSource, centre_square, pictures
from jaxseg.data.pipeline import batch_names, eval_batches, train_batches
from jaxseg.data.proposals import selective_search
from jaxseg.data.shapes_tfds import ShapesObjects, ShapesSource, default_data_dir, prepare_shapes, shapes
from jaxseg.data.source import IGNORE, DataError, Example, Source, voc_palette
from jaxseg.data.voc_objects import VocObjects, voc_objects
from jaxseg.data.weight_map import border_weights, with_border_weights

__all__ = [
    "IGNORE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_SUFFIXES",
    "MEAN_COLOUR",
    "Augmentation",
    "CocoSource",
    "DataError",
    "DataReport",
    "Example",
    "Fit",
    "FolderSource",
    "InstanceFolder",
    "ObjectSource",
    "OfficialSource",
    "PaddedObjects",
    "PictureSource",
    "ShapesObjects",
    "ShapesSource",
    "Source",
    "VocObjects",
    "ade20k",
    "batch_names",
    "border_weights",
    "camvid",
    "centre_square",
    "check_data",
    "cityscapes",
    "coco",
    "color_jitter",
    "copy_paste",
    "count_frames",
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
    "instance_folder",
    "median_frequency",
    "normalize",
    "object_masks",
    "oxford_pets",
    "padded_objects",
    "paste_objects",
    "pictures",
    "prepare_shapes",
    "read_frames",
    "read_image",
    "read_mask",
    "rotate",
    "scale_crop",
    "scale_jitter",
    "selective_search",
    "shapes",
    "train_batches",
    "voc",
    "voc_objects",
    "voc_palette",
    "with_border_weights",
]
