"""Sources of pictures with objects, by hand-made folders, and their fixed places on a canvas."""

import json
import pathlib
import warnings

import numpy as np
import pytest
from detection_folders import H, W, annotation, make_coco, make_instances, make_voc_objects, picture
from PIL import Image

from jaxseg.data import (
    DataError,
    ObjectSource,
    coco,
    eval_batches,
    instance_folder,
    object_masks,
    padded_objects,
    train_batches,
    voc_objects,
)
from jaxseg.metrics.coco import Objects, coco_average_precision, mask_to_rle
from jaxseg.predict import true_objects

# beside the checkout, or beside the folder that holds it
SHARED = next((p for p in (q / "shared" / "data" for q in pathlib.Path(__file__).parents[3:5]) if p.is_dir()), None)


def test_coco_gives_boxes_classes_masks_and_crowds(tmp_path):
    source = coco(*make_coco(tmp_path))
    assert isinstance(source, ObjectSource)
    assert source.class_names == ("background", "cat", "dog")
    assert [pathlib.Path(source.name(i)).name for i in range(len(source))] == ["1.jpg", "2.jpg", "3.jpg"]
    first, second, empty = (source[i] for i in range(3))
    assert first["classes"].tolist() == [1, 2, 1]
    assert first["crowd"].tolist() == [False, False, True]
    assert first["boxes"].tolist() == [[2, 3, 12, 13], [8, 8, 20, 18], [15, 0, 30, 6]]
    assert first["area"].tolist() == [100, 120, 90]
    for example in (first, second):  # of polygons and run lengths alike; they overlap, and hide nothing
        for mask, (x0, y0, x1, y1) in zip(example["masks"], example["boxes"].astype(int), strict=True):
            expected = np.zeros((H, W), bool)
            expected[y0:y1, x0:x1] = True
            np.testing.assert_array_equal(mask, expected)
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, H, W)
    assert len(coco(*make_coco(tmp_path), drop_empty=True)) == 2
    ids = coco(*make_coco(tmp_path), contiguous=False)
    assert (ids.num_classes, ids.class_names[7], ids[0]["classes"].tolist()) == (8, "dog", [3, 7, 3])


def test_coco_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="no such file; it should be COCO's JSON"):
        coco(tmp_path, tmp_path / "none.json")
    with pytest.raises(DataError, match=r"not a JSON file.*directory"):  # the folder of the JSON for the JSON
        coco(tmp_path, tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="not a JSON file"):
        coco(tmp_path, tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="no annotations, categories in it"):
        coco(tmp_path, tmp_path / "a.json")
    rows = [annotation(1, 9, (1, 1, 5, 5)), annotation(8, 3, (1, 1, 5, 5))]
    with pytest.raises(DataError, match=r"2 problem(.|\n)*has category 9, which is not listed(.|\n)*is of image 8"):
        coco(*make_coco(tmp_path, rows))
    images, path = make_coco(tmp_path)
    (images / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"2\.jpg: no such picture"):
        coco(images, path)
    picture(images / "2.jpg", size=(H + 1, W))
    with pytest.raises(DataError, match=r"the image is \(21, 30\), the JSON says \(20, 30\)"):
        coco(images, path)[1]
    wrong = annotation(1, 3, (1, 1, 5, 5)) | {"segmentation": {"size": [5, 5], "counts": [25]}}
    with pytest.raises(DataError, match=r"run lengths of \(5, 5\) for an image of \(20, 30\)"):
        coco(*make_coco(tmp_path, [wrong]))[0]
    with pytest.raises(DataError, match="cannot be classes"):
        coco(*make_coco(tmp_path, [], ((0, "cat"),)), contiguous=False)
    with pytest.raises(DataError, match="category id 3 is listed twice, for cat and dog"):
        coco(*make_coco(tmp_path, [], ((3, "cat"), (3, "dog"))))


def test_coco_names_every_entry_that_lacks_something(tmp_path):
    def without(row, *keys):
        return {k: v for k, v in row.items() if k not in keys}

    good = annotation(1, 3, (1, 1, 5, 5))
    rows = [good, *(without(annotation(1, 3, (1, 1, 5, 5)), k) for k in ("bbox", "image_id", "category_id"))]
    rows += [good | {"id": 9001, "bbox": box} for box in ([1, 2, 3], None, [1, 2, "3", 4], [1, 2, float("nan"), 4])]
    rows.append([1])
    images, path = make_coco(tmp_path, rows)
    tree = json.loads(path.read_text())
    tree["images"] += [without(tree["images"][0], "height", "width") | {"id": 7}, tree["images"][1], {"id": 5}]
    tree["images"].append(tree["images"][0] | {"id": "eight"})
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError) as error:
        coco(images, path)
    said = "\n".join(error.value.problems)
    for words in ("has no bbox", "has no image_id", "has no category_id", "number 8 of the list has no image_id, cat"):
        assert words in said
    assert said.count("annotation 9001 has bbox") == 4
    assert "[1, 2, 3], which is not [x, y, width, height]" in said
    assert "image number 3 of the list has no height, width" in said
    assert "image id 1 is listed twice, for 1.jpg and 1.jpg" in said
    assert "image number 5 of the list has no file_name, height, width" in said
    assert "image eight: id, height and width are whole numbers" in said
    assert f"{path}: 12 problem(s)" in str(error.value)
    bare = [without(annotation(1, 3, (1, 1, 5, 5)), "id"), annotation(1, 7, (2, 2, 9, 9)) | {"area": None}]
    source = coco(*make_coco(tmp_path, bare))
    assert source.annotations[0][0]["id"] == bare[1]["id"] + 1
    assert source[0]["area"].tolist() == [16, 49]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"categories": [{"id": 1}]}))
    with pytest.raises(DataError, match="a category has an id, a whole number, and a name"):
        coco(images, path)


@pytest.mark.parametrize("counts", [[25], [300, 400], [-5, 605], [600, 1]])
def test_run_lengths_of_another_number_of_pixels_are_refused(tmp_path, counts):
    wrong = annotation(1, 3, (1, 1, 5, 5)) | {"id": 77, "segmentation": {"size": [H, W], "counts": counts}}
    with pytest.raises(DataError, match=rf"1\.jpg: annotation 77: run lengths sum to {sum(counts)}, and 20 x 30"):
        coco(*make_coco(tmp_path, [wrong]))[0]


def test_a_crowd_without_segmentation_covers_its_box(tmp_path):
    empty = annotation(1, 3, (25, 4, 35, 12), segmentation=None, crowd=1) | {"segmentation": []}
    example = coco(*make_coco(tmp_path, [annotation(1, 3, (1, 1, 5, 5)), empty]))[0]
    assert example["crowd"].tolist() == [False, True]
    expected = np.zeros((H, W), bool)
    expected[4:12, 25:] = True
    np.testing.assert_array_equal(example["masks"][1], expected)


def test_boxes_outside_and_without_area_are_left_out_and_said(tmp_path):
    rows = [
        annotation(1, 3, (25, 15, 35, 25)),  # cut to the picture
        annotation(1, 3, (4, 4, 4, 9)),  # no width
        annotation(1, 3, (31, 2, 40, 9)),  # outside
        annotation(1, 3, (2, 2, 9, 9), segmentation=None),
        annotation(1, 3, (2, 2, 9, 9)) | {"segmentation": [[2, 2, 9, 9]]},  # no polygon
    ]
    with pytest.warns(UserWarning, match="object") as said:
        source = coco(*make_coco(tmp_path, rows))
    messages = [str(w.message) for w in said]
    assert any("2 object(s) left out, their boxes have no area in the picture: annotation" in m for m in messages)
    assert any("2 object(s) left out, they have no segmentation" in m for m in messages)
    assert source[0]["boxes"].tolist() == [[25, 15, 30, 20]]
    only_boxes = coco(*make_coco(tmp_path, [annotation(1, 3, (2, 2, 9, 9), segmentation=None)]))
    assert not only_boxes.has_masks
    assert "masks" not in only_boxes[0]
    assert "masks" not in padded_objects(only_boxes, (32, 32), 2)[0]


def test_objects_without_a_pixel_are_counted_and_not_learnt(tmp_path):
    sliver, line, speck = [[4.1, 4, 4.3, 4, 4.3, 12, 4.1, 12]], [[2, 2, 12, 12, 2, 2]], [[5.1, 5.1, 5.3, 5.1, 5.2, 5.3]]
    rows = [
        annotation(1, 3, (2, 3, 12, 13)),
        annotation(1, 3, (4, 4, 5, 12)) | {"segmentation": sliver, "area": 1.6},
        annotation(1, 7, (2, 2, 12, 12)) | {"segmentation": line, "area": 0},
        annotation(2, 7, (5, 5, 6, 6)) | {"segmentation": speck, "area": 0.02},
        annotation(2, 7, (5, 5, 6, 6)) | {"segmentation": {"size": [H, W], "counts": [H * W]}},
        annotation(2, 7, (5, 5, 6, 6)) | {"segmentation": {"size": [H, W], "counts": "hb0"}},
        annotation(3, 7, (5, 5, 6, 6)),  # a pixel is enough
    ]
    with pytest.warns(UserWarning, match="object") as said:
        source = coco(*make_coco(tmp_path, rows))
    (message,) = (str(w.message) for w in said)
    assert "5 object(s) left out of training, their segmentations have no pixel: annotation" in message
    example = source[0]
    assert example["blank"].tolist() == [False, True, True]
    np.testing.assert_array_equal(example["masks"].any((1, 2)), ~example["blank"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # said once
        padded = [padded_objects(source, (H, W), 3)[i] for i in range(3)]
    assert [p["valid"].sum() for p in padded] == [1, 0, 1]
    assert padded[0]["boxes"][0].tolist() == [2, 3, 12, 13]
    with pytest.warns(UserWarning, match="left out of training"):
        assert len(coco(*make_coco(tmp_path, rows), drop_empty=True)) == 2


def test_an_empty_mask_that_its_box_hides_is_said_when_it_is_read(tmp_path):
    beside = annotation(1, 3, (2, 2, 12, 12)) | {"segmentation": [[40, 40, 50, 40, 50, 50, 40, 50]]}
    source = coco(*make_coco(tmp_path, [beside, annotation(1, 7, (8, 8, 20, 18))]))
    with pytest.warns(UserWarning, match=r"1\.jpg: 1 object\(s\) not learnt, their masks are empty"):
        example = padded_objects(source, (H, W), 3)[0]
    assert example["valid"].tolist() == [True, False, False]
    assert example["classes"].tolist() == [2, 0, 0]


def test_average_precision_counts_an_object_without_a_pixel_as_pycocotools_does(tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sliver = [[4.1, 4, 4.3, 4, 4.3, 12, 4.1, 12]]
    rows = [annotation(1, 3, (2, 3, 12, 13)), annotation(1, 3, (4, 4, 5, 12)) | {"segmentation": sliver, "area": 1.6}]
    images, path = make_coco(tmp_path, rows)
    with pytest.warns(UserWarning, match="left out of training"):
        source = coco(images, path)
    _, truth = true_objects(source, 0)
    masks = np.zeros((2, H, W), bool)
    masks[0, 3:13, 2:12] = masks[1, 4:12, 4:5] = True
    boxes = np.float32([[2, 3, 12, 13], [4, 4, 5, 12]])
    found = Objects(boxes, np.array([1, 1]), masks, np.float32([0.9, 0.8]))
    scores = coco_average_precision([truth], [found], source.class_names)
    results = [
        {"image_id": 1, "category_id": 3, "bbox": r["bbox"], "segmentation": mask_to_rle(m), "score": s}
        for r, m, s in zip(rows, masks, (0.9, 0.8), strict=True)
    ]
    listed = COCO(str(path))
    for kind, name in (("bbox", "box_ap50"), ("segm", "mask_ap50")):
        evaluation = COCOeval(listed, listed.loadRes([dict(r) for r in results]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert scores[name] == pytest.approx(evaluation.stats[1])
    assert scores["box_ap50"] == pytest.approx(1)
    assert scores["mask_ap50"] < 0.6  # there it cannot be found


def test_voc_counts_pixels_from_one_and_knows_what_is_difficult(tmp_path):
    source = voc_objects(make_voc_objects(tmp_path), "trainval")
    assert isinstance(source, ObjectSource)
    assert (len(source), source.num_classes) == (2, 21)
    first = source[0]
    assert first["boxes"].tolist() == [[0, 0, 10, 20], [4, 5, 30, 20]]
    assert [source.class_names[c] for c in first["classes"]] == ["dog", "dining table"]
    assert first["difficult"].tolist() == [False, True]
    assert source[1]["boxes"].shape == (0, 4)
    padded = padded_objects(source, (40, 60), 3)[0]
    assert padded["valid"].tolist() == [True, False, False]
    assert padded["boxes"][0].tolist() == [0, 0, 20, 40]
    assert "masks" not in padded


def test_voc_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match=r"does not hold PASCAL VOC 2007: download(.|\n)*VOC2007.Annotations"):
        voc_objects(tmp_path, "trainval")
    root = make_voc_objects(tmp_path, [("unicorn", 0, (1, 1, 5, 5))])
    with pytest.raises(DataError, match="no such split; there is trainval"):
        voc_objects(root, "test")
    with pytest.raises(DataError, match="'unicorn'; there is aeroplane"):
        voc_objects(root, "trainval")[0]
    with pytest.raises(DataError, match=r"box \[40.0, 1.0, 50.0, 5.0\] \(XYXY\) has no area in \(20, 30\)"):
        voc_objects(make_voc_objects(tmp_path, [("dog", 0, (41, 2, 50, 5))]), "trainval")[0]
    (root / "VOCdevkit/VOC2007/Annotations/000001.xml").write_text("<annotation><object><name>dog</name></object>")
    with pytest.raises(DataError, match="not an annotation of VOC"):
        voc_objects(root, "trainval")[0]
    (root / "VOCdevkit/VOC2007/JPEGImages/000002.jpg").unlink()
    with pytest.raises(DataError, match=r"1 file\(s\) missing"):
        voc_objects(root, "trainval")


def test_instance_maps_are_renumbered(tmp_path):
    source = instance_folder(make_instances(tmp_path), "train", class_name="nucleus")
    assert isinstance(source, ObjectSource)
    assert source.class_names == ("background", "nucleus")
    example = source[0]
    ids = np.asarray(Image.open(tmp_path / "train" / "instances" / "0.png")).astype(int)
    values = [v for v in np.unique(ids) if v]
    masks = object_masks(example)
    assert masks.shape[0] == len(values) == len(example["boxes"])
    for mask, box, value in zip(masks, example["boxes"], values, strict=True):
        np.testing.assert_array_equal(mask, ids == value)
        ys, xs = np.nonzero(mask)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    (tmp_path / "train" / "images" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1\.png: no picture of that name"):
        instance_folder(tmp_path, "train")
    with pytest.raises(DataError, match="no such folder"):
        instance_folder(tmp_path, "test")
    make_instances(tmp_path, "twice", 2)
    picture(tmp_path / "twice" / "images" / "0.png")
    with pytest.raises(DataError, match=r"1 file\(s\)(.|\n)*0\.png: 0\.jpg beside it has the same stem"):
        instance_folder(tmp_path, "twice")
    (tmp_path / "twice" / "images" / "0.png").unlink()
    picture(tmp_path / "twice" / "instances" / "1.png")
    with pytest.raises(DataError, match=r"1\.png: a colour mask without a palette; save ids as a 16-bit PNG"):
        instance_folder(tmp_path, "twice")[1]
    make_instances(tmp_path, "blank", 1, objects=0)
    assert instance_folder(tmp_path, "blank")[0]["boxes"].shape == (0, 4)
    picture(tmp_path / "blank" / "images" / "0.jpg", size=(H, W + 2))
    with pytest.raises(DataError, match=r"the map is \(20, 30\), its image \(20, 32\)"):
        instance_folder(tmp_path, "blank")[0]


def test_objects_in_their_places_on_a_canvas(tmp_path):
    source = coco(*make_coco(tmp_path))
    padded = padded_objects(source, (40, 80), 4)
    example = padded[0]
    assert {k: (v.shape, v.dtype.name) for k, v in example.items()} == {
        "image": ((40, 80, 3), "uint8"),
        "boxes": ((4, 4), "float32"),
        "classes": ((4,), "int32"),
        "valid": ((4,), "bool"),
        "beyond": ((), "int32"),
        "size": ((2,), "int32"),
        "masks": ((4, 40, 80), "bool"),
    }
    assert example["valid"].tolist() == [True, True, False, False]  # without the crowd
    assert example["size"].tolist() == [40, 60]
    assert example["boxes"].tolist() == [[4, 6, 24, 26], [16, 16, 40, 36], [0] * 4, [0] * 4]
    assert example["classes"].tolist() == [1, 2, 0, 0]
    for mask, box in zip(example["masks"], example["boxes"].astype(int), strict=True):
        expected = np.zeros((40, 80), bool)
        expected[box[1] : box[3], box[0] : box[2]] = True
        np.testing.assert_array_equal(mask, expected)
    assert not padded[2]["valid"].any()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        padded_objects(source, (40, 80), 0)
    (batch,) = list(eval_batches(padded_objects(source, (40, 80), 4), (40, 80), 4, threads=0))
    assert batch["index"].tolist() == [0, 1, 2, -1]
    assert batch["valid"].sum(1).tolist() == [2, 1, 0, 0]
    assert batch["masks"].shape == (4, 4, 40, 80)
    train = train_batches(padded, (40, 80), 2, seed=0, threads=0)
    assert next(train)["boxes"].shape == (2, 4, 4)


def test_more_objects_than_places_are_counted_and_said(tmp_path):
    root = make_instances(tmp_path, objects=3)
    source = instance_folder(root, "train")
    k = len(source[0]["classes"])
    assert k == 3
    with pytest.warns(UserWarning, match=r"0\.jpg: 3 objects and max_instances=2: the 1 smallest have no place"):
        example = padded_objects(source, (H, W), 2)[0]
    assert example["beyond"] == 1
    areas = (source[0]["boxes"][:, 2:] - source[0]["boxes"][:, :2]).prod(1)
    kept = (example["boxes"][:, 2:] - example["boxes"][:, :2]).prod(1)
    assert sorted(kept) == sorted(areas)[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert padded_objects(source, (H, W), 3)[0]["beyond"] == 0


class Wrong:
    """A source whose class is out of range."""

    class_names, num_classes, palette, has_masks = ("background", "cat"), 2, None, False

    def __len__(self):
        return 1

    def name(self, index):
        return "wrong"

    def __getitem__(self, index):
        boxes = np.array([[1, 1, 5, 5]], np.float32)
        return {"image": np.zeros((8, 8, 3), np.uint8), "boxes": boxes, "classes": np.array([2], np.int32)}


def test_classes_out_of_range_are_refused():
    with pytest.raises(DataError, match=r"wrong: class\(es\) 2 outside 1\.\.1; 0 is the background"):
        padded_objects(Wrong(), (8, 8), 2)[0]


needs_data = pytest.mark.skipif(SHARED is None, reason="the shared data sets are not on this machine")


@needs_data
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_the_excerpt_of_coco_scores_one_against_itself(split):
    """And its masks and boxes are pycocotools' own."""
    coco_tools = pytest.importorskip("pycocotools.coco")
    path = SHARED / "tiny_coco" / "annotations" / f"instances_{split}.json"
    source = coco(SHARED / "tiny_coco" / split, path, contiguous=False)
    assert (len(source), source.num_classes) == (50, 91)
    theirs = coco_tools.COCO(str(path))
    truth, found, crowds = [], [], 0
    for i in range(len(source)):
        example = source[i]
        rows = theirs.loadAnns(theirs.getAnnIds([source.images[i]["id"]]))
        assert [a["category_id"] for a in rows] == example["classes"].tolist()
        for mask, row in zip(example["masks"], rows, strict=True):
            np.testing.assert_array_equal(mask, theirs.annToMask(row))
        crowd = example["crowd"]
        crowds += crowd.sum()
        rles = source.rles(i)
        truth.append(Objects(example["boxes"], example["classes"], rles, crowd=crowd, area=example["area"]))
        kept = [r for r, c in zip(rles, crowd, strict=True) if not c]
        found.append(Objects(example["boxes"][~crowd], example["classes"][~crowd], kept, np.ones(len(kept))))
    assert crowds == 5
    scores = coco_average_precision(truth, found, source.class_names)
    assert scores["box_ap"] == pytest.approx(1, abs=0.01)
    assert scores["mask_ap"] == pytest.approx(1, abs=0.01)


@needs_data
@pytest.mark.parametrize(("name", "split", "pictures"), [("pennfudan", "train", 120), ("dsb2018", "val", 66)])
def test_the_shared_id_maps(name, split, pictures):
    source = instance_folder(SHARED / name, split)
    assert len(source) == pictures
    padded = padded_objects(source, (128, 128), 200)
    for i in range(0, pictures, 15):
        ids = np.unique(np.asarray(Image.open(source.pairs[i][1])))
        example = padded[i]
        assert example["valid"].sum() == (ids > 0).sum() > 0
        boxes = example["boxes"][example["valid"]]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        h, w = example["size"]
        assert (boxes <= [w, h, w, h]).all()
        assert (example["masks"].sum((1, 2)) > 0).sum() >= 0.8 * example["valid"].sum()  # the smallest vanish
