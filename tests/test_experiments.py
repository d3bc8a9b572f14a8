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


def test_bsds_scores_both_methods_and_goes_on_where_it_stopped(tmp_path, capsys):
    bsds = load("bsds")
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    halves = np.kron([[0, 1]], np.ones((24, 16), np.uint8))
    for name, label in {"a": halves, "b": halves.T}.items():
        colour = np.where(label[..., None], [200, 80, 60], [40, 90, 160]).astype(np.uint8)
        Image.fromarray(colour).save(tmp_path / "data" / "images" / f"{name}.jpg")
        for human in range(2):
            Image.fromarray(label.astype(np.uint8)).save(tmp_path / "data" / "labels" / f"{name}_{human}.png")
    config = bsds.Config(tmp_path / "data", tmp_path / "out", clusters=(2,), levels=(0.05, 0.3), num_eigenvectors=2)
    bsds.main(config)
    first = capsys.readouterr().out
    assert "NCuts, published" in first
    rows = json.loads((tmp_path / "out" / "scores.json").read_text())["rows"]
    assert rows["kmeans"][0] == rows["kmeans"][7] == 1.0  # covering and boundary F of two flat halves
    assert rows["ncut"][0] >= 13 / 16  # a contour is as wide as its filters, here a few of the 16 pixels
    (tmp_path / "out" / "ncut" / "b.json").unlink()
    bsds.main(config)
    assert capsys.readouterr().out == first
