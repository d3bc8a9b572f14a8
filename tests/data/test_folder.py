"""Layouts, classes and pairing of a folder, and every way in which one is wrong."""

import pickle
import shutil

import numpy as np
import pytest
from conftest import write_pair
from PIL import Image

from jaxseg.data import DataError, folder, folder_splits, voc_palette


def test_split_folders(make_folder):
    root = make_folder(train=4, val=2)
    source = folder(root, "train")
    assert folder_splits(root) == ("train", "val")
    assert (len(source), source.num_classes) == (4, 3)
    assert source.name(1).endswith("train01.png")
    example = source[1]
    assert example["image"].shape == (20, 30, 3)
    assert example["image"].dtype == np.uint8
    assert example["label"].dtype == np.int32
    assert set(np.unique(example["label"])) == {0, 1, 2}
    np.testing.assert_array_equal(source.palette, voc_palette(3))
    assert len(folder(root, "validation")) == 2  # the common other name
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[2]["label"], source[2]["label"])


@pytest.mark.parametrize("names", [("images", "labels"), ("images", "masks"), ("imgs", "annotations")])
def test_splits_inside_images_and_labels(tmp_path, names):
    for split in ("train", "test"):
        write_pair(tmp_path / names[0] / split, tmp_path / names[1] / split, "a", 0)
    assert folder_splits(tmp_path) == ("test", "train")
    assert len(folder(tmp_path, "test")) == 1


def test_flat_folder_is_split_by_name_and_stays_so_when_files_are_added(tmp_path):
    def splits():
        parts = [folder(tmp_path, s, validation_fraction=0.3) for s in ("train", "val")]
        return [{part.name(i) for i in range(len(part))} for part in parts]

    for i in range(30):
        write_pair(tmp_path / "images", tmp_path / "labels", f"{i}", i, size=(4, 4))
    train, val = splits()
    assert folder_splits(tmp_path) == ("train", "val")
    assert not train & val
    assert len(train | val) == 30
    assert 3 <= len(val) <= 15
    for i in range(30, 40):
        write_pair(tmp_path / "images", tmp_path / "labels", f"{i}", i, size=(4, 4))
    more_train, more_val = splits()
    assert train < more_train
    assert val <= more_val
    with pytest.raises(DataError, match=r"no split 'test'.*train and val"):
        folder(tmp_path, "test")


def test_classes_file_with_names_and_colours(make_folder):
    root = make_folder(train=1)
    (root / "classes.txt").write_text("sky\nroad\ntraffic light\n")
    assert folder(root, "train").class_names == ("sky", "road", "traffic light")
    (root / "classes.txt").write_text("sky 0 0 0\n\nroad 200 0 0\ntraffic light 0 0 9\n")
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 9]], np.uint8)
    mask = root / "train" / "labels" / "train00.png"
    labels = np.array(Image.open(mask))
    Image.fromarray(colours[labels]).save(mask)
    source = folder(root, "train")
    assert source.class_names == ("sky", "road", "traffic light")
    np.testing.assert_array_equal(source.palette, colours)
    np.testing.assert_array_equal(source[0]["label"], labels)
    (root / "classes.txt").unlink()
    given = folder(root, "train", palette=[tuple(c) for c in colours.tolist()])
    np.testing.assert_array_equal(given[0]["label"], labels)
    assert given.num_classes == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class"),
        ("a 0 0 0\nb\n", "line 2 has no colour"),
        ("a 0 0 0\nb 0 0 256\n", "above 255"),
        ("a 0 0 0\nb 0 0 0\n", "share a colour"),
    ],
)
def test_bad_classes_file(make_folder, text, message):
    root = make_folder(train=1)
    (root / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=rf"classes\.txt.*{message}"):
        folder(root, "train")


def test_more_classes_than_labels_below_255_are_refused(make_folder):
    root = make_folder(train=1)
    with pytest.raises(DataError, match="256 classes, and label 255 is ignored: there can be 255, 0 to 254"):
        folder(root, "train", class_names=[f"c{i}" for i in range(256)])
    assert folder(root, "train", class_names=[f"c{i}" for i in range(255)]).num_classes == 255


def test_last_ignored_label_is_no_class(make_folder):
    root = make_folder(train=2)
    source = folder(root, "train", ignore_label=2)
    assert source.num_classes == 2
    assert set(np.unique(source[0]["label"])) == {0, 1, 255}
    named = folder(root, "train", ignore_label=2, class_names=["a", "b", "void"])
    assert named.class_names == ("a", "b")
    first = folder(root, "train", ignore_label=0)  # in front it keeps its place
    assert first.num_classes == 3
    assert set(np.unique(first[0]["label"])) == {1, 2, 255}


def test_classes_are_counted_over_all_splits(make_folder):
    root = make_folder(train=2)
    write_pair(root / "val" / "images", root / "val" / "labels", "v", 0, classes=5)
    assert folder(root, "train").num_classes == 5


def test_missing_things_say_what_exists(make_folder, tmp_path):
    root = make_folder()
    with pytest.raises(DataError, match="no split 'test'; there is train, val"):
        folder(root, "test")
    with pytest.raises(DataError, match="no such folder"):
        folder(root / "nowhere", "train")
    other = tmp_path / "other"
    (other / "pictures").mkdir(parents=True)
    with pytest.raises(DataError, match="found pictures; expected train/images"):
        folder(other, "train")
    shutil.rmtree(root / "train" / "images")
    (root / "train" / "images").mkdir()
    shutil.rmtree(root / "train" / "labels")
    (root / "train" / "labels").mkdir()
    with pytest.raises(DataError, match=r"train.images: empty folder; looked for .*\.png"):
        folder(root, "train")


def test_pairing_errors_name_the_files(make_folder):
    root = make_folder(train=3)
    (root / "train" / "labels" / "train00.png").unlink()
    (root / "train" / "images" / "train01.png").unlink()
    shutil.copy(root / "train" / "images" / "train02.png", root / "train" / "images" / "train02.bmp")
    with pytest.raises(DataError) as caught:
        folder(root, "train")
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "train00.png: missing mask" in text
    assert "train01.png: missing image" in text
    assert "train02.bmp, train02.png" in text
    assert len(folder(root, "train", strict=False).problems) == 3


def test_masks_without_classes(make_folder):
    root = make_folder(train=1)
    mask = root / "train" / "labels" / "train00.png"
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(mask)
    with pytest.raises(DataError, match="foreground as 1, not 255"):
        folder(root, "train")
    Image.fromarray(np.full((20, 30), 3000, np.uint16)).save(mask)
    with pytest.raises(DataError, match="instance ids"):
        folder(root, "train")


def test_source_names_a_mask_that_does_not_fit(make_folder):
    root = make_folder(train=2)
    source = folder(root, "train", class_names=["a", "b"])
    with pytest.raises(DataError, match=r"labels.train00\.png: label\(s\) 2 outside 0\.\.1 .*classes\.txt"):
        source[0]
    Image.fromarray(np.zeros((20, 31), np.uint8)).save(root / "train" / "labels" / "train01.png")
    with pytest.raises(DataError, match=r"train01\.png: mask is \(20, 31\), its image \(20, 30\)"):
        source[1]


def test_data_error_counts_what_it_does_not_show():
    error = DataError(*(f"file {i}" for i in range(13)), heading="13 problems")
    assert str(error).startswith("13 problems\n  file 0")
    assert str(error).endswith("... and 3 more")
    again = pickle.loads(pickle.dumps(error))
    assert (again.problems, str(again)) == (error.problems, str(error))
