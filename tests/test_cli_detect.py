"""`jaxseg predict` with a detector: figure, COCO's JSON and instance map of a photograph."""

import json

import numpy as np
from models.test_detectors import filled
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.numpy import save_file
from test_cli import jaxseg_command

from jaxseg.cli import detect as cli_detect
from jaxseg.cli.detect import COCO_NAMES
from jaxseg.weights import to_published


def test_coco_names():
    assert len(COCO_NAMES) == 91  # the classes of torchvision's files
    assert [COCO_NAMES[k] for k in (0, 1, 18, 44, 90)] == ["background", "person", "dog", "bottle", "toothbrush"]


def test_predict_writes_figure_json_and_instances(tmp_path, monkeypatch, capsys):
    model, variables = filled("maskrcnn_resnet50_fpn")
    save_file(to_published(model, variables), tmp_path / "w.safetensors")
    monkeypatch.setattr(cli_detect, "create_model", lambda name, num_classes: model.clone(num_classes=num_classes))
    pixels = np.random.default_rng(0).integers(0, 256, (15, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    words = ("predict", "maskrcnn_resnet50_fpn", tmp_path / "photo.png", "--out", tmp_path / "out")
    assert jaxseg_command(*words, "--weights", tmp_path / "w.safetensors") == 0
    assert "found the objects in 1 of 1 images" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "photo_detections.json").read_text())
    assert results
    for row in results:
        assert row["image_id"] == "photo.png"
        assert row["category_id"] in (1, 2)
        assert row["segmentation"]["size"] == [120, 96]
    ids = np.asarray(Image.open(tmp_path / "out" / "photo_instances.png"))
    assert ids.shape == (120, 96)
    if results[0]["score"] >= 0.5:  # the best is on top
        np.testing.assert_array_equal(ids == 1, coco_mask.decode(results[0]["segmentation"]) > 0)
    assert Image.open(tmp_path / "out" / "photo_detections.png").size == (4 * 96, 4 * 120)


def test_what_is_no_detector_and_no_weights(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    words = ("predict", "maskrcnn_resnet50_fpn", tmp_path / "photo.png", "--out", tmp_path / "out")
    assert jaxseg_command(*words) == 2
    assert "needs --weights" in capsys.readouterr().err
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    assert jaxseg_command(*words, "--weights", tmp_path / "w.safetensors") == 2
    assert "holds no detector" in capsys.readouterr().err
    assert jaxseg_command("train", "maskrcnn_resnet50_fpn", "--out", tmp_path / "run") == 2
    assert "experiments/shapes_mask_rcnn.py" in capsys.readouterr().err
