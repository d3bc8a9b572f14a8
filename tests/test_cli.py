"""The command line, from a folder of photographs to a table: what it writes, and what it says to mistakes."""

import functools
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import jaxseg
from jaxseg.cli import inspect, main
from jaxseg.cli.predict import _image_files, _write_pictures
from jaxseg.cli.train import LOSSES, PIXELWISE, loss_of
from jaxseg.data import MEAN_COLOUR, DataError, normalize, voc_palette
from jaxseg.pretrained import start_from
from jaxseg.runs import is_described, model_config
from jaxseg.weights import WeightsMismatch, save_weights, to_published

NAMES = ("sky", "ground")


@pytest.fixture(autouse=True)
def colour_free_terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")


def jaxseg_command(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in words])
    return ended.value.code


def write_pair(root, split, stem, size=(32, 48), seed=0):
    rng = np.random.default_rng(seed)
    label = np.zeros(size, np.uint8)
    label[size[0] // 2 :] = 1
    image = np.where(label[..., None] == 1, (90, 60, 30), (120, 170, 250)) + rng.integers(-20, 20, (*size, 3))
    for kind, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("labels", label)):
        (root / split / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / split / kind / f"{stem}.png")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for i in range(10):
        write_pair(root, "train" if i < 6 else "val", f"photo{i}", seed=i)
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def train_words(photos, out, **changed):
    options = {"data": photos, "out": out, "steps": 3, "batch": 8, "size": "32x48", "checkpoint-every": 2} | changed
    return ["train", "unet_small", *(w for k, v in options.items() for w in (f"--{k}", v))]


@pytest.fixture(scope="session")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "photos"
    assert jaxseg_command(*train_words(photos, out)) == 0
    return out


def test_train_leaves_checkpoint_table_events_figure(run):
    assert {p.name for p in run.iterdir()} == {
        *("checkpoints", "curves.png", "metrics.jsonl", "predictions.png", "results.json", "results.md", "tensorboard")
    }
    assert "sky" in (run / "results.md").read_text()
    scores = json.loads((run / "results.json").read_text())["scores"]
    assert 0 <= scores["miou"] <= 1
    with Image.open(run / "predictions.png") as figure:
        assert figure.width > 500


def test_the_same_words_again_say_that_it_is_finished(run, photos, capsys):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    assert jaxseg_command(*train_words(photos, run)) == 0
    said = capsys.readouterr().out
    assert "is finished: 3 steps of unet_small" in said
    assert "mean IoU" in said
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_other_words_in_the_same_folder_are_refused(run, photos, capsys):
    assert jaxseg_command(*train_words(photos, run, seed=1)) == 2
    assert "seed: checkpoint 0, this run 1" in capsys.readouterr().err


def test_load_run_is_the_trained_model(run):
    model, variables = jaxseg.load_run(run)
    logits = model.apply(variables, jnp.zeros((1, 16, 32, 3)), train=False).logits
    assert logits.shape == (1, 16, 32, 2)


def test_a_run_converts_to_a_folder_that_predicts_as_it_does(run, photos, tmp_path, capsys):
    assert jaxseg_command("convert", "unet_small", run, "--out", tmp_path / "f") == 0
    assert f"wrote the weights of {run}, a unet_small" in capsys.readouterr().out
    model, variables = jaxseg.load_model(tmp_path / "f")
    ours, trained = jaxseg.load_run(run)
    assert model == ours
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, trained))
    for name, folder in (("a", run), ("b", tmp_path / "f")):
        words = ("predict", folder, photos / "val" / "images" / "photo7.png", "--out", tmp_path / name)
        assert jaxseg_command(*words) == 0
    for what in ("labels", "palette"):
        a, b = ((tmp_path / name / f"photo7_{what}.png").read_bytes() for name in "ab")
        assert a == b
    assert jaxseg_command("convert", "unet", run, "--out", tmp_path / "g") == 2
    assert f"{run} holds unet_small, not unet; name that model" in capsys.readouterr().err
    assert jaxseg_command("convert", "unet_small", run, "--out", tmp_path / "g", "--classes", 3) == 2
    assert not (tmp_path / "g").exists()
    for load in (jaxseg.load_model, lambda folder: jaxseg.load_weights(folder, model)):
        with pytest.raises(FileNotFoundError, match=r"it is a run's: jaxseg\.load_run opens it, and `jaxseg convert`"):
            load(run)


def test_a_config_has_a_name_and_a_colour_for_each_class():
    config = model_config("unet_small", 2, (16, 16), ["a", "b"], voc_palette(2))
    assert is_described(config)
    for change in ({"palette": []}, {"palette": [[0, 0, 0]]}, {"class_names": ["a"]}, {"class_names": ["a", "b", "c"]}):
        assert not is_described(config | change), change


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"num_classes": 0},
        {"num_classes": 2**70},
        {"size": [64]},
        {"size": [64.5, 64]},
        {"palette": [[300, 0, 0]]},
        {"class_names": [1]},
        {"fields": {"dtype": "zz"}},
        {"fields": []},
        None,
        {},
    ],
)
def test_a_run_that_describes_no_model_is_said_to(change, run, photos, tmp_path, capsys):
    """As one of `fit` from Python may, or a stranger's."""
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    for meta in (tmp_path / "run" / "checkpoints").glob("*/meta/metadata"):
        saved = json.loads(meta.read_text())
        meta.write_text(json.dumps(saved | {"config": saved["config"] | change if change else change}))
    photo = photos / "val" / "images" / "photo7.png"
    for words in (["predict", tmp_path / "run", photo, "--out", tmp_path / "o"], ["evaluate", tmp_path / "run"]):
        assert jaxseg_command(*words) == 2
        said = capsys.readouterr().err
        assert f"{tmp_path / 'run'} does not say which model it holds" in said or "describes no model" in said
    with pytest.raises(ValueError, match="model"):
        jaxseg.load_run(tmp_path / "run")


def test_a_loss_by_name_is_the_sum_of_its_parts():
    rng = np.random.default_rng(0)
    logits, labels = jnp.array(rng.normal(size=(2, 4, 4, 3))), jnp.array(rng.integers(0, 3, (2, 4, 4)))
    weights = np.array([1.0, 2.0, 3.0], np.float32)

    @jax.jit
    def values(logits, labels):
        weighted = [LOSSES[name](logits, labels, class_weights=jnp.array(weights)) for name in PIXELWISE]
        plain = [loss(logits, labels) for name, loss in LOSSES.items() if name not in PIXELWISE]
        return loss_of("+".join(LOSSES), weights)(logits, labels), sum(weighted) + sum(plain)

    got, want = values(logits, labels)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_training_starts_from_a_run_of_other_classes_but_for_the_head(run, photos, capsys):
    _, trained = jaxseg.load_run(run)
    shapes = jax.eval_shape(
        lambda key: jaxseg.create_model("unet_small", 3).init(key, jnp.zeros((1, 32, 32, 3)), train=False),
        jax.random.key(0),
    )
    fresh = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), shapes)
    started = start_from(run, jaxseg.create_model("unet_small", 3))(fresh)
    said = capsys.readouterr().out
    for path, x in jax.tree_util.tree_leaves_with_path(started):
        name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
        was = functools.reduce(lambda tree, key: tree[key.key], path, trained)
        if x.shape == was.shape:
            np.testing.assert_array_equal(x, was)
        else:
            assert (x == 7).all()
            assert name in said
    with pytest.raises(WeightsMismatch, match="another model"):
        start_from(run, jaxseg.create_model("unet_small", 3))({"params": {"conv": {"kernel": np.zeros((3, 3))}}})


def test_training_starts_from_imagenet_weights_of_a_backbone(tmp_path, capsys):
    model = jaxseg.create_model("pspnet_resnet18", 3)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    fresh, other = (jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes) for _ in range(2))
    # semseg's own ResNet: PSPNet's names less the prefix, where the deep stem is layer0, and a classifier
    stem = {"layer0.0": "conv1", "layer0.1": "bn1", "layer0.3": "conv2", "layer0.4": "bn2"}
    stem |= {"layer0.6": "conv3", "layer0.7": "bn3"}
    state = {}
    for name, array in to_published(model, other).items():
        module, _, field = name.removeprefix("module.").rpartition(".")
        if module.startswith("layer"):
            state[f"{stem.get(module, module)}.{field}"] = array
    save_file(state | {"fc.weight": np.zeros((1000, 512), np.float32)}, tmp_path / "resnet18.safetensors")
    started = start_from(tmp_path / "resnet18.safetensors", model)(fresh)
    assert "started from the backbone" in capsys.readouterr().out
    for collection, tree in started.items():
        for name, part in tree.items():
            want = (other if name == "backbone" else fresh)[collection][name]
            jax.tree.map(np.testing.assert_array_equal, part, want)
    save_file({"conv1.weight": np.zeros((3, 3), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMismatch, match=r"fits neither the model .* nor its backbone"):
        start_from(tmp_path / "other.safetensors", model)(fresh)


def test_predict_writes_three_pictures_of_the_photograph_s_size(run, photos, tmp_path, capsys):
    write_pair(tmp_path, "new", "tall", size=(70, 40))
    (tmp_path / "new" / "images" / "broken.jpg").write_bytes(b"not a picture")
    folders = tmp_path / "new" / "images", photos / "val" / "images"
    code = jaxseg_command("predict", run, *folders, "--out", tmp_path / "o")
    said = capsys.readouterr()
    assert code == 1, "a skipped file shows in the exit code"
    assert "segmented 5 of 6 images" in said.out
    assert said.err.count("skipped") == 1
    assert "broken.jpg" in said.err
    for kind in ("labels", "palette", "overlay"):
        folder = "new/images"  # of the two called images, the part of the path that tells them apart
        with Image.open(tmp_path / "o" / folder / f"tall_{kind}.png") as picture:
            assert picture.size == (40, 70)
            if kind != "overlay":
                assert set(np.unique(np.asarray(picture))) <= {0, 1}


def test_every_image_is_predicted_once_under_a_name_of_its_own(tmp_path):
    def names(*paths, out=tmp_path / "out"):
        return {str(p.relative_to(tmp_path)): str(n) for p, n in _image_files(paths, out)}

    for name in ("a/x.png", "b/x.png", "b/c/y.png", "d/x.jpg", "d/x.png", "d/z.png", "d/o/x_labels.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    a, b, d = (tmp_path / name for name in "abd")
    assert names(b) == {"b/x.png": "x", "b/c/y.png": "c/y"}
    assert names(a, b, a) == {"a/x.png": "a/x", "b/x.png": "b/x", "b/c/y.png": "b/c/y"}
    assert names(d, out=d / "o") == {"d/x.jpg": "x.jpg", "d/x.png": "x.png", "d/z.png": "z"}
    assert names(a / "x.png", a / "x.png", b / "x.png") == {"a/x.png": "a/x", "b/x.png": "b/x"}
    assert names(a / "x.png", a) == {"a/x.png": "x"}
    for name in ("e/a.jpg", "e/a.png", "e/a.jpg.png", "f/a/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path / "e") == {f"e/{name}": name for name in ("a.jpg", "a.png", "a.jpg.png")}
    assert len({*names(a / "x.png", b / "x.png", tmp_path / "f").values()}) == 3
    assert names(d, out=d) == {"d/x.jpg": "x.jpg", "d/x.png": "x.png", "d/z.png": "z"}
    with pytest.raises(DataError, match="no image in this folder"):
        names(d / "o", out=d / "o")


def test_a_picture_that_a_full_disk_cuts_short_is_named(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 3, (64, 64))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # stands for a full disk
    try:
        with pytest.raises(OSError, match=r"x_labels\.png cannot be written \(File too large\)"):
            _write_pictures(tmp_path / "x", np.zeros((64, 64, 3), np.uint8), pixels, voc_palette(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_predict_by_windows_scales_and_mirror_images_or_in_batches(run, photos, tmp_path):
    photo = photos / "val" / "images"
    (tmp_path / "in").mkdir()
    for i in (6, 7, 8):
        Image.open(photo / f"photo{i}.png").resize((60 + i, 90)).save(tmp_path / "in" / f"{i}.png")
    ways = {"one": (), "batch": ("--batch", 2), "window": ("--window", "32x48", "--stride", 0.5, "--batch", 2)}
    ways["scales"] = ("--window", "32x48", "--long-side", 64, "--scales", 0.5, 1.5, "--flip")
    ways["fit"] = ("--scales", 1, 1.5, "--flip")
    found = {}
    for way, words in ways.items():
        assert jaxseg_command("predict", run, tmp_path / "in", "--out", tmp_path / way, *words) == 0
        found[way] = [np.asarray(Image.open(tmp_path / way / f"{i}_labels.png")) for i in (6, 7, 8)]
    for one, batch in zip(found["one"], found["batch"], strict=True):
        assert (one == batch).mean() > 0.999  # a batch of two may round otherwise
    for way in ways:
        assert [x.shape for x in found[way]] == [(90, 66), (90, 67), (90, 68)], way
    assert any((a != b).any() for a, b in zip(found["window"], found["scales"], strict=True))


def test_predict_a_whole_image_in_shares(run, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (130, 45, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    words = ("predict", run, tmp_path / "wide.png", "--out", tmp_path / "o", "--shard", "spatial=8")
    assert jaxseg_command(*words) == 0
    labels = np.asarray(Image.open(tmp_path / "o" / "wide_labels.png"))
    model, variables = jaxseg.load_run(run)
    canvas = np.empty((160, 64, 3), np.uint8)  # multiples of 32, and of 8 in height
    canvas[:] = MEAN_COLOUR
    canvas[:130, :45] = pixels
    want = model.apply(variables, normalize(jnp.asarray(canvas[None]) / 255), train=False).logits[0].argmax(-1)
    assert (labels == want[:130, :45]).mean() > 0.999  # ties may round otherwise
    assert jaxseg_command(*words, "--flip") == 2
    assert "leave --window, --scales, --flip, --size out" in capsys.readouterr().err


def test_predict_by_name_with_weights(run, photos, tmp_path):
    words = ("predict", "unet_small", photos / "val" / "images" / "photo7.png", "--out", tmp_path)
    assert jaxseg_command(*words, "--weights", run) == 0
    assert (tmp_path / "photo7_overlay.png").exists()


def test_evaluate_is_the_same_on_one_device_set_or_another(run, photos, tmp_path):
    results = []
    for way in ("jit", "pmap"):
        out = tmp_path / f"{way}.json"
        words = ("evaluate", run, "--data", photos, "--parallel", way, "--batch", 8, "--out", out)
        assert jaxseg_command(*words) == 0
        results.append(json.loads(out.read_text()))
    assert results[0]["miou"] == pytest.approx(results[1]["miou"], abs=1e-6)
    want = json.loads((run / "results.json").read_text())["scores"]["miou"]
    assert results[0]["miou"] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "unett", "--out", "x"], 'did you mean "unet"?'),
        (["train", "unet_small", "--out", "x", "--size", "250x333"], "pad to (256, 336)"),
        (["train", "unet_small", "--out", "x", "--size", "big"], "such as 360x480"),
        (["train", "unet_small", "--out", "x", "--stepz", "3"], "--steps"),
        (["train", "unet_small", "--out", "x", "--shard", "model=4"], "data=N, fsdp=N, spatial=N and width=N"),
        (["train", "unet_small", "--out", "x", "--shard", "spatial=0"], "1 or more, got 'spatial=0' in 'spatial=0'"),
        (["train", "unet_small", "--out", "x", "--shard", "data=2,data=4"], "at most once and 1 or more, got 'data=4'"),
        (["train", "unet_small", "--out", "x", "--data", "nowhere"], "nowhere"),
        (["train", "unet_small", "--out", "x", "--loss", "dice+lovas"], 'did you mean "lovasz_softmax"?'),
        (["train", "unet_small", "--out", "x", "--loss", "dice", "--class-weights", "median"], "--loss is dice"),
        (["train", "unet_small", "--out", "x", "--loss", "focal", "--border-weights"], "--loss is focal"),
        (["train", "unet_small", "--out", "x", "--backbone-rate", "0"], "has no backbone"),
        (["train", "unet", "--out", "x", "--distributed", "10.0.0.1,2,0"], "is auto or ADDRESS:PORT,PROCESSES,THIS"),
        (["train", "unet", "--out", "x", "--distributed", ":1234,2,0"], "such as 10.0.0.1:1234,2,0; got :1234,2,0"),
        (["train", "unet_small", "--out", "x", "--weights", "w.npz"], "--weights w.npz: no such file or folder"),
        (["predict", "unet_small", "p.jpg", "--out", "x"], "no such file"),
        (["predict", "unet_small", "pyproject.toml", "--out", "x"], "add --weights"),
        (["train", "unet_small", "--out", "x", "--size", "36x32", "--shard", "spatial=8"], "such as 40x32"),
        (["predict", "nowhere", "pyproject.toml", "--out", "x"], "not the folder of a run"),
        (["train", "unet_small", "--out", "x", "--batch", "6"], "a batch of 6 does not divide over 8 devices"),
        (
            ["train", "unet_small", "--out", "x", "--accumulate", "3"],
            "does not split into --accumulate 3 microbatches; use",
        ),
        (
            ["train", "unet_small", "--out", "x", "--batch", "8", "--parallel", "pmap", "--accumulate", "2"],
            "--batch 8 does not split into --accumulate 2 microbatches on each of 8 devices; use 16",
        ),
        (
            ["train", "unet_small", "--out", "x", "--batch", "4", "--shard", "data=4,spatial=2", "--accumulate", "2"],
            "--batch 4 does not split into --accumulate 2 microbatches on each of 4 devices; use 8",
        ),
        (["train", "unet_small", "--out", "x", "--checkpoint-every", "0"], "--checkpoint-every is at least 1, got 0"),
        (["train", "unet_small", "--out", "x", "--steps", "-3"], "--steps is at least 1, got -3"),
        (["train", "unet_small", "--out", "x", "--accumulate", "0"], "--accumulate is at least 1, got 0"),
        (["train", "unet_small", "--out", "x", "--learning-rate", "0"], "--learning-rate is above 0, got 0"),
        (["train", "unet_small", "--out", "x", "--learning-rate", "nan"], "--learning-rate is above 0, got nan"),
        (["train", "unet_small", "--out", "x", "--ema", "1.5"], "--ema is a decay from 0 to below 1"),
        (["train", "unet_small", "--out", "x", "--seed", "99999999999999999999"], "--seed is from 0 to"),
        (["train", "unet_small", "--out", "x", "--validation-fraction", "2"], "--validation-fraction is a share"),
        (["trian"], "train"),
    ],
)
def test_mistakes_name_the_nearest_right_thing_and_write_nothing(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    assert jaxseg_command(*words) == 2
    said = capsys.readouterr()
    assert says in said.err + said.out
    assert [p.name for p in tmp_path.iterdir()] == ["pyproject.toml"]


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "RUN", "PHOTO", "--out", "FILE"),
        ("predict", "RUN", "PHOTO", "--out", "FILE/below"),
        ("predict", "maskrcnn_resnet50_fpn", "PHOTO", "--weights", "FILE", "--out", "FILE"),
        ("cluster", "PHOTO", "--out", "FILE/below"),
        ("convert", "unet_small", "RUN", "--out", "FILE"),
        ("convert", "unet_small", "FILE", "--out", "FILE"),
        ("evaluate", "RUN", "--data", "nowhere", "--out", "FILE/scores.json"),
        ("evaluate", "RUN", "--data", "nowhere", "--out", "FOLDER"),
        ("bench", "unet_small", "--out", "FOLDER"),
        ("compile", "unet_small", "--out", "FOLDER"),
        ("export", "RUN", "--out", "FOLDER"),
    ],
)
def test_an_output_that_cannot_be_written_is_said_before_weights_load(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)  # to read it is another error
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    places = {"RUN": "run", "PHOTO": "photo.png", "FILE": "file", "FOLDER": "run"}
    for name, place in places.items():
        words = tuple(word.replace(name, place) for word in words)
    assert jaxseg_command(*words) == 2
    said = capsys.readouterr().err
    assert "choose another output folder" in said or "is a folder; name a file in it" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "photo.png", "run"]


def test_bad_data_is_one_error_before_training(photos, tmp_path, capsys):
    bad = shutil.copytree(photos, tmp_path / "bad")
    (bad / "train" / "labels" / "photo1.png").unlink()
    (bad / "train" / "images" / "photo2.png").write_bytes(b"cut")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(bad / "train" / "labels" / "photo3.png")
    Image.fromarray(np.full((32, 48), 9, np.uint8)).save(bad / "train" / "labels" / "photo4.png")
    for words in (["check-data", bad], train_words(bad, tmp_path / "out")):
        assert jaxseg_command(*words) == 2
        said = capsys.readouterr().err
        for name in ("photo1", "photo2", "photo3", "photo4"):
            assert name in said, words
    assert not (tmp_path / "out").exists()


def test_check_data_tells_what_a_sound_folder_holds(photos, capsys):
    assert jaxseg_command("check-data", photos) == 0
    said = capsys.readouterr().out
    assert "6 images of 32x48, 2 classes" in said
    assert "50.00% of labelled pixels" in said


ONE_OF_EACH = {getattr(make, "func", make): name for name, make in reversed(jaxseg.MODELS.items())}.values()


@pytest.mark.parametrize("names", [("unet_small", "segnet_basic"), pytest.param(ONE_OF_EACH, marks=pytest.mark.slow)])
def test_models_lists_the_zoo(names, capsys, monkeypatch):
    zoo = {name: jaxseg.MODELS[name] for name in names}
    monkeypatch.setattr(inspect, "MODELS", zoo)
    assert jaxseg_command("models") == 0
    said = capsys.readouterr().out
    for name in zoo:
        assert name in said
    assert "Ronneberger" in said


def test_models_says_what_those_named_cost(capsys):
    assert jaxseg_command("models", "unet_valid", "unet_small", "--size", "600x600") == 0
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "unet_" in line}
    assert set(rows) == {"unet_valid", "unet_small"}
    assert "(572x572)" in rows["unet_valid"]
    assert jaxseg_command("models", "unet_smal") != 0
    assert "unet_small" in capsys.readouterr().err


def test_every_device_is_used(capsys, run):
    assert len(jax.devices()) == 8, "these tests run on eight devices: the batch of 8 above is one each"


def test_more_classes_than_a_label_map_holds_are_refused(photos, tmp_path, capsys):
    model = jaxseg.create_model("unet_small", 256)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    save_weights(tmp_path / "w.safetensors", model, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes))
    words = ("predict", "unet_small", photos / "val" / "images" / "photo7.png", "--weights", tmp_path / "w.safetensors")
    assert jaxseg_command(*words, "--out", tmp_path / "o") == 2
    assert "scores 256 classes, and a label map of 8 bits holds 255" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_predict_with_a_published_checkpoint(photos, tmp_path):
    name = "lraspp_mobilenet_v3_large"
    model = jaxseg.create_model(name, 3)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.2, x.shape).astype(np.float32), shapes)
    save_weights(tmp_path / "w.safetensors", model, variables)
    words = ("predict", name, photos / "val" / "images" / "photo7.png", "--weights", tmp_path / "w.safetensors")
    assert jaxseg_command(*words, "--classes", 3, "--size", "64x96", "--out", tmp_path / "o") == 0
    with Image.open(tmp_path / "o" / "photo7_labels.png") as labels:
        assert labels.size == (48, 32)
