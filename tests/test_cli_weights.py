"""What the command line makes of weights: the classes, fields and folders that they are of, and none that they lack."""

import functools
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import fill
from models.test_generation import NARROW, case
from PIL import Image
from safetensors.numpy import save_file
from test_cli import jaxseg_command

import jaxseg
from jaxseg.cli import kept, predict
from jaxseg.cli.trained import load_trained
from jaxseg.pretrained import fields_of, start_from
from jaxseg.weights import WeightsMismatch, convert, save_model, save_weights, to_published
from jaxseg.weights.folder import smp_model

UNET = {"_model_class": "Unet", "encoder_name": "resnet18", "decoder_channels": [8, 8, 4, 4, 4]}


def variables_of(model):
    images = jnp.zeros((1, 64, 64, 3))
    return fill(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


def written(path, name, classes, **fields):
    """Variables of the model, written to a file in its publisher's layout."""
    model = jaxseg.create_model(name, classes, **fields)
    variables = variables_of(model)
    save_weights(path, model, variables)
    return model, variables


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def hub_folder(folder, classes):
    config = UNET | {"classes": classes}
    model = jaxseg.create_model(**smp_model(config))
    variables = variables_of(model)
    folder.mkdir()
    save_weights(folder / "model.safetensors", model, variables)
    (folder / "config.json").write_text(json.dumps(config))
    return model, variables


def test_a_binary_model_predicts_both_labels_in_two_colours(tmp_path, photo):
    model, variables = hub_folder(tmp_path / "hub", 1)
    images = jax.ShapeDtypeStruct((1, 32, 64, 3), jnp.float32)
    assert jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images).logits.shape[-1] == 1
    assert jaxseg_command("predict", tmp_path / "hub", photo, "--size", "32x64", "--out", tmp_path / "o") == 0
    with Image.open(tmp_path / "o" / "photo_palette.png") as picture:
        labels, colours = np.asarray(picture), picture.getpalette()[:6]
    assert set(np.unique(labels)) == {0, 1}
    assert colours == [0, 0, 0, 128, 0, 0]


def test_the_file_says_how_many_classes_and_another_number_is_an_error(tmp_path, photo, capsys):
    name = "lraspp_mobilenet_v3_large"
    _, variables = written(tmp_path / "w.safetensors", name, 3)
    trained = load_trained(name, tmp_path / "w.safetensors", None, None)
    assert trained.model.num_classes == len(trained.palette) == 3
    assert_equal(trained.variables, variables)
    words = ("predict", name, photo, "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "o")
    assert jaxseg_command(*words, "--classes", 21) == 2
    assert "w.safetensors scores 3 classes, not 21; leave --classes out" in capsys.readouterr().err
    export = ("export", name, "--weights", tmp_path / "w.safetensors", "--out", tmp_path / "o", "--classes", 5)
    assert jaxseg_command(*export) == 2
    assert "scores 3 classes, not 5" in capsys.readouterr().err
    detector = np.zeros(91, np.float32)
    save_file({"roi_heads.box_predictor.cls_score.bias": detector}, tmp_path / "d.safetensors")
    words = ("predict", "maskrcnn_resnet50_fpn", photo, "--weights", tmp_path / "d.safetensors", "--out", tmp_path)
    assert jaxseg_command(*words, "--classes", 21) == 2
    assert "scores 91 classes, not 21" in capsys.readouterr().err
    convert(name, tmp_path / "w.safetensors", tmp_path / "seven", 7)
    with pytest.raises(ValueError, match=r"seven has no trained head .*scores 3 classes and the model 7"):
        load_trained(str(tmp_path / "seven"), None, None, None)
    convert(name, tmp_path / "seven", tmp_path / "again")
    with pytest.raises(ValueError, match=r"again has no trained head"):
        load_trained(str(tmp_path / "again"), None, None, None)
    assert jaxseg_command("convert", name, tmp_path / "w.safetensors", "--out", tmp_path / "o", "--classes", 0) == 2
    assert "--classes is at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("fcn_resnet50", {"aux": False}),
        ("deeplabv3_mobilenet_v3_large", {"aux": None}),
        ("deeplabv3_resnet50", {"aux": None, "align_corners": True, "dilate_first": True}),  # SMP's
    ],
)
def test_a_file_without_auxiliary_head_or_of_smp_is_used_as_it_is(tmp_path, name, fields):
    path = tmp_path / "w.safetensors"
    model, variables = written(path, name, 4, **fields)
    trained = load_trained(name, path, None, None)
    assert trained.model == model
    assert_equal(trained.variables, variables)
    assert fields_of(path, name) == fields
    with pytest.raises(
        WeightsMismatch, match=f"create it with aux={fields['aux']}"
    ):  # the way out that the error names
        start_from(path, jaxseg.create_model(name, 4))({})
    assert_equal(start_from(path, jaxseg.create_model(name, 4, **fields))(variables), variables)


def test_a_backbone_s_file_says_nothing_of_the_model(tmp_path):
    model = jaxseg.create_model("pspnet_resnet18", 3)
    state = {k.removeprefix("module."): v for k, v in to_published(model, variables_of(model)).items()}
    save_file({k: v for k, v in state.items() if k.startswith("layer")}, tmp_path / "resnet18.safetensors")
    assert fields_of(tmp_path / "resnet18.safetensors", "pspnet_resnet18") == {}


def test_training_starts_from_a_hub_folder_and_from_a_converted_one(tmp_path, capsys):
    _, variables = hub_folder(tmp_path / "hub", 3)
    convert("unet_resnet34", tmp_path / "hub", tmp_path / "converted")
    for folder in (tmp_path / "hub", tmp_path / "converted"):
        fields = fields_of(folder, "unet_resnet34")
        assert fields["encoder"] == "resnet18"
        assert json.loads(json.dumps(fields)) == fields  # what a run's config holds
        model = jaxseg.create_model("unet_resnet34", 2, **fields)
        fresh = jax.tree.map(lambda x: x + 1, variables_of(model))
        started = start_from(folder, model)(fresh)
        assert_equal(started["params"]["encoder"], variables["params"]["encoder"])
        assert_equal(started["batch_stats"], variables["batch_stats"])
        assert_equal(started["params"]["logits"], fresh["params"]["logits"])
        assert "scores 3 classes and the model 2" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no weights"):
        start_from(tmp_path / "empty", model)(fresh)


@pytest.mark.slow
def test_train_takes_a_converted_folder_with_the_fields_that_it_describes(tmp_path):
    hub_folder(tmp_path / "hub", 3)
    words = ("--size", "32x32", "--steps", 2, "--batch", 8, "--out", tmp_path / "run", "--weights", tmp_path / "hub")
    assert jaxseg_command("train", "unet_resnet34", "--data", small_folder(tmp_path / "data"), *words) == 0
    model, _ = jaxseg.load_run(tmp_path / "run")
    assert model.decoder_features == (8, 8, 4, 4, 4)


def small_folder(root):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, shape, most in (("images", (32, 32, 3), 256), ("labels", (32, 32), 2)):
            (root / split / kind).mkdir(parents=True)
            for i in range(8):
                Image.fromarray(rng.integers(0, most, shape, np.uint8)).save(root / split / kind / f"{i}.png")
    (root / "classes.txt").write_text("a\nb")
    return root


def test_weights_that_are_not_there_or_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"typo\.pth: no such file or folder"):
        load_trained("fcn_resnet50", tmp_path / "typo.pth", None, None)
    with pytest.raises(FileNotFoundError, match=r"is the folder of no run .* and no model"):
        load_trained("fcn_resnet50", tmp_path, None, None)


def test_the_other_publisher_s_pspnet_names_the_models_that_fit(tmp_path):
    written(tmp_path / "smp.safetensors", "pspnet_smp_resnet34", 3)
    with pytest.raises(WeightsMismatch, match="fits SMP's PSPNet, pspnet_smp_resnet34 or pspnet_smp_resnet50"):
        load_trained("pspnet_resnet50", tmp_path / "smp.safetensors", None, None)
    written(tmp_path / "semseg.safetensors", "pspnet_resnet18", 3)
    with pytest.raises(WeightsMismatch, match="fits semseg's PSPNet, pspnet_resnet18"):
        load_trained("pspnet_smp_resnet34", tmp_path / "semseg.safetensors", None, None)
    hub_folder(tmp_path / "hub", 2)
    with pytest.raises(WeightsMismatch, match="is of unet_resnet34, not pspnet_resnet50; name that model"):
        convert("pspnet_resnet50", tmp_path / "hub", tmp_path / "out")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The folder in which starts find what others have compiled."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))  # or the command line sets its own
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "jaxseg"
    jax.config.update("jax_compilation_cache_dir", before)


def prediction(out):
    with Image.open(out / "photo_labels.png") as picture:
        return np.asarray(picture)


def traces_nothing(monkeypatch):
    def trained(*_):
        raise AssertionError("a model was made")

    monkeypatch.setattr("jaxseg.cli.trained.load_trained", trained)


@pytest.mark.parametrize("form", ["wrapped", "folder"])
def test_a_second_start_finds_the_program_and_takes_the_weights_of_today(form, tmp_path, photo, programs, monkeypatch):
    name, place = "unet_resnet18", tmp_path / "w.safetensors"
    model = jaxseg.create_model(name, 3)
    state = to_published(model, variables_of(model))

    def write(scores):
        """Weights that find the class of the highest score everywhere."""
        last = {key: a for key, a in state.items() if key.startswith("segmentation_head")}
        head = {key: np.zeros_like(a) if a.ndim > 1 else np.float32(scores) for key, a in last.items()}
        before = "state.model." if form == "wrapped" else ""
        save_file({before + key: a for key, a in (state | head).items()}, place)

    write([0, 1, 0])
    words = ("predict", name, photo, "--weights", place, "--size", "32x64", "--out")
    if form == "folder":
        convert(name, place, tmp_path / "folder")
        words = ("predict", tmp_path / "folder", photo, "--size", "32x64", "--out")
        place = tmp_path / "folder" / "model.safetensors"
    assert jaxseg_command(*words, tmp_path / "first") == 0
    assert (prediction(tmp_path / "first") == 1).all()
    assert len([*programs.iterdir()]) == 1
    traces_nothing(monkeypatch)
    write([0, 1, 2])
    assert jaxseg_command(*words, tmp_path / "second") == 0
    assert (prediction(tmp_path / "second") == 2).all()
    for what in ("palette", "overlay"):
        with Image.open(tmp_path / "second" / f"photo_{what}.png") as picture:
            assert picture.size == (48, 32)


def test_a_start_with_other_words_or_a_broken_program_traces_anew(tmp_path, photo, programs, monkeypatch, capsys):
    written(tmp_path / "w.safetensors", "unet_resnet18", 3)
    words = ("predict", "unet_resnet18", photo, "--weights", tmp_path / "w.safetensors", "--size", "32", "--out")
    assert jaxseg_command(*words, tmp_path / "first") == 0
    first, (path,) = prediction(tmp_path / "first"), programs.iterdir()
    whole = path.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], whole[:-9] + b"x" + whole[-8:]):
        path.write_bytes(broken)
        assert jaxseg_command(*words, tmp_path / "again") == 0
        np.testing.assert_array_equal(prediction(tmp_path / "again"), first)
        assert path.read_bytes() != broken
    assert jaxseg_command(*words[:-1], "--long-side", 8, "--out", tmp_path / "others") == 2
    assert jaxseg_command(*words[:-1], "--stride", 0.5, "--out", tmp_path / "others") == 2
    assert "--stride is between windows: give --window HxW" in capsys.readouterr().err
    assert jaxseg_command(*words[:-1], "--window", 32, "--out", tmp_path / "others") == 2
    assert "--window says at which size the model sees an image: leave --size out" in capsys.readouterr().err
    traces_nothing(monkeypatch)
    assert jaxseg_command(*words, tmp_path / "again") == 0
    for others in (
        [*words[:-2], "64", "--out"],
        [*words[:-1], "--flip", "--out"],
        [*words[:-1], "--classes", 3, "--out"],
    ):
        with pytest.raises(AssertionError, match="a model was made"):
            jaxseg_command(*others, tmp_path / "others")


def test_what_is_kept_goes_by_all_that_a_program_comes_from(tmp_path, programs, monkeypatch):
    def name(size=8, dtype="d", **asked):
        return kept.question({"size": 8, **asked}, {"w": ((size,), dtype)})

    first = name()
    assert first == name()
    others = [name(size=9), name(dtype="f"), name(classes=3)]
    with jax.default_matmul_precision("highest"):
        others.append(name())
    monkeypatch.setenv("XLA_FLAGS", "--xla_some=1")
    others.append(name())
    monkeypatch.undo()
    monkeypatch.setattr("jaxseg.cli.kept._processor", lambda: "another")
    others.append(name())
    monkeypatch.undo()
    copied = shutil.copytree(pathlib.Path(jaxseg.__file__).parent, tmp_path / "jaxseg")
    monkeypatch.setattr("jaxseg.cli.kept.__file__", str(copied / "cli" / "kept.py"))
    assert name() == first
    with open(copied / "ops" / "conv.py", "a") as file:
        file.write("# changed")
    assert len({first, name(), *others}) == len(others) + 2


def test_the_oldest_programs_go_and_a_folder_that_cannot_be_written_stops_nobody(programs, monkeypatch, tmp_path):
    monkeypatch.setattr("jaxseg.cli.kept.MOST", 2)
    variables = {"params": {"w": jnp.ones(2)}}
    program = kept.compiled_for(lambda v, x: x.astype(jnp.float32) @ v["params"]["w"], variables, (1, 2))
    entries = {("params", "w"): ("weight", (0,))}
    for i, name in enumerate("abc"):
        kept.keep(name, program, variables, entries, {"place": i})
        os.utime(programs / name, (i, i))
    assert sorted(path.name for path in programs.iterdir()) == ["b", "c"]
    found = kept.find("c", lambda: {"weight": np.array([3.0, 4.0])})
    assert found.about == {"place": 2}
    np.testing.assert_array_equal(found.logits(np.array([[1, 2]], np.uint8)), [11])
    assert kept.find("a", dict) is None
    (tmp_path / "file").write_bytes(b"")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file"))
    kept.keep("d", program, variables, entries, {})
    assert kept.find("d", dict) is None
    jax.config.update("jax_compilation_cache_dir", None)
    kept.keep("e", program, variables, entries, {})
    assert kept.find("e", dict) is None


def test_weights_that_are_not_finite_are_said_once_and_a_cache_that_is_no_folder_is_jax_s_own(
    tmp_path, photo, programs, recwarn
):
    model, _ = written(tmp_path / "w.safetensors", "unet_resnet18", 3)
    state = {name: np.array(a) for name, a in to_published(model, variables_of(model)).items()}
    state["encoder.conv1.weight"][0] = np.nan
    np.savez(tmp_path / "w.npz", **state)
    words = ("predict", "unet_resnet18", photo, "--size", "32", "--out", tmp_path / "o", "--weights")
    for _ in ("cold", "warm"):
        recwarn.clear()
        assert jaxseg_command(*words, tmp_path / "w.npz") == 0
        assert [w.category for w in recwarn if "encoder.conv1.weight holds NaN" in str(w.message)] == [UserWarning]
    (tmp_path / "w.npz").write_bytes(b"PK")
    assert jaxseg_command(*words, tmp_path / "w.npz") == 2
    assert len([*programs.iterdir()]) == 1
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    assert kept.programs_folder() is None
    config = predict.Predict("unet_resnet18", (photo,), weights=tmp_path / "w.safetensors")
    assert predict._question(config, 1) is None


@pytest.mark.parametrize("words", [(), ("--shard", "spatial=1"), ("--window", "32x32")])
def test_predict_says_that_a_generator_segments_nothing(words, tmp_path, photo, capsys):
    _, variables = case("stylegan_generator", 8)
    save_model(tmp_path / "model", variables, "stylegan_generator", None, resolution=8, **NARROW)
    assert jaxseg_command("predict", tmp_path / "model", photo, "--out", tmp_path / "out", *words) == 2
    said = capsys.readouterr().err
    assert "model is of StyleGANGenerator, and predict is for models that segment or find objects" in said
    assert "jaxseg.load_model" in said
    assert "jaxseg stylize" in said


@pytest.mark.parametrize("name", ["stylegan_generator", "progan_discriminator", "adain_transfer"])
def test_train_says_where_what_scores_no_classes_is_trained(name, tmp_path, capsys):
    assert jaxseg_command("train", name, "--data", tmp_path, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert f"{name} scores no classes of pixels; experiments/stylegan_faces.py, progan_faces.py and" in said
