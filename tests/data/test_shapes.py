"""The shapes world is the same everywhere, agrees with itself, and is prepared whole or not at all."""

import hashlib
import itertools
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxseg.data import DataError, ShapesObjects, check_data, prepare_shapes, shapes, train_batches
from jaxseg.data.scenes import CLASS_NAMES, draw
from jaxseg.data.shapes_builder import Shapes
from jaxseg.data.shapes_tfds import default_data_dir

# prepares 6 + 3 pictures, as the fixture does; `before` runs first
PREPARE = """
import sys
from jaxseg.data import shapes_tfds
shapes_tfds._SPLITS = {{"train": (0, {train}), "validation": (1, 3)}}
print("ready", flush=True)
sys.stdin.readline()
shapes_tfds.prepare_shapes(sys.argv[1])
"""


def start(data_dir, train=6):
    code = PREPARE.format(train=train)
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    return process


def test_pictures_are_these_bytes_on_every_machine():
    digest = hashlib.sha256()
    for index in range(4):
        scene = draw(0, index, (96, 128))
        digest.update(scene.image.tobytes())
        digest.update(scene.instances.astype("<i4").tobytes())
        digest.update(scene.label.astype("<i4").tobytes())
    assert digest.hexdigest() == "b45ecbbcf48b9f2b7e7045f93b6620078a602a8f497eff921ece408409e1d82e"


def test_pictures_differ_by_seed_and_index():
    images = [draw(seed, index, (32, 32)).image.tobytes() for seed in (0, 1) for index in (0, 1)]
    assert len(set(images)) == 4


def test_truth_agrees_with_itself():
    seen = np.zeros(len(CLASS_NAMES), bool)
    hidden = 0
    for index in range(40):
        scene = draw(3, index, (64, 80))
        ids = np.unique(scene.instances[scene.instances > 0])
        np.testing.assert_array_equal(ids, np.arange(1, len(scene.classes) + 1))
        np.testing.assert_array_equal((scene.instances > 0), scene.label > 0)
        for k, (c, box) in enumerate(zip(scene.classes, scene.boxes, strict=True), start=1):
            at = scene.instances == k
            assert (scene.label[at] == c).all()
            x0, y0, x1, y1 = box.astype(int)
            assert at[y0:y1, x0:x1].sum() == at.sum()
            assert at[y0].any()
            assert at[y1 - 1].any()
            assert at[:, x0].any()
            assert at[:, x1 - 1].any()
        np.testing.assert_array_equal(np.flatnonzero(scene.class_vector), np.unique(scene.label))
        seen |= scene.class_vector > 0
        hidden += len(scene.classes) > 1
    assert seen.all()
    assert hidden > 30


def test_colour_does_not_give_the_class_away():
    means = [[] for _ in CLASS_NAMES]
    for index in range(80):
        scene = draw(5, index, (48, 48))
        for c in np.unique(scene.classes):
            means[c].append(scene.image[scene.label == c].mean(0))
    centres = np.array([np.mean(m, 0) for m in means[1:]])
    within = np.mean([np.std(m, 0).mean() for m in means[1:]])
    assert np.ptp(centres, axis=0).max() < 1.2 * within


def test_source_holds_what_draw_drew(tiny_shapes):
    source = shapes("train", data_dir=tiny_shapes)
    assert (len(source), source.num_classes, source.palette.shape) == (6, 7, (7, 3))
    for index in (0, 5):
        scene, example = draw(0, index), source[index]
        for key in ("image", "label", "instances", "class_vector"):
            np.testing.assert_array_equal(example[key], getattr(scene, key))
            assert example[key].dtype == getattr(scene, key).dtype
    np.testing.assert_array_equal(shapes("val", data_dir=tiny_shapes)[2]["image"], draw(1, 2).image)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[3]["label"], source[3]["label"])
    assert source.name(3) == "shapes/train/3"
    assert check_data(source).images == 6
    with pytest.raises(DataError, match="no split 'test'; there is train, validation"):
        shapes("test", data_dir=tiny_shapes)


def test_shapes_are_objects(tiny_shapes):
    source = ShapesObjects(shapes("train", data_dir=tiny_shapes).home, "train")
    for index in (0, 5):
        scene, example = draw(0, index), source[index]
        for key in ("image", "instances", "boxes", "classes"):
            np.testing.assert_array_equal(example[key], getattr(scene, key))


def test_source_feeds_batches(tiny_shapes):
    source = shapes("train", data_dir=tiny_shapes)
    batches = train_batches(source, (64, 64), 4, seed=0)
    for batch in itertools.islice(batches, 3):
        assert batch["instances"].shape == (4, 64, 64)
        assert batch["class_vector"].shape == (4, 7)
    batches.close()


def test_data_dir_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXSEG_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "jaxseg"
    monkeypatch.setenv("JAXSEG_DATA_DIR", str(tmp_path / "mine"))
    assert default_data_dir() == tmp_path / "mine"


def test_two_at_once_and_one_killed(tmp_path, monkeypatch):
    both, killed = tmp_path / "both", tmp_path / "killed"
    processes = [start(both), start(both), start(killed, train=2000)]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    deadline = time.monotonic() + 60
    while not list(killed.glob(".preparing-*/shapes/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[2].kill()
    assert [process.wait(60) for process in processes[:2]] == [0, 0]
    for process in processes:
        process.communicate()
    assert len(shapes("train", data_dir=both)) == 6
    assert not list(both.glob(".preparing-*"))

    (left,) = killed.glob(".preparing-*")
    assert not (killed / "shapes").exists()
    os.utime(left, (0, 0))  # as if long ago
    monkeypatch.setattr("jaxseg.data.shapes_tfds._SPLITS", {"train": (0, 4), "validation": (1, 2)})
    seen = []
    home = prepare_shapes(killed, progress=lambda *at: seen.append(at))
    assert home == killed / "shapes" / str(Shapes.VERSION)
    assert seen == [(i, 6) for i in range(1, 7)]
    assert len(shapes("train", data_dir=killed)) == 4
    assert not left.exists()
