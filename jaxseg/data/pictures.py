"""A folder of pictures without masks, as a source of squares: for style transfer and for generation."""

import dataclasses
import os
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxseg.data.images import IMAGE_SUFFIXES, read_image
from jaxseg.data.source import DataError, Example, voc_palette

__all__ = ["PictureSource", "centre_square", "pictures"]


def centre_square(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle square, scaled to `size` with antialiasing: by means where the factor is whole."""
    h, w = image.shape[:2]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    filter_ = Image.Resampling.BILINEAR if side % size else Image.Resampling.BOX
    return np.asarray(square if side == size else square.resize((size, size), filter_))


@dataclasses.dataclass(frozen=True)
class PictureSource:
    """Squares of `size`, with the class that their folder is named after. See `jaxseg.data.Source`.

    `source[i]` is "image" uint8 `[size, size, 3]` and "class" int32, a scalar.
    """

    paths: tuple[pathlib.Path, ...]
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    size: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def palette(self) -> np.ndarray:
        return voc_palette(self.num_classes)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def __getitem__(self, index: int) -> Example:
        image = centre_square(read_image(self.paths[index]), self.size)
        return {"image": image, "class": np.array(self.classes[index], np.int32)}


def pictures(root: str | os.PathLike, size: int) -> PictureSource:
    """The pictures of a folder, in the order of their names; those of its subfolders are classes.

    Where pictures lie in the folder itself there is one class. Raises DataError where there is none.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{root}: no picture in it; looked for {' '.join(sorted(IMAGE_SUFFIXES))}")
    if any(path.parent == root for path in found):
        return PictureSource(tuple(found), (0,) * len(found), (root.name,), size)
    groups = [path.relative_to(root).parts[0] for path in found]
    names = sorted(set(groups))
    return PictureSource(tuple(found), tuple(map(names.index, groups)), tuple(names), size)
