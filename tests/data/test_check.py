"""One report of every problem, and the pixel counts of sound data."""

import numpy as np
import pytest
from conftest import write_pair
from PIL import Image

from jaxseg.data import DataError, check_data, folder, median_frequency


def test_every_problem_in_one_error(make_folder):
    root = make_folder(train=8)
    images, labels = root / "train" / "images", root / "train" / "labels"
    (labels / "train00.png").unlink()
    (images / "train01.png").unlink()
    cut = images / "train02.png"
    cut.write_bytes(cut.read_bytes()[:500])
    Image.fromarray(np.zeros((21, 30), np.uint8)).save(labels / "train03.png")
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(labels / "train04.png")
    (images / "train05.bmp").write_bytes((images / "train05.png").read_bytes())
    seen = []
    with pytest.raises(DataError) as caught:
        check_data(root, "train", class_names=["a", "b", "c"], progress=lambda *at: seen.append(at))
    text = str(caught.value)
    assert text.startswith("6 problem(s) in 6 example(s):")
    for words in (
        "train00.png: missing mask",
        "train01.png: missing image",
        "train02.png: cannot be read",
        "train03.png: mask is (21, 30)",
        "train04.png: label(s) 9 outside 0..2",
        "train05.bmp: the stem is there 2 times",
    ):
        assert words in text
    assert seen == [(i, 6) for i in range(1, 7)]
    with pytest.raises(DataError, match="6 problem"):
        check_data(folder(root, "train", strict=False, class_names=["a", "b", "c"]))


def test_report_of_sound_data(tmp_path):
    images, labels = tmp_path / "train" / "images", tmp_path / "train" / "labels"
    for stem, size in (("a", (4, 10)), ("b", (5, 6))):
        write_pair(images, labels, stem, 0, size=size)
    mask = np.zeros((4, 10), np.uint8)
    mask[0, :5] = 1
    mask[1, :] = 255
    Image.fromarray(mask).save(labels / "a.png")
    Image.fromarray(np.full((5, 6), 0, np.uint8)).save(labels / "b.png")
    report = check_data(tmp_path, "train", class_names=["ground", "thing", "never"])
    assert (report.images, report.smallest, report.largest) == (2, (4, 6), (5, 10))
    np.testing.assert_array_equal(report.class_pixels, [55, 5, 0])
    np.testing.assert_array_equal(report.present_pixels, [70, 40, 0])
    np.testing.assert_array_equal(report.class_images, [2, 1, 0])
    assert report.ignored_pixels == 10
    frequency = np.array([55 / 70, 5 / 40])
    expected = [*(np.median(frequency) / frequency), 0]
    np.testing.assert_allclose(median_frequency(report), expected, rtol=1e-6)


def test_check_data_needs_a_split(make_folder):
    with pytest.raises(ValueError, match="split='train'"):
        check_data(make_folder())
