"""Each experiment runs for a few steps on tiny data of its own layout."""

import functools
import importlib.util
import json
import pathlib
import sys

import numpy as np
from PIL import Image

from jaxseg.fit import Run

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
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


def write_pictures(root, names, size, seed):
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name)


def test_style_transfer_trains_and_draws_its_grid(tmp_path, monkeypatch):
    style_transfer = load("style_transfer")
    narrow = functools.partial(style_transfer.ENCODERS["vgg16"], features=(3, 4, 4, 6))
    monkeypatch.setitem(style_transfer.ENCODERS, "vgg16", narrow)
    for i, kind in enumerate(("content", "style")):
        write_pictures(tmp_path / kind, [f"{j}.png" for j in range(24)], (20, 30), i)
    rng, widths, weights = np.random.default_rng(0), (3, 3, 4, 4, 6), {}
    for stage, depth in enumerate((2, 2, 3, 1), 1):
        for i in range(1, depth + 1):
            shape = (widths[stage], widths[stage - 1] if i == 1 else widths[stage], 3, 3)
            weights[f"block{stage}_conv{i}/kernel_OIHW"] = rng.standard_normal(shape, np.float32)
            weights[f"block{stage}_conv{i}/bias"] = np.zeros(shape[0], np.float32)
    np.savez(tmp_path / "vgg.npz", **weights)
    run = Run(steps=2, batch=8, out=tmp_path / "run", checkpoint_every=2)
    config = style_transfer.Config(
        tmp_path / "content", tmp_path / "style", tmp_path / "vgg.npz", run, size=18, crop=16, held_out=8
    )
    style_transfer.main(config)
    with Image.open(tmp_path / "run" / "grid.png") as grid:
        assert grid.size == (4 * 18, 7 * 18)


def test_faces_grow_with_labels_and_without(tmp_path):
    classes = ("a", "b")
    write_pictures(tmp_path / "faces", [f"{c}/{j}.png" for c in classes for j in range(36)], (16, 16), 0)
    shape = {"data": tmp_path / "faces", "base_features": 32, "max_features": 4, "latent_features": 6}
    shape |= {"fade_kimg": 0.016, "train_kimg": 0.016, "batch": 16, "samples": 64, "resolution": 8}
    stylegan, progan = load("stylegan_faces"), load("progan_faces")
    results = stylegan.main(stylegan.Config(out=tmp_path / "stylegan", w_features=5, conditional=True, **shape))
    assert set(results) == {"8", "conditioning"}
    assert json.loads((tmp_path / "stylegan" / "results.json").read_text())["8"]["images"] == 16
    figures = load("stylegan_figures")
    figures.main(figures.Config(tmp_path / "figures", run=tmp_path / "stylegan", draws=2, frames=3))
    assert len(list((tmp_path / "figures").iterdir())) == 5
    results = progan.main(progan.Config(out=tmp_path / "progan", **shape))
    assert set(results) == {"4", "8"}
    assert (tmp_path / "progan" / "grid_8.png").exists()
