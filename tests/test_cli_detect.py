"""`jaxseg predict` with a detector: figure, COCO's JSON and instance map of a photograph."""

import json
import resource
import shutil
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from models.test_detectors import filled
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from safetensors.numpy import save_file
from test_cli import jaxseg_command

from jaxseg import checkpoint
from jaxseg.cli import detect as cli_detect
from jaxseg.cli import evaluate
from jaxseg.cli.detect import COCO_NAMES, class_names
from jaxseg.data import voc_palette
from jaxseg.models.output import Detections
from jaxseg.predict import detect
from jaxseg.runs import model_config
from jaxseg.visualize import draw_detections
from jaxseg.weights import save_model, to_published

sys.path.append(str(Path(__file__).parent / "data"))
from detection_folders import make_coco, make_instances


class Blind(nn.Module):
    """A detector that finds nothing."""

    max_size: int = 64

    def detect_boxes(self):
        """What detectors are known by."""


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


class Scattered(nn.Module):
    """A detector that finds what it likes, of which some places are not filled."""

    min_size: int = 64
    max_size: int = 96
    num_classes: int = 3

    def detect_boxes(self):
        """What detectors are known by."""

    propose = detect_boxes

    def __call__(self, images, sizes, *, train):
        rng = np.random.default_rng(0)
        n, k = len(images), 30
        boxes = np.sort(rng.random((n, k, 2, 2)) * 64, 2).reshape(n, k, 4).astype(np.float32)
        scores = np.tile(np.linspace(1, 0.2, k, dtype=np.float32), (n, 1))
        valid = np.arange(k) % 5 != 3
        masks = rng.random((n, k, 8, 8), np.float32)
        arrays = boxes, scores, rng.integers(1, 3, (n, k)), masks, np.tile(valid, (n, 1))
        return Detections(*map(jnp.asarray, arrays))


def test_the_masks_of_a_large_photograph_are_never_all_in_memory(tmp_path, monkeypatch):
    model, size = Scattered(), (256, 384)
    Image.new("RGB", size[::-1], (9, 90, 200)).save(tmp_path / "17.png")
    (found,) = detect(model, {}, [np.asarray(Image.open(tmp_path / "17.png"))])
    masks, scores, valid = (np.array(x) for x in (found.masks, found.scores, found.valid))
    boxes, classes = np.array(found.boxes), np.array(found.classes)
    del found
    alive = []
    whole, to_rle = 4 * masks[0].size, cli_detect.mask_to_rle

    def watched(mask):
        pasted = [a for a in jax.live_arrays() if a.ndim == 3 and a.shape[1:] == size and a.dtype == jnp.float32]
        alive.append(sum(a.nbytes for a in pasted) / whole)
        return to_rle(mask)

    monkeypatch.setattr(cli_detect, "mask_to_rle", watched)
    monkeypatch.setattr("jaxseg.detect.PASTED", 4 * whole, raising=False)
    files = [(tmp_path / "17.png", Path("17"))]
    cli_detect.detect_files(model, {}, ("background", "a", "b"), files, tmp_path, lambda *at: None)
    assert max(alive) <= 8  # the four that are pasted, and the four before
    rows = json.loads((tmp_path / "17_detections.json").read_text())
    assert len(rows) == len(alive) == valid.sum() == 24
    ids = np.zeros(size, int)
    for row, i in zip(rows, np.flatnonzero(valid), strict=True):
        assert row["category_id"] == classes[i]
        np.testing.assert_allclose(row["bbox"][:2], boxes[i, :2], atol=1e-3)
        np.testing.assert_array_equal(coco_mask.decode(row["segmentation"]), masks[i] > 0.5)
    for i in reversed(np.flatnonzero(valid & (scores >= 0.5))):
        ids[masks[i] > 0.5] = i + 1
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "17_instances.png")), ids)
    drawn = draw_detections(
        np.asarray(Image.open(tmp_path / "17.png")),
        Detections(boxes, scores, classes, masks, valid),
        ("background", "a", "b"),
        voc_palette(3),
    )
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "17_detections.png")), drawn)


def test_results_of_coco_s_files_are_read_by_pycocotools(tmp_path):
    names = ("000000000139.jpg", "000000000285.jpg", "cat 7.jpg")
    for name in names:
        Image.new("RGB", (60, 40), (9, 90, 200)).save(tmp_path / name)
    files = [(tmp_path / name, Path(Path(name).stem)) for name in names]
    cli_detect.detect_files(Scattered(), {}, ("background", "a", "b"), files, tmp_path / "out", lambda *at: None)
    read = [json.loads((tmp_path / "out" / f"{Path(n).stem}_detections.json").read_text()) for n in names]
    assert [{row["image_id"] for row in rows} for rows in read] == [{139}, {285}, {"cat 7.jpg"}]
    images = [{"id": i, "file_name": f"{i:012}.jpg", "height": 40, "width": 60} for i in (139, 285)]
    truth = {"info": {}, "images": images, "categories": [{"id": k, "name": str(k)} for k in (1, 2)]}
    (tmp_path / "truth.json").write_text(json.dumps(truth | {"annotations": []}))
    listed = COCO(str(tmp_path / "truth.json")).loadRes(read[0] + read[1])
    assert sorted({a["image_id"] for a in listed.anns.values()}) == [139, 285]
    assert listed.annToMask(listed.anns[1]).shape == (40, 60)


def test_a_figure_that_a_full_disk_cuts_short_is_named(tmp_path):
    Image.new("RGB", (60, 40), (9, 90, 200)).save(tmp_path / "a.png")
    files = [(tmp_path / "a.png", Path("a"))]
    words = Scattered(), {}, ("background", "a", "b"), files, tmp_path / "out", lambda *at: None
    cli_detect.detect_files(*words)
    sizes = {kind: (tmp_path / "out" / f"a_detections.{kind}").stat().st_size for kind in ("json", "png")}
    assert sizes["json"] < sizes["png"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    outcome = []
    for room in (10, sizes["json"]):  # bytes of a file, which stand for a full disk
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            cli_detect.detect_files(*words)
        except OSError as error:
            outcome.append(str(error).removeprefix(f"{tmp_path}/out/"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome == [f"a_detections.{kind} cannot be written (File too large)" for kind in ("json", "png")]


def test_what_is_no_detector_and_no_weights(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    words = ("predict", "maskrcnn_resnet50_fpn", tmp_path / "photo.png", "--out", tmp_path / "out")
    assert jaxseg_command(*words) == 2
    assert "add --weights" in capsys.readouterr().err
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    assert jaxseg_command(*words, "--weights", tmp_path / "w.safetensors") == 2
    assert "holds no detector" in capsys.readouterr().err
    assert jaxseg_command("train", "maskrcnn_resnet50_fpn", "--out", tmp_path / "run") == 2
    assert "experiments/shapes_mask_rcnn.py" in capsys.readouterr().err


def test_predict_takes_the_folders_of_runs_and_of_converted_checkpoints(tmp_path, monkeypatch, capsys):
    model, variables = filled("fasterrcnn_resnet50_fpn")
    for module in ("jaxseg.runs", "jaxseg.weights.convert", "jaxseg.cli.trained"):
        monkeypatch.setattr(sys.modules[module], "create_model", lambda name, num_classes=None, **fields: model)
    name, classes = "fasterrcnn_resnet50_fpn", ("background", "cat", "dog")
    save_model(tmp_path / "converted", variables, name, 3)
    config = model_config(name, 3, (64, 64), classes, voc_palette(3))
    manager = checkpoint.open_checkpoints(tmp_path / "run" / "checkpoints")
    state = {"params": variables["params"], "model_state": {"batch_stats": variables["batch_stats"]}}
    checkpoint.save(manager, 1, jax.tree.map(jnp.asarray, state), config)
    checkpoint.wait(manager)
    manager.close()
    assert class_names(tmp_path / "run", 3) == classes
    assert class_names(tmp_path / "converted", 3) == ("background", "class 1", "class 2")
    save_model(tmp_path / "named", variables, name, 3, about={"class_names": list(classes)})  # as of a run
    assert class_names(tmp_path / "named", 3) == classes
    (tmp_path / "photos").mkdir()
    for file in ("17.png", "b.png", "c.png"):
        pixels = np.random.default_rng(len(file)).integers(0, 256, (12, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(tmp_path / "photos" / file)
    monkeypatch.chdir(tmp_path)
    texts = []
    for words in (("run",), ("converted", "--batch", 2), (name, "--weights", "run"), (name, "--weights", "converted")):
        assert jaxseg_command("predict", *words, "photos") == 0  # into the default folder
        assert "found the objects in 3 of 3 images into predictions" in capsys.readouterr().out
        texts.append([json.loads((tmp_path / "predictions" / f"{s}_detections.json").read_text()) for s in ("17", "b")])
        shutil.rmtree(tmp_path / "predictions")
    assert texts[0] == texts[2] == texts[3]
    assert [row["image_id"] for rows in texts[0] for row in rows[:1]] == [17, "b.png"]  # COCO's ids are numbers
    for ours, expected in zip(texts[1], texts[0], strict=True):
        np.testing.assert_allclose([r["bbox"] for r in ours], [r["bbox"] for r in expected], atol=1e-2)
    words = ("predict", "run", "photos", "--window", "32x32", "--flip", "--long-side", 40, "--shard", "spatial=8")
    assert jaxseg_command(*words) == 2
    assert "--window, --long-side, --flip, --shard are for semantic models" in capsys.readouterr().err
    assert jaxseg_command("predict", "run", "photos", "--classes", 5) == 2
    assert "scores 3 classes, not 5; leave --classes out" in capsys.readouterr().err
    assert jaxseg_command("predict", "run", "photos", "--batch", 0) == 2
    assert "--batch is at least 1" in capsys.readouterr().err


def test_evaluate_gives_a_detectors_average_precision(tmp_path, monkeypatch, capsys):
    trained = {"num_classes": 2, "class_names": ["background", "thing"]}
    monkeypatch.setattr(evaluate, "load_described", lambda run: (Blind(), {}, trained))
    none = Detections(np.zeros((1, 4)), np.zeros(1), np.zeros(1, int), np.zeros((1, 40, 56)), np.zeros(1, bool))
    monkeypatch.setattr("jaxseg.predict.objects.detect", lambda model, variables, images, canvas: [none] * len(images))
    make_instances(tmp_path / "ids", "test", 3, (40, 56))
    words = ("evaluate", tmp_path, "--data", tmp_path / "ids")
    assert jaxseg_command(*words) == 0
    said = capsys.readouterr().out
    assert "test data: 3 images" in said
    assert "| mask |" in said
    scores = json.loads((tmp_path / "evaluation-test.json").read_text())
    assert (scores["box_ap"], scores["mask_ap50"], scores["mask_ap_large"]) == (0, 0, None)
    assert jaxseg_command(*words, "--split", "val") == 2
    assert "no such folder" in capsys.readouterr().err
    assert jaxseg_command(*words, "--parallel", "pmap", "--ignore-label", 0) == 2
    assert "--parallel, --ignore-label are for semantic models" in capsys.readouterr().err
    images, listing = make_coco(tmp_path / "coco")
    images.rename(images.with_name("val2017"))
    (tmp_path / "coco" / "annotations").mkdir()
    listing.rename(tmp_path / "coco" / "annotations" / "instances_val2017.json")
    assert jaxseg_command("evaluate", tmp_path, "--data", tmp_path / "coco") == 2
    assert "has 8 classes" in capsys.readouterr().err
    trained |= {"num_classes": 8}
    assert jaxseg_command("evaluate", tmp_path, "--data", tmp_path / "coco") == 0
    assert "val data: 3 images" in capsys.readouterr().out
