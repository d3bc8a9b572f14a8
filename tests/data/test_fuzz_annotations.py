"""Strangers' annotations, changed at random: each is read or refused with a DataError that names the file.

JAXSEG_FUZZ=20000 python -m pytest tests/data/test_fuzz_annotations.py     # as many examples as one has time for
"""

import copy
import json
import os

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from weights.test_fuzz import CHANGES, changed

from jaxseg.clustering import figure
from jaxseg.data import DataError, coco, folder, read_image, voc_objects
from jaxseg.data.coco import _counts
from jaxseg.data.official import _read_sbd

EXAMPLES = int(os.environ.get("JAXSEG_FUZZ", "100"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=5000, derandomize=EXAMPLES == 100, suppress_health_check=list(HealthCheck)
)
SIZE = (20, 30)


def document():
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[3:9, 4:20] = 1
    rle = coco_mask.encode(mask)
    shared = {"image_id": 1, "category_id": 1, "bbox": [4, 3, 16, 6], "area": 96.0}
    segmentations = (
        [[4.0, 3.0, 20.0, 3.0, 20.0, 9.0, 4.0, 9.0]],
        {"size": list(SIZE), "counts": _counts(rle["counts"])},
        {"size": list(SIZE), "counts": rle["counts"].decode()},
    )
    annotations = [
        {**copy.deepcopy(shared), "id": i, "segmentation": s, "iscrowd": int(i == 2)}
        for i, s in enumerate(segmentations, 1)
    ]
    image = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    return {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def read_all(root):
    source = coco(root / "images", root / "instances.json")
    return [source[i] for i in range(len(source))]


def refused(read, path):
    """Whether it is; with `path` in the message."""
    try:
        read()
    except DataError as error:
        message = str(error)
    else:
        return False
    assert str(path) in message
    return True


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "a.png")
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "secret.png")
    return tmp_path


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**40), 10**40),
        st.floats(),
        st.sampled_from([1e9, -1e9, 1e18, 2**31, 2**32, "../secret.png", "/etc/passwd", "a\0.png", "0", "", "P" * 99]),
        st.text(max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def places(tree, path=()):
    """The path of every value in a JSON tree."""
    if path:
        yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


def with_junk(tree, path, junk):
    target = tree
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = junk
    return tree


@pytest.mark.filterwarnings("ignore")
def test_any_value_of_a_coco_json_may_be_any_other(root):
    @FUZZ
    @given(st.sampled_from(list(places(document()))), JUNK)
    def attempt(path, junk):
        (root / "instances.json").write_text(json.dumps(with_junk(document(), path, junk)))
        if not refused(lambda: read_all(root), root):
            assert all(np.isfinite(example["boxes"]).all() for example in read_all(root))

    attempt()


@pytest.mark.filterwarnings("ignore")
def test_a_changed_coco_json_is_read_or_refused(root):
    seed = json.dumps(document()).encode()

    @FUZZ
    @given(CHANGES)
    def attempt(changes):
        (root / "instances.json").write_bytes(changed(seed, changes))
        refused(lambda: read_all(root), root)

    attempt()


def one(**fields):
    tree = document()
    tree["annotations"] = [{**tree["annotations"][0], **fields}]
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (one(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9, 0, 1e9]]), "a polygon leads far out"),
        (one(segmentation=[[float("inf"), 1, 5, 5, 1, 5]]), "a polygon leads far out"),
        (one(segmentation=[[float("nan")] * 6]), "a polygon leads far out"),
        (one(segmentation=[[0, 0, 30, 20] * 9999]), "around it without end"),
        (one(segmentation={"size": SIZE, "counts": ""}), "run lengths sum to 0"),
        (one(segmentation={"size": SIZE, "counts": "zzzz"}), "no run length encoding"),
        (one(segmentation={"size": SIZE, "counts": "o" * 10**6}), "no run length encoding"),
        (one(segmentation={"size": SIZE, "counts": [100.5, 499.5]}), "whole numbers"),
        (one(iscrowd="0"), "iscrowd 0, which is 0 or 1"),
        (one(area=float("nan")), "area nan"),
        (one(image_id=[]), "image_id"),
        ({**document(), "images": [{**document()["images"][0], "file_name": "../secret.png"}]}, "names no file in"),
        ({**document(), "images": [{**document()["images"][0], "height": 2**31}]}, "no picture is of 2147483648"),
        ({**document(), "annotations": None}, "annotations is no list"),
    ],
)
def test_what_would_crash_or_mislead_is_named(root, tree, message):
    (root / "instances.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message):
        read_all(root)


def test_deep_json_is_refused_and_other_encodings_are_read(root):
    (root / "instances.json").write_text("[" * 10**5)
    with pytest.raises(DataError, match="not a JSON file"):
        read_all(root)
    for encoding in ("utf-8-sig", "utf-16"):
        (root / "instances.json").write_text(json.dumps(document()), encoding=encoding)
        assert read_all(root)[0]["masks"].sum((1, 2)).tolist() == [96, 96, 96]


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 1.0):
        mask = np.asfortranarray(rng.random((37, 41)) < density, np.uint8)
        flat = mask.ravel("F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
        assert _counts(coco_mask.encode(mask)["counts"]) == np.diff([0, *edges, flat.size]).tolist()


XML = b"<annotation><object><name>cat</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3</ymin>"
XML += b"<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"


def test_a_changed_xml_is_read_or_refused(tmp_path):
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "JPEGImages" / "a.jpg")
    path = tmp_path / "Annotations" / "a.xml"

    def is_refused(data):
        path.write_bytes(data)
        return refused(lambda: voc_objects(tmp_path, "train")[0], path)

    @FUZZ
    @given(CHANGES)
    def attempt(changes):
        is_refused(changed(XML, changes))

    attempt()
    assert not is_refused(XML)
    assert is_refused(b'<?xml version="1.0" encoding="evil"?><annotation/>')
    assert is_refused(XML.replace(b"<xmin>2", b"<xmin>nan"))
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 9 if i else "x"}">' for i in range(12))
    assert is_refused(f"<!DOCTYPE a [{entities}]><a><object><name>&e11;</name></object></a>".encode())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compressed", [False, True])
def test_a_changed_matlab_file_is_read_or_refused(tmp_path, compressed):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"GTcls": {"Segmentation": np.ones((4, 5), np.uint8)}}, do_compression=compressed)
    seed = path.read_bytes()

    @FUZZ
    @given(CHANGES)
    def attempt(changes):
        path.write_bytes(changed(seed, changes))
        refused(lambda: _read_sbd(path), path)

    attempt()


def test_a_matlab_file_that_expands_beyond_reason_is_refused(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"GTcls": {"Segmentation": np.zeros((9000, 9000), np.uint8)}}, do_compression=True)
    with pytest.raises(DataError, match="expands beyond 67108864 bytes"):
        _read_sbd(path)


def test_classes_txt_in_other_encodings(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "a.png")
    (tmp_path / "classes.txt").write_text("caf\u00e9\nroad\n", encoding="utf-8-sig")
    assert folder(tmp_path, "train", validation_fraction=0.0).class_names == ("caf\u00e9", "road")
    (tmp_path / "classes.txt").write_text("caf\u00e9\nroad\n", encoding="latin1")
    with pytest.raises(DataError, match=r"classes\.txt: not in UTF-8"):
        folder(tmp_path, "train")
    (tmp_path / "classes.txt").write_text(f"a {'9' * 5000} 1 2\n")
    assert len(folder(tmp_path, "train", validation_fraction=0.0).class_names) == 1


@pytest.mark.parametrize("read_image", [read_image, figure.read_image])
def test_postscript_is_no_picture(read_image, tmp_path, monkeypatch):
    """Pillow would hand it to Ghostscript."""
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: ran.append(1))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(DataError, match="is not an image that Pillow can read"):
        read_image(tmp_path / "a.png")
    assert not ran
