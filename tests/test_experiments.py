"""Each experiment runs for a few steps on tiny data of its own layout."""

import importlib.util
import pathlib
import sys

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

from jaxseg.backbones.vgg import VGG
from jaxseg.fit import Run
from jaxseg.layers import BatchNorm
from jaxseg.models import MODELS, SegmentationOutput
from jaxseg.runs import load_run

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"
sys.path.append(str(pathlib.Path(__file__).parent / "data"))
from official_folders import make_ade20k, make_cityscapes, make_pets, make_voc  # noqa: E402


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_camvid(root):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i in range(3):
            label = rng.integers(0, 12, (9, 12), np.uint8).repeat(40, 0).repeat(40, 1)  # 11 is void
            Image.fromarray(label).save(root / split / "labels" / f"{i}.png")
            Image.fromarray(label[..., None].repeat(3, -1) * 20).save(root / split / "images" / f"{i}.jpg")


def test_camvid_trains_and_tabulates_the_test_part(tmp_path, capsys):
    camvid = load("camvid")
    make_camvid(tmp_path)
    run = Run(steps=2, batch=8, out=tmp_path / "run", checkpoint_every=2)
    camvid.main(camvid.Config(tmp_path, run, size=(48, 64)))
    said = capsys.readouterr().out
    assert "bicyclist" in said
    assert "FC-DenseNet103" in said
    assert (tmp_path / "run" / "results.json").exists()


class Tiny(nn.Module):
    """A backbone of one convolution, and class scores."""

    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Conv(4, (3, 3), name="backbone")(images))
        return SegmentationOutput(nn.Conv(self.num_classes, (1, 1), name="logits")(x), None)


@pytest.mark.parametrize(
    ("name", "make", "shown"),
    [
        ("voc", make_voc, "tv monitor"),
        ("cityscapes", make_cityscapes, "bicycle"),
        ("ade20k", make_ade20k, "thing149"),
        ("pets", make_pets, "pet"),
    ],
)
def test_a_benchmark_trains_scores_and_tabulates(name, make, shown, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    experiment = load(name)
    if hasattr(experiment, "CANVAS"):
        monkeypatch.setattr(experiment, "CANVAS", (12, 16))
    folders = make(tmp_path)
    data = {"data": folders} if isinstance(folders, pathlib.Path) else dict(zip(("data", "sbd"), folders, strict=True))
    run = Run(steps=2, batch=8, out=tmp_path / "run")
    experiment.main(experiment.Config(**data, run=run, model="tiny", size=(8, 8)))
    assert shown in capsys.readouterr().out
    assert (tmp_path / "run" / "predictions.png").exists()
    assert (tmp_path / "run" / "results.json").exists()


class TinyUNet(nn.Module):
    """Two stages of a VGG, and class scores; the fields are those that the experiment sets."""

    num_classes: int
    center: bool = True
    decoder_features: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, images, *, train):
        x = VGG((1, 1), (4, 4), norm=BatchNorm, name="encoder")(images, train=train)["stride1"]
        return SegmentationOutput(nn.Conv(self.num_classes, (1, 1), name="logits")(x), None)


@pytest.mark.parametrize("backbone", ["frozen", "slower"])
def test_camvid_fine_tunes_published_weights(backbone, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(MODELS, "unet_vgg16_bn", TinyUNet)
    finetune, rng = load("camvid_finetune"), np.random.default_rng(0)
    make_camvid(tmp_path)
    arrays = {}
    for stage, inputs in ((1, 3), (2, 4)):
        arrays[f"block{stage}_conv1/kernel_OIHW"] = rng.normal(size=(4, inputs, 3, 3)).astype(np.float32)
        arrays[f"block{stage}_conv1/bias"] = rng.normal(size=4).astype(np.float32)
    np.savez(tmp_path / "vgg.npz", **arrays)
    run = Run(steps=2, batch=8, out=tmp_path / "run")
    finetune.main(finetune.Config(tmp_path, tmp_path / "vgg.npz", run, backbone=backbone, size=(12, 16)))
    assert "bicyclist" in capsys.readouterr().out
    _, variables = load_run(tmp_path / "run")
    kernel = variables["params"]["encoder"]["conv2_1"]["kernel"]
    same = np.array_equal(kernel, arrays["block2_conv1/kernel_OIHW"].transpose(2, 3, 1, 0))
    assert same == (backbone == "frozen")
