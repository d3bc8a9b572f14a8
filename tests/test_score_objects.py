"""Average precision of a detector on a source: every picture once, masks at their own sizes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from models.test_detectors import filled, small

from jaxseg import report
from jaxseg.metrics.coco import coco_average_precision
from jaxseg.metrics.voc import voc_average_precision
from jaxseg.predict import detect, detect_source, found_objects, score_objects, true_objects

sys.path.append(str(Path(__file__).parent / "data"))
from detection_folders import make_coco, make_instances

from jaxseg.data import coco, instance_folder

CANVAS = (96, 96)


def test_every_picture_is_looked_at_once_whatever_the_processes(tmp_path):
    model, variables = filled("maskrcnn_resnet50_fpn")
    source = instance_folder(make_instances(tmp_path, count=5, size=(64, 80)), "train")
    model = model.clone(num_classes=3)

    def rows(index, count):
        return list(
            detect_source(model, variables, source, batch=2, canvas=CANVAS, process_index=index, process_count=count)
        )

    alone, shared = rows(0, 1), [*rows(0, 2), *rows(1, 2)]
    assert [row.position for row in alone] == [0, 1, 2, 3, 4]
    assert sorted(row.position for row in shared) == [0, 1, 2, 3, 4]
    for row in shared:
        np.testing.assert_allclose(row.found.boxes, alone[row.position].found.boxes, atol=1e-3)
        assert row.truth.masks == alone[row.position].truth.masks
        assert len(row.truth.masks) == len(source[row.position]["classes"])
        assert all(rle["size"] == [64, 80] for rle in (*row.truth.masks, *row.found.masks))
    (direct,) = detect(model, variables, [source[4]["image"]], canvas=CANVAS)
    np.testing.assert_allclose(found_objects(direct).boxes, alone[4].found.boxes, atol=1e-3)
    shared.sort(key=lambda row: row.position)
    names = ("background", "object", "other")
    expected = coco_average_precision([r.truth for r in shared], [r.found for r in shared], names)
    assert {"box_ap", "mask_ap50"} < set(expected)
    seen = []
    source = type(source)(source.pairs, names)
    scores = score_objects(model, variables, source, batch=2, canvas=CANVAS, progress=lambda *a: seen.append(a))
    assert scores == pytest.approx(expected, nan_ok=True)
    assert seen == [(i, 5) for i in range(1, 6)]
    by_voc = score_objects(model, variables, source, batch=2, canvas=CANVAS, score=voc_average_precision, pictures=2)
    assert {"map", "ap/object"} <= set(by_voc)


@pytest.mark.parametrize("words", [{"batch": 0}, {"pictures": 0}, {"pictures": -1}])
def test_no_pictures_have_no_score(words, tmp_path):
    source = instance_folder(make_instances(tmp_path, count=1, size=(8, 8)), "train")
    ((name, value),) = words.items()
    with pytest.raises(ValueError, match=f"{name} of at least 1, got {value}"):
        score_objects(small("maskrcnn_resnet50_fpn"), {}, source, **words)


def test_crowds_and_areas_come_from_the_source(tmp_path):
    source = coco(*make_coco(tmp_path))
    _, truth = true_objects(source, 0)
    assert truth.crowd.tolist() == [False, False, True]
    assert truth.area.tolist() == [100, 120, 90]
    found = truth._replace(scores=np.array([0.9, 0.8, 0.7]), crowd=None, area=None)
    assert coco_average_precision([truth], [found], source.class_names)["mask_ap"] == pytest.approx(1)
    counted = coco_average_precision([truth._replace(crowd=None)], [found], source.class_names)
    assert counted["mask_ap"] == pytest.approx(1)
    missed = found._replace(**{k: v[:2] for k, v in (("boxes", found.boxes), ("classes", found.classes))})
    missed = missed._replace(scores=found.scores[:2], masks=found.masks[:2])
    assert coco_average_precision([truth], [missed], source.class_names)["mask_ap"] == pytest.approx(1)
    assert coco_average_precision([truth._replace(crowd=None)], [missed], source.class_names)["mask_ap"] < 0.9


def test_scores_are_written_before_the_pictures(tmp_path, monkeypatch):
    model, variables = filled("maskrcnn_resnet50_fpn")
    source = instance_folder(make_instances(tmp_path, count=2, size=(64, 80)), "train")
    monkeypatch.setattr(report, "score_objects", lambda *args, **kwargs: {"map": 0.5, "ap/none": float("nan")})
    monkeypatch.setattr(report, "detect", lambda *args, **kwargs: 1 / 0)  # no pictures
    with pytest.raises(ZeroDivisionError):
        report.finish_detection(tmp_path / "out", {"size": [64, 80]}, model, variables, source)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == {"scores": {"map": 0.5, "ap/none": None}, "config": {"size": [64, 80]}}
