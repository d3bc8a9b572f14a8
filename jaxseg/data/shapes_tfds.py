"""The shapes world as a TFDS data set, prepared once per user without TensorFlow, and as a source."""

import dataclasses
import functools
import io
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from jaxseg.data.scenes import CLASS_NAMES, PALETTE, instance_boxes
from jaxseg.data.source import DataError, Example

__all__ = ["ShapesObjects", "ShapesSource", "default_data_dir", "prepare_shapes", "shapes"]

_VERSION = "1.0.0"
_SPLITS = {"train": (0, 1000), "validation": (1, 200)}  # seed of the world, number of pictures
_STALE_SECONDS = 3600  # a preparation takes seconds: what is older was killed


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def default_data_dir() -> pathlib.Path:
    """$JAXSEG_DATA_DIR, or jaxseg in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    if chosen := os.environ.get("JAXSEG_DATA_DIR"):
        return pathlib.Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(cache) if cache else pathlib.Path.home() / ".cache") / "jaxseg"


def prepare_shapes(
    data_dir: str | os.PathLike | None = None, progress: Callable[[int, int], None] | None = None
) -> pathlib.Path:
    """Generates the data set under `data_dir` (default: `default_data_dir()`) unless it is there already.

    It is built in a folder of its own and renamed into place: a killed preparation leaves nothing that could
    be taken for the data set, and of two at once the first wins. Calls `progress(done, total)` by picture.
    """
    data_dir = default_data_dir() if data_dir is None else pathlib.Path(data_dir)
    home = data_dir / "shapes" / _VERSION
    if home.is_dir():
        return home
    data_dir.mkdir(parents=True, exist_ok=True)
    for old in data_dir.glob(".preparing-*"):
        if time.time() - old.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    from jaxseg.data.shapes_builder import Shapes  # TFDS takes half a second to import

    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=data_dir) as scratch:
        builder = Shapes(data_dir=scratch, file_format="array_record")
        builder.progress = progress
        builder.download_and_prepare()
        home.parent.mkdir(exist_ok=True)
        try:
            os.rename(builder.data_dir, home)
        except OSError:  # the other one was first, and its pictures are ours
            if not home.is_dir():
                raise
    return home


@dataclasses.dataclass(frozen=True)
class ShapesSource:
    """A split of the prepared data set; see `jaxseg.data.Source`.

    Examples hold also "instances" int32 `[H, W]` (0 = background) and "class_vector" float32 `[K]`.
    """

    home: pathlib.Path
    split: str

    class_names = CLASS_NAMES
    palette = PALETTE
    num_classes = len(CLASS_NAMES)

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(os.fspath(self.home))
        # TFDS's own decoder warns where OpenCV is missing
        undecoded = {key: tfds.decode.SkipDecoding() for key in ("image", "label", "instances")}
        return builder.as_data_source(split=self.split, decoders=undecoded)

    def __getstate__(self) -> dict[str, Any]:
        return {"home": self.home, "split": self.split}  # a copy opens the files anew

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        return {
            "image": _pixels(record["image"]),
            "label": _pixels(record["label"]).astype(np.int32),
            "instances": _pixels(record["instances"]).astype(np.int32),
            "class_vector": record["class_vector"],
        }

    def name(self, index: int) -> str:
        return f"shapes/{self.split}/{index}"


class ShapesObjects(ShapesSource):
    """The same pictures as a source of objects; see `jaxseg.data.objects`."""

    has_masks = True

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        label, instances = example["label"], example["instances"]
        classes = [label[instances == k + 1][0] for k in range(instances.max(initial=0))]
        objects = {"boxes": instance_boxes(instances), "classes": np.array(classes, np.int32)}
        return {"image": example["image"], "instances": instances, **objects}


def shapes(
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShapesSource:
    """The embedded data set: "train" or "validation" (also "val"), 128x128; prepared on the first call.

    Raises DataError for another split. See `prepare_shapes` for `data_dir` and `progress`.
    """
    name = "validation" if split == "val" else split
    if name not in _SPLITS:
        raise DataError(f"shapes: no split '{split}'; there is {', '.join(_SPLITS)}")
    return ShapesSource(prepare_shapes(data_dir, progress), name)
