"""Each experiment runs for a few steps on tiny data of its own layout."""

import importlib.util
import json
import pathlib

import numpy as np
from PIL import Image

from jaxseg.fit import Run

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_camvid_trains_and_tabulates_the_test_part(tmp_path, capsys):
    camvid = load("camvid")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(3):
            label = rng.integers(0, 12, (9, 12), np.uint8).repeat(40, 0).repeat(40, 1)  # 11 is void
            Image.fromarray(label).save(tmp_path / split / "labels" / f"{i}.png")
            Image.fromarray(label[..., None].repeat(3, -1) * 20).save(tmp_path / split / "images" / f"{i}.jpg")
    run = Run(steps=2, batch=8, out=tmp_path / "run", checkpoint_every=2)
    camvid.main(camvid.Config(tmp_path, run, size=(48, 64)))
    said = capsys.readouterr().out
    assert "bicyclist" in said
    assert "FC-DenseNet103" in said
    assert (tmp_path / "run" / "results.json").exists()


def test_shapes_mask_rcnn_trains_scores_and_draws(tmp_path, capsys):
    experiment = load("shapes_mask_rcnn")
    run = Run(steps=2, batch=8, out=tmp_path / "run", checkpoint_every=2)
    experiment.main(experiment.Config(run, pictures=6))
    scores = json.loads((tmp_path / "run" / "results.json").read_text())["scores"]
    assert {"box_ap50", "mask_ap", "mask_ap50"} <= set(scores)
    assert "mask_ap50" in capsys.readouterr().out
    assert Image.open(tmp_path / "run" / "detections.png").size == (3 * 512, 2 * 512)
