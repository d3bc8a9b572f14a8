"""Folders of pictures without masks."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import DataError, Source, centre_square, pictures


def write(path, size, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), colour, np.uint8)).save(path)


def test_subfolders_are_classes(tmp_path):
    for name, colour in (("cat/2", 10), ("cat/1", 20), ("ant/deep/3", 30)):
        write(tmp_path / f"{name}.png", (12, 20), colour)
    source = pictures(tmp_path, 8)
    assert isinstance(source, Source)
    assert (source.class_names, source.num_classes, source.classes) == (("ant", "cat"), 2, (0, 1, 1))
    assert [int(source[i]["image"][0, 0, 0]) for i in range(3)] == [30, 20, 10]
    assert source.name(0).endswith("ant/deep/3.png")
    example = source[1]
    assert (example["image"].shape, example["image"].dtype) == ((8, 8, 3), np.uint8)
    assert (example["class"].shape, example["class"].dtype, int(example["class"])) == ((), np.int32, 1)


def test_a_flat_folder_is_one_class(tmp_path):
    write(tmp_path / "a.png", (8, 8))
    write(tmp_path / "sub" / "b.png", (8, 8))
    source = pictures(tmp_path, 8)
    assert (source.num_classes, source.classes) == (1, (0, 0))


def test_the_middle_square():
    image = np.zeros((4, 10, 3), np.uint8)
    image[:, 3:7] = 200
    np.testing.assert_array_equal(centre_square(image, 4), np.full((4, 4, 3), 200))
    np.testing.assert_array_equal(centre_square(image.transpose(1, 0, 2), 2), np.full((2, 2, 3), 200))


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        pictures(tmp_path / "none", 8)
    with pytest.raises(DataError, match="no picture"):
        pictures(tmp_path, 8)
