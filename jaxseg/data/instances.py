"""Folders of pictures and maps of instance ids: `SPLIT/images` and `SPLIT/instances`, or `images` and `instances`."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxseg.data.images import IMAGE_SUFFIXES, read_image, read_mask
from jaxseg.data.source import DataError, Example, voc_palette

__all__ = ["InstanceFolder", "instance_folder"]

_MAP_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".webp")


@dataclasses.dataclass(frozen=True)
class InstanceFolder:
    """Pairs of a picture and its id map. See `jaxseg.data.objects` and `instance_folder`.

    "instances" are the file's ids, renumbered 1..k in their order; all are of class 1.
    """

    pairs: tuple[tuple[pathlib.Path, pathlib.Path], ...]
    class_names: tuple[str, ...]

    has_masks = True

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def palette(self) -> np.ndarray:
        return voc_palette(self.num_classes)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def __getitem__(self, index: int) -> Example:
        """Raises DataError, naming the file, if one is unreadable, of another size, or has negative ids."""
        image_path, map_path = self.pairs[index]
        image, ids = read_image(image_path), read_mask(map_path, advice="save ids as a 16-bit PNG of one channel")
        if ids.shape != image.shape[:2]:
            raise DataError(f"{map_path}: the map is {ids.shape}, its image {image.shape[:2]} (h, w)")
        if ids.min(initial=0) < 0:
            raise DataError(f"{map_path}: id {ids.min()}; ids are 1.. and 0 is the background")
        values, places = np.unique(ids, return_inverse=True)
        instances = places.reshape(ids.shape).astype(np.int32) + (values[0] != 0)
        boxes = _boxes(instances, int((values != 0).sum()))
        return {"image": image, "instances": instances, "boxes": boxes, "classes": np.ones(len(boxes), np.int32)}


def _boxes(instances: np.ndarray, k: int) -> np.ndarray:
    """Boxes `[k, 4]` of the ids 1..k, all at once."""
    h, w = instances.shape
    first = np.full((k + 1, 2), max(h, w), np.int64)
    last = np.zeros((k + 1, 2), np.int64)
    for axis, places in enumerate(np.indices((h, w))):
        np.minimum.at(first[:, 1 - axis], instances, places)
        np.maximum.at(last[:, 1 - axis], instances, places + 1)
    return np.concatenate([first, last], 1)[1:].astype(np.float32)


def instance_folder(root: str | os.PathLike, split: str | None = None, *, class_name: str = "object") -> InstanceFolder:
    """Pictures with an id map of the same stem each: one class of objects, `class_name`, sorted by name.

    `root/split/images` and `root/split/instances`, or without `split` `root/images` and `root/instances`. In a map 0 is
    the background and every other value an object; values need not be consecutive. Raises DataError for folders that
    are not there, files without partner, and two of one stem.
    """
    base = pathlib.Path(root) if split is None else pathlib.Path(root) / split
    problems: list[str] = []
    images, maps = (_by_stem(base / kind, suffixes, problems) for kind, suffixes in _KINDS)
    problems += [
        f"{images[s]}: no map of that name in {base / 'instances'}" for s in sorted(images.keys() - maps.keys())
    ]
    problems += [
        f"{maps[s]}: no picture of that name in {base / 'images'}" for s in sorted(maps.keys() - images.keys())
    ]
    if problems:
        raise DataError(*problems, heading=f"{base}: {len(problems)} file(s) without a partner of their own")
    if not images:
        raise DataError(f"{base / 'images'}: no picture; looked for {' '.join(sorted(IMAGE_SUFFIXES))}")
    return InstanceFolder(tuple((images[s], maps[s]) for s in sorted(images)), ("background", class_name))


_KINDS: tuple[tuple[str, Sequence[str]], ...] = (("images", sorted(IMAGE_SUFFIXES)), ("instances", _MAP_SUFFIXES))


def _by_stem(directory: pathlib.Path, suffixes: Sequence[str], problems: list[str]) -> dict[str, pathlib.Path]:
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder; pictures are in images and their id maps in instances")
    found: dict[str, pathlib.Path] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() in suffixes and path.name[0] != ".":
            if path.stem in found:
                problems.append(f"{path}: {found[path.stem].name} beside it has the same stem; rename or remove one")
            found[path.stem] = path
    return found
