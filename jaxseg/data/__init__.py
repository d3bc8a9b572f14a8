"""Sources of labelled images, batches of fixed shape, and augmentation on the device."""

from jaxseg.data.canvas import MEAN_COLOUR, Fit, fit_geometry, fit_image, fit_map, fit_to
from jaxseg.data.folder import FolderSource, folder, folder_splits
from jaxseg.data.images import read_image, read_mask
from jaxseg.data.pipeline import batch_names, eval_batches, train_batches
from jaxseg.data.source import IGNORE, DataError, Example, Source, voc_palette

__all__ = [
    "IGNORE",
    "MEAN_COLOUR",
    "DataError",
    "Example",
    "Fit",
    "FolderSource",
    "Source",
    "batch_names",
    "eval_batches",
    "fit_geometry",
    "fit_image",
    "fit_map",
    "fit_to",
    "folder",
    "folder_splits",
    "read_image",
    "read_mask",
    "train_batches",
    "voc_palette",
]
