from .augment import (
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
from .canvas import MEAN_COLOUR, Fit, fit_geometry, fit_image, fit_map, fit_to
from .check import DataReport, check_data, median_frequency
from .coco import CocoSource, coco
from .copy_paste import copy_paste, paste_objects, scale_jitter
from .folder import FolderSource, folder, folder_splits
from .images import IMAGE_SUFFIXES, count_frames, read_frames, read_image, read_mask
from .instances import InstanceFolder, instance_folder
from .objects import ObjectSource, PaddedObjects, object_masks, padded_objects
from .official import OfficialSource, ade20k, camvid, cityscapes, oxford_pets, voc
from .pictures import PictureSource, centre_square, pictures
from .pipeline import batch_names, eval_batches, train_batches
from .proposals import selective_search
from .shapes_tfds import ShapesObjects, ShapesSource, default_data_dir, prepare_shapes, shapes
from .source import IGNORE, DataError, Example, Source, voc_palette
from .voc_objects import VocObjects, voc_objects
from .weight_map import border_weights, with_border_weights

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
