"""`jaxseg stylize`: what it writes, and what it says to mistakes."""

import contextlib
import functools

import jax
import numpy as np
import pytest
from PIL import Image
from test_cli import jaxseg_command

import jaxseg
from jaxseg import checkpoint
from jaxseg.cli import stylize
from jaxseg.models import create_model
from jaxseg.models.adain_transfer import ENCODERS, vgg16_relu4_1
from jaxseg.runs import load_variables
from jaxseg.weights import load_adain_transfer

NARROW = functools.partial(vgg16_relu4_1, features=(3, 4, 4, 6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's checkpoint, a photograph, two paintings and two masks."""
    root = tmp_path_factory.mktemp("stylize")
    variables = load_adain_transfer(create_model("adain_transfer", vgg=NARROW))
    params = jax.tree.map(lambda x: np.full_like(x, 0.05), variables["params"])
    with checkpoint.open_checkpoints(root / "run" / "checkpoints") as manager:
        checkpoint.save(manager, 1, {"params": params}, {"model": "adain_transfer", "encoder": "narrow"})
    rng = np.random.default_rng(0)
    (root / "film").mkdir()
    for name, size in {"photo": (21, 30), "a": (17, 12), "b": (12, 12), "film/1": (16, 24), "film/2": (16, 24)}.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / f"{name}.png")
    Image.fromarray(np.uint8([[255, 0]])).save(root / "left.png")
    Image.fromarray(np.uint8([[0, 255]])).save(root / "right.png")
    return root


@pytest.fixture(autouse=True)
def narrow_encoder(monkeypatch):
    monkeypatch.setitem(ENCODERS, "narrow", NARROW)


def command(folder, *words, content="photo.png", styles=("a.png",)):
    paths = [folder / content, *(folder / style for style in styles)]
    return jaxseg_command("stylize", *paths, "--weights", folder / "run", "--out", folder / "out", *words)


def test_one_photograph(folder):
    assert command(folder, "--alpha", 0.8) == 0
    with Image.open(folder / "out" / "photo.png") as picture:
        assert picture.size == (30, 21)


def test_controls(folder):
    two = ("a.png", "b.png")
    assert command(folder, "--style-weights", 1, 3, "--preserve-color", styles=two) == 0
    assert command(folder, "--masks", folder / "left.png", folder / "right.png", styles=two) == 0


def test_style_weights_are_shares_whatever_their_size(folder):
    written = []
    for weights in ((1, 3), (1e39, 3e39)):  # float32 ends at 3e38
        assert command(folder, "--style-weights", *weights, styles=("a.png", "b.png")) == 0
        written.append((folder / "out" / "photo.png").read_bytes())
    assert written[0] == written[1]


def test_a_film_is_compiled_once(folder, monkeypatch, capsys):
    traces = []
    original = stylize.match_colors
    monkeypatch.setattr(stylize, "match_colors", lambda *a: (traces.append(1), original(*a))[1])
    assert command(folder, "--preserve-color", content="film") == 0
    assert (sorted(p.name for p in (folder / "out").glob("?.png")), len(traces)) == (["1.png", "2.png"], 1)
    assert "wrote 2 images" in capsys.readouterr().out


def test_a_frame_that_cannot_be_read_is_skipped_and_named(folder, tmp_path, capsys, monkeypatch):
    for name in ("1", "2"):
        (tmp_path / f"{name}.png").write_bytes((folder / "film" / "1.png").read_bytes())
    (tmp_path / "3.png").write_bytes(b"no picture")
    shown = []
    monkeypatch.setattr(stylize, "bar", lambda _: contextlib.nullcontext(lambda *at: shown.append(at)))
    assert command(folder, "--out", tmp_path / "out", content=tmp_path) == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1.png", "2.png"]
    assert shown == [(1, 3), (2, 3), (3, 3)]  # the bar counts it too, and comes to its end
    said = capsys.readouterr()
    assert "wrote 2 images" in said.out
    assert "3.png: is not an image" in said.err


def test_two_frames_that_would_be_one_file_are_named(folder, tmp_path, capsys):
    for name in ("a.jpg", "a.k.jpg", "a.png"):  # in the order of their names the two are not neighbours
        (tmp_path / name).write_bytes(b"")
    assert command(folder, content=tmp_path) == 2
    said = capsys.readouterr().err
    assert "a.jpg and " in said
    assert "a.png would both be written as a.png; rename one" in said


def animation(path, count=3):
    frames = [Image.new("RGB", (24, 16), (25 * i, 20, 250 - 25 * i)) for i in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)
    return frames


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_a_film(folder, tmp_path, capsys, suffix):
    frames = animation(tmp_path / f"film.{suffix}")
    words = ("--alpha", 0, "--out", tmp_path / "out")
    assert command(folder, *words, content=tmp_path / f"film.{suffix}") == 0
    assert "wrote 3 images" in capsys.readouterr().out
    for i, frame in enumerate(frames, 1):  # each is what the frame alone would be
        frame.save(tmp_path / "alone.png")
        assert command(folder, "--alpha", 0, "--out", tmp_path / "still", content=tmp_path / "alone.png") == 0
        ours, alone = (np.asarray(Image.open(tmp_path / n), int) for n in (f"out/film_{i}.png", "still/alone.png"))
        assert np.abs(ours - alone).max() <= (0 if suffix == "png" else 8)
    assert command(folder, *words, styles=("a.png", tmp_path / f"film.{suffix}")) == 2
    assert f"film.{suffix} is an animation of 3 frames, and a style is one picture" in capsys.readouterr().err


def test_animations_lie_in_folders_too(folder, tmp_path, capsys):
    animation(tmp_path / "clip.gif", 10)
    Image.new("RGB", (24, 16)).save(tmp_path / "still.gif")
    assert command(folder, "--out", tmp_path / "out", content=tmp_path) == 0
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == [*(f"clip_{i:02}.png" for i in range(1, 11)), "still.png"]
    Image.new("RGB", (24, 16)).save(tmp_path / "clip_03.jpg")
    assert command(folder, "--out", tmp_path / "out", content=tmp_path) == 2
    assert "clip.gif and" in (said := capsys.readouterr().err)
    assert "clip_03.jpg would both be written as clip_03.png; rename one" in said
    (tmp_path / "clip_03.jpg").unlink()
    assert command(folder, "--out", tmp_path, styles=(tmp_path / "still.gif",), content=tmp_path / "clip.gif") == 0
    assert command(folder, "--out", tmp_path, styles=(tmp_path / "clip_01.png",), content=tmp_path / "clip.gif") == 2
    assert "clip_01.png would be written over" in capsys.readouterr().err


def test_a_mask_of_another_shape_is_refused(folder, tmp_path, capsys):
    two = ("a.png", "b.png")  # the photograph is 21x30
    for size in ((21, 30), (210, 300), (7, 10), (14, 20), (5, 7), (100, 143)):
        Image.new("L", size[::-1], 255).save(tmp_path / "mask.png")
        assert command(folder, "--masks", tmp_path / "mask.png", tmp_path / "mask.png", styles=two) == 0
    for size in ((30, 21), (21, 33), (200, 320), (64, 64)):
        Image.new("L", size[::-1], 255).save(tmp_path / "mask.png")
        masks = ("--masks", folder / "left.png", tmp_path / "mask.png")
        assert command(folder, *masks, "--encoder", "none", styles=two) == 2  # before weights load
        said = capsys.readouterr().err
        assert f"mask.png is {size[0]}x{size[1]} and" in said
        assert "photo.png 21x30 (height x width): a mask of another shape would be stretched; crop or pad it" in said


def test_the_folder_that_save_model_wrote(folder, tmp_path, capsys):
    variables, _ = load_variables(folder / "run")
    jaxseg.save_model(tmp_path / "saved", variables, "adain_transfer", None, vgg="narrow")
    words = (folder / "photo.png", folder / "a.png", "--weights", tmp_path / "saved", "--out", tmp_path / "out")
    assert command(folder) == jaxseg_command("stylize", *words) == 0
    written = [(place / "photo.png").read_bytes() for place in (folder / "out", tmp_path / "out")]
    assert written[0] == written[1]
    assert jaxseg_command("stylize", *words, "--encoder", folder / "vgg.pth") == 2
    assert "is a folder with an encoder of its own; leave --encoder out" in capsys.readouterr().err
    assert jaxseg_command("convert", "adain_transfer", tmp_path / "saved", "--out", tmp_path / "again") == 0
    saved, again = (jaxseg.load_model(tmp_path / name) for name in ("saved", "again"))
    assert saved.model == again.model
    assert jax.tree.all(jax.tree.map(np.array_equal, saved.variables, again.variables))
    capsys.readouterr()
    for name in ("adain_transfer", "unet"):
        words = ("predict", name, folder / "photo.png", "--weights", tmp_path / "saved", "--out", tmp_path / "out")
        assert jaxseg_command(*words) == 2
        said = capsys.readouterr().err
        assert ("predict is for models that segment" if name != "unet" else "holds AdaINTransfer, not unet") in said
    for others in (("convert", "adain_transfer"), ("export",)):
        assert jaxseg_command(*others, folder / "run", "--out", tmp_path / "other") == 2
        assert f"run is of a style transfer: `jaxseg stylize --weights {folder / 'run'}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alpha", 1.5], "--alpha lies between 0 (content) and 1 (style), got 1.5"),
        (["--style-weights", 1, 2], "--style-weights takes one for each of the 1 styles, got 2"),
        (["--style-weights", 0], "not all zero"),
        (["--style-weights", "nan"], "--style-weights are finite, not negative"),
        (["--style-weights", "inf"], "--style-weights are finite, not negative"),
        (["--size", 5], "--size is a shorter side of at least 9 pixels, got 5"),
    ],
)
def test_mistakes(folder, capsys, words, said):
    assert command(folder, *words) == 2
    assert said in capsys.readouterr().err


def test_a_mask_that_is_black_is_named_but_the_first_which_has_the_rest(folder, capsys):
    shape = np.zeros((2, 2, 4), np.uint8)
    shape[0, :, 3] = 255
    Image.fromarray(shape).save(folder / "alpha.png")
    two = ("a.png", "b.png")
    assert command(folder, "--masks", folder / "left.png", folder / "alpha.png", styles=two) == 2
    assert "alpha.png is black, which leaves its style no region" in capsys.readouterr().err
    assert command(folder, "--masks", folder / "alpha.png", folder / "left.png", styles=two) == 0
    Image.fromarray(np.full((2, 2), 255, np.uint8)).save(folder / "all.png")
    assert command(folder, "--masks", folder / "alpha.png", folder / "all.png", styles=two) == 2
    assert "alpha.png is black and the others cover all, which leaves its style no region" in capsys.readouterr().err


def test_what_is_too_small_is_named(folder, capsys):
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(folder / "pixel.png")
    said = "pixel.png has (1, 1) pixels, and style transfer needs 9 or more a side; enlarge it, for all with --size"
    assert command(folder, styles=("pixel.png",)) == 2
    assert said in capsys.readouterr().err
    assert command(folder, content="pixel.png") == 2
    assert said in capsys.readouterr().err
    assert command(folder, "--size", 12, styles=("pixel.png",)) == 0


def test_what_is_read_is_not_written_over(folder, capsys):
    before = (folder / "film" / "2.png").read_bytes()
    for words in (["--out", folder / "film"], ["--out", folder / "film" / ".." / "film"]):
        assert command(folder, *words, content="film") == 2
        assert "1.png would be written over; give another --out" in capsys.readouterr().err
    assert command(folder, "--out", folder, content="film/1.png", styles=("a.png",)) == 0  # no input is 1.png there
    assert command(folder, "--out", folder, content="photo.png") == 2
    assert (folder / "film" / "2.png").read_bytes() == before


def test_an_output_that_cannot_be_written_is_said_before_weights_load(folder, capsys):
    words = (folder / "photo.png", folder / "a.png", "--weights", folder / "nothing", "--out", folder / "b.png")
    assert jaxseg_command("stylize", *words) == 2
    assert "b.png is a file, not a folder; choose another output folder" in capsys.readouterr().err


def test_weights_are_asked_for(folder, capsys):
    assert jaxseg_command("stylize", folder / "photo.png", folder / "a.png") == 2
    assert "no weights: add --weights" in capsys.readouterr().err
    assert jaxseg_command("stylize", folder / "photo.png", folder / "a.png", "--weights", folder / "nothing") == 2
    assert "nothing: no such file or folder" in capsys.readouterr().err
    (folder / "decoder.pth").write_bytes(b"")
    assert jaxseg_command("stylize", folder / "photo.png", folder / "a.png", "--weights", folder / "decoder.pth") == 2
    assert "add --encoder" in capsys.readouterr().err
