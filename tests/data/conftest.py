"""Tiny folders and a tiny prepared shapes set."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import shapes_tfds


def write_pair(images: pathlib.Path, labels: pathlib.Path, stem: str, seed: int, size=(20, 30), classes=3):
    """A smooth picture and a blocky mask in which every class has pixels."""
    rng = np.random.default_rng(seed)
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(images / f"{stem}.png")
    mask = rng.integers(0, classes, size, np.uint8)
    mask.flat[:classes] = np.arange(classes)
    Image.fromarray(mask).save(labels / f"{stem}.png")


@pytest.fixture
def make_folder(tmp_path):
    """Writes `{split}/images` and `{split}/labels` with the stated numbers of pairs; returns the root."""

    def make(**counts: int) -> pathlib.Path:
        for split, count in (counts or {"train": 7, "val": 3}).items():
            for i in range(count):
                write_pair(tmp_path / split / "images", tmp_path / split / "labels", f"{split}{i:02}", i)
        return tmp_path

    return make


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory):
    """A folder with a prepared shapes set of 6 train and 3 validation pictures."""
    data_dir = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes_tfds, "_SPLITS", {"train": (0, 6), "validation": (1, 3)})
        shapes_tfds.prepare_shapes(data_dir)
    return data_dir
