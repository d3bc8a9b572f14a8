"""Each experiment runs for a few steps on tiny data of its own layout."""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import sys
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
from models.test_generation import NARROW, case
from PIL import Image

import jaxseg
from jaxseg.backbones.vgg import VGG
from jaxseg.cli.arguments import run_experiment
from jaxseg.data import DataError
from jaxseg.fit import Run
from jaxseg.layers import BatchNorm
from jaxseg.models import MODELS, SegmentationOutput, create_model
from jaxseg.runs import load_run
from jaxseg.weights import save_weights

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"
sys.path.append(str(pathlib.Path(__file__).parent / "data"))
from detection_folders import make_coco, make_instances  # noqa: E402
from official_folders import make_ade20k, make_cityscapes, make_pets, make_voc  # noqa: E402


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
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


class Tiny(nn.Module):
    """A backbone of one convolution, and class scores."""

    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Conv(4, (3, 3), name="backbone")(images))
        return SegmentationOutput(nn.Conv(self.num_classes, (1, 1), name="logits")(x), None)


def test_camvid_trains_and_tabulates_the_test_part(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    camvid = load("camvid")
    make_camvid(tmp_path)
    run = Run(steps=2, batch=8, out=tmp_path / "run", checkpoint_every=2)
    camvid.main(camvid.Config(tmp_path, run, model="tiny", size=(48, 64)))
    said = capsys.readouterr().out
    assert "bicyclist" in said
    assert "FC-DenseNet103" in said
    assert (tmp_path / "run" / "results.json").exists()


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


@pytest.mark.parametrize(
    ("name", "make"), [("voc", make_voc), ("cityscapes", make_cityscapes), ("ade20k", make_ade20k), ("pets", make_pets)]
)
def test_a_benchmark_starts_from_a_file_with_the_fields_that_it_has(name, make, tmp_path, monkeypatch):
    """As `jaxseg train --weights` does: here the file has no auxiliary head."""
    model = create_model("deeplabv3_mobilenet_v3_large", 3, aux=None)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    save_weights(tmp_path / "w.safetensors", model, variables)
    experiment, made = load(name), []
    monkeypatch.setattr(experiment, "supervised", lambda model, **_: made.append(model))
    monkeypatch.setattr(experiment, "fit", lambda *_, **__: SimpleNamespace(stopped=True))
    folders = make(tmp_path)
    data = {"data": folders} if isinstance(folders, pathlib.Path) else dict(zip(("data", "sbd"), folders, strict=True))
    run = Run(steps=2, batch=8, out=tmp_path / "run")
    words = {"run": run, "model": "deeplabv3_mobilenet_v3_large", "weights": tmp_path / "w.safetensors"}
    experiment.main(experiment.Config(**data, **words))
    assert made[0].aux is None
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        experiment.main(experiment.Config(**data, run=run, weights=tmp_path / "none.pth"))


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


def write_pictures(root, names, size, seed):
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name)


@pytest.mark.slow
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
    for held_out in (0, 24):
        with pytest.raises(SystemExit, match=rf"--held-out {held_out} of 24 photographs and 24 paintings: hold some"):
            style_transfer.main(dataclasses.replace(config, held_out=held_out))
    style_transfer.main(config)
    with Image.open(tmp_path / "run" / "grid.png") as grid:
        assert grid.size == (4 * 18, 7 * 18)
    style_grid = load("style_grid")
    styles = tuple(tmp_path / "style" / f"{j}.png" for j in range(2))
    style_grid.main(style_grid.Config(run.out, (tmp_path / "content" / "0.png",), styles, tmp_path / "g.png", size=16))
    with Image.open(tmp_path / "g.png") as grid:
        assert grid.size == (3 * 16, 4 * 16)


def test_one_class_is_no_condition(tmp_path):
    write_pictures(tmp_path / "faces", [*(f"{c}/{j}.png" for c in "ab" for j in range(36)), "sheet.png"], (8, 8), 0)
    progan = load("progan_faces")
    with pytest.raises(DataError, match="faces: --conditional needs a folder for each class"):
        progan.main(progan.Config(tmp_path / "faces", tmp_path / "run", conditional=True))


def test_scores_are_of_images_whose_classes_are_the_reals(tmp_path, monkeypatch):
    """A conditional generator is asked for each real's class: rare ones rarely."""
    write_pictures(tmp_path / "faces", [*(f"a/{j}.png" for j in range(20)), "b/0.png", "b/1.png"], (8, 8), 0)
    scores, asked = load("score_faces"), []
    run = scores.open_generator.__annotations__["return"](
        jaxseg.create_model("stylegan_generator", 2, resolution=8), {}, 1, {"classes": ["a", "b"]}
    )
    monkeypatch.setattr(scores, "open_generator", lambda path: run)
    monkeypatch.setattr(scores, "generate", lambda *a: asked.append(a[3]) or np.zeros((a[4], 8, 8, 3), np.uint8))
    scores.main(scores.Config(tmp_path / "run", tmp_path / "faces", samples=30))
    source = jaxseg.data.pictures(tmp_path / "faces", 8)
    shown = [np.array([source[i]["image"] for i in range(22) if source.classes[i] == c]) for c in (0, 1)]
    of_reals = [int(any(np.array_equal(x, y) for y in shown[1])) for x in scores.reals(source, 22, 0)]
    assert asked[0].tolist() == of_reals
    assert sum(of_reals) == 2
    run.described["classes"] = ["a", "c"]
    with pytest.raises(SystemExit, match=r"knows the classes a, c, and .*faces has a, b: name the folder"):
        scores.main(scores.Config(tmp_path / "run", tmp_path / "faces", samples=30))


def test_scores_say_what_they_lack_before_images_are_made(tmp_path, monkeypatch):
    scores = load("score_faces")
    opened = scores.open_generator.__annotations__["return"]
    config = scores.Config(tmp_path / "run", tmp_path / "no_faces")
    for name, given, kind, said in (
        ("stylegan_generator", {"lpips": tmp_path / "lpips.pth"}, SystemExit, "give --vgg too"),
        ("stylegan_generator", {"vgg": tmp_path / "vgg.pth"}, FileNotFoundError, r"vgg\.pth"),
        ("progan_generator", {"vgg": tmp_path / "vgg.pth"}, SystemExit, "the path length is in StyleGAN's w"),
    ):
        run = opened(jaxseg.create_model(name, 0, resolution=8), {}, 1, {"model": name})
        monkeypatch.setattr(scores, "open_generator", lambda path, run=run: run)
        with pytest.raises(kind, match=said):
            scores.main(dataclasses.replace(config, **given))


def test_figures_open_a_published_generator_of_any_resolution(tmp_path, monkeypatch):
    model, variables = case("stylegan_generator", 16, 3)
    jaxseg.save_weights(tmp_path / "g.safetensors", model, variables)
    monkeypatch.setitem(MODELS, "stylegan_generator", functools.partial(MODELS["stylegan_generator"], **NARROW))
    figures = load("stylegan_figures")
    found, loaded, stage = figures.opened(figures.Config(tmp_path / "out", weights=tmp_path / "g.safetensors"))
    assert (found, stage) == (model, None)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, variables))
    for words, said in (
        ({"label": 3}, "--label is a class from 0 to 2, got 3"),
        ({"frames": 0}, "are 1 or more, got 100"),
    ):
        with pytest.raises(SystemExit, match=said):
            figures.main(figures.Config(tmp_path / "out", weights=tmp_path / "g.safetensors", **words))


def test_what_a_configuration_would_ignore_is_said(tmp_path):
    stylegan = load("stylegan_faces")
    for option in ({"gamma": 1.0}, {"penalty_every": 4}):
        with pytest.raises(ValueError, match=r"--gamma and --penalty-every are R1's, and configuration A has WGAN-GP"):
            stylegan.main(stylegan.Config(tmp_path, out=tmp_path / "out", configuration="A", **option))
    with pytest.raises(ValueError, match=r"--w-features is a mapping network's, and configuration B has none"):
        stylegan.main(stylegan.Config(tmp_path, out=tmp_path / "out", configuration="B", w_features=64))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("style_transfer", "batch", 0),
        ("style_transfer", "crop", -1),
        ("style_grid", "size", 0),
        ("bsds", "shrink", 0),
        ("bsds", "step", 0),
        ("coco", "pictures", 0),
        ("coco", "steps", -1),
        ("nuclei", "max_instances", 0),
        ("pennfudan", "pictures", -2),
        ("shapes_mask_rcnn", "steps", 0),
        ("soak", "checkpoint_every", 0),
        ("spatial_memory", "size", 0),
        ("edit_faces", "projector_steps", 0),
        ("score_faces", "paths", 0),
        ("face_classifier", "batch", 0),
        ("progan_faces", "resolution", 0),
        ("stylegan_faces", "penalty_every", 0),
    ],
)
def test_a_number_below_one_is_said_before_anything_is_read(name, option, value, tmp_path):
    experiment = load(name)
    missing = tmp_path / "none"
    fields = dataclasses.fields(experiment.Config)
    given = {f.name: missing for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    if "run" in (names := {f.name for f in fields}) and "run" not in given:
        given["run"] = Run(**{"steps": 2, option: value} if option in ("steps", "batch") else {"steps": 2})
    if option in names:
        given[option] = value
    with pytest.raises(ValueError, match=rf"^--{option.replace('_', '-')} is at least 1, got {value}$"):
        experiment.main(experiment.Config(**given))
    assert not missing.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"contents": ()}, "one or more of each of --contents, --styles and --alphas"),
        ({"styles": ()}, "one or more of each of --contents, --styles and --alphas"),
        ({"alphas": ()}, "one or more of each of --contents, --styles and --alphas"),
        ({"alphas": (0.5, 2.0)}, r"--alphas lie between 0 \(content\) and 1 \(style\), got \(0\.5, 2\.0\)"),
    ],
)
def test_a_grid_without_rows_is_named_before_a_run_is_read(change, said, tmp_path):
    grid = load("style_grid")
    config = grid.Config(tmp_path / "run", (tmp_path / "a.png",), (tmp_path / "b.png",))
    with pytest.raises(SystemExit, match=said):
        grid.main(dataclasses.replace(config, **change))


@pytest.mark.slow
def test_faces_grow_with_labels_and_without(tmp_path):
    classes = ("a", "b")
    write_pictures(tmp_path / "faces", [f"{c}/{j}.png" for c in classes for j in range(36)], (16, 16), 0)
    shape = {"data": tmp_path / "faces", "base_features": 32, "max_features": 4, "latent_features": 6}
    shape |= {"fade_kimg": 0.016, "train_kimg": 0.016, "batch": 16, "samples": 64, "resolution": 8, "total_kimg": None}
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


def test_shapes_mask_rcnn_trains_a_detector_on_its_pictures(tmp_path, monkeypatch):
    """What `fit` and, after it, the report are given; coco.py, below, goes on from there."""
    experiment = load("shapes_mask_rcnn")
    given, finished = [], []
    state = SimpleNamespace(params={}, model_state={})
    result = SimpleNamespace(stopped=False, state=state)
    monkeypatch.setattr(experiment, "fit", lambda *a, **k: (given.append(a), result)[1])
    monkeypatch.setattr(experiment, "finish_detection", lambda *a, **k: finished.append((*a, k)))
    experiment.main(experiment.Config(Run(steps=2, batch=4, out=tmp_path / "run"), pictures=2))
    ((fns, training, evaluation, _),) = given
    batch = next(iter(training.batches(0)))
    assert batch["image"].shape == next(iter(evaluation()))["image"].shape == (4, 128, 128, 3)
    start = jax.eval_shape(fns.init, jax.random.key(0), batch)
    jax.eval_shape(fns.update, start, batch, jax.random.key(1))
    ((_, described, _, _, held_out, how),) = finished
    assert (len(held_out), how["pictures"]) == (200, 2)
    assert held_out[0]["boxes"].shape == (len(held_out[0]["classes"]), 4)
    assert held_out.class_names == tuple(described["class_names"])


@pytest.mark.parametrize(
    ("name", "held_out", "thing"), [("pennfudan", "test", "pedestrian"), ("nuclei", "val", "nucleus")]
)
def test_a_detector_trains_on_pictures_and_their_maps(name, held_out, thing, tmp_path, monkeypatch):
    """What `fit` is given; coco.py, below, goes on from there."""
    experiment = load(name)
    for split in ("train", held_out):
        make_instances(tmp_path / "data", split, 8, (40, 56))
    given = []
    monkeypatch.setattr(experiment, "fit", lambda *a, **k: (given.append((*a, k)), SimpleNamespace(stopped=True))[1])
    run = Run(steps=2, batch=4, out=tmp_path / "run")
    experiment.main(experiment.Config(tmp_path / "data", run=run, model="maskrcnn_small", size=(64, 64)))
    ((fns, training, evaluation, _, described),) = given
    assert described["config"]["class_names"] == ["background", thing]
    for batch in (next(iter(training.batches(0))), next(iter(evaluation()))):
        assert batch["image"].shape == (4, 64, 64, 3)
        assert batch["valid"].any()
    state = jax.eval_shape(fns.init, jax.random.key(0), batch)
    jax.eval_shape(fns.update, state, next(iter(training.batches(0))), jax.random.key(1))


def test_a_run_on_coco_goes_on_with_its_own_options_alone(tmp_path, monkeypatch):
    experiment, given = load("coco"), []
    for split in ("train", "val"):
        images, listing = make_coco(tmp_path / split)
        images.rename(tmp_path / f"{split}2017")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        listing.rename(tmp_path / "annotations" / f"instances_{split}2017.json")
    monkeypatch.setattr(experiment, "start_from", lambda path, model: None)
    monkeypatch.setattr(experiment, "fit", lambda *_, config: (given.append(config), SimpleNamespace(stopped=True))[1])
    config = experiment.Config(tmp_path, model="maskrcnn_small", size=(64, 64), run=Run(steps=9, batch=1))
    others = {"weights": pathlib.Path("w.pth"), "schedule": 3, "norm": "group", "size": (32, 32), "max_instances": 5}
    others |= {"learning_rate": 0.1, "lsj": True, "small_samples": True}
    for option in ({}, *({name: value} for name, value in others.items())):
        experiment.main(dataclasses.replace(config, **option))
    assert all(given[0] != other for other in given[1:])


@pytest.mark.slow
def test_coco_trains_scores_and_is_drawn(tmp_path, monkeypatch):
    from models.test_detectors import small

    experiment = load("coco")
    norms = []

    def narrow(config):
        norms.append(create_model(config["model"], config["num_classes"], **config["fields"]).norm)
        return small("maskrcnn_resnet50_fpn").clone(
            num_classes=config["num_classes"], rpn_pre_nms_top_n_train=24, rpn_post_nms_top_n_train=16, norm=norms[0]
        )

    monkeypatch.setattr(experiment, "model_from_config", narrow)
    shared = next((p for p in (q / "shared/data/tiny_coco" for q in EXPERIMENTS.parents[1:3]) if p.is_dir()), None)
    if shared is None:
        pytest.skip("shared/data/tiny_coco is not on this machine")
    run = Run(steps=2, batch=8, out=tmp_path / "run", checkpoint_every=2)
    config = experiment.Config(shared, run=run, size=(64, 64), lsj=True, norm="batch", small_samples=True, pictures=6)
    experiment.main(config)
    assert norms == [BatchNorm]
    scores = json.loads((tmp_path / "run" / "results.json").read_text())["scores"]
    assert {"box_ap", "mask_ap", "mask_ap50"} <= set(scores)
    assert (tmp_path / "run" / "detections.png").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nuclei", "no such folder; pictures are in images and their id maps in instances"),
        ("pennfudan", "no such folder; pictures are in images and their id maps in instances"),
        ("coco", "no such file; it should be COCO's JSON of instances"),
    ],
)
def test_absent_objects_are_said(name, message, tmp_path):
    experiment = load(name)
    with pytest.raises(DataError, match=message):
        experiment.main(experiment.Config(tmp_path / "nowhere"))


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "nowhere"), "error: nowhere/train/images: no such folder"),
        (("--data", "nowhere", "--distributed", "two"), "error: --distributed is auto or ADDRESS:PORT,PROCESSES,THIS"),
    ],
)
def test_an_experiments_mistakes_end_in_one_message(words, said, capsys, monkeypatch):
    experiment = load("nuclei")
    monkeypatch.setattr(sys, "argv", ["nuclei.py", *words])
    with pytest.raises(SystemExit) as ended:
        run_experiment(experiment.main, experiment.Config, experiment.__doc__)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(said)
