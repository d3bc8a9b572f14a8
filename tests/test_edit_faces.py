"""The attribute classifier, and strips of edited faces from a generator that never saw a label."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_experiments import EXPERIMENTS, load

from jaxseg import checkpoint
from jaxseg.data import pictures
from jaxseg.models import create_model

sys.path.insert(0, str(EXPERIMENTS))
face_classifier = load("face_classifier")
NAMES = ("female-noble", "female-warrior", "male-noble", "male-warrior")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Pictures whose colour is one attribute and whose brightness the other."""
    root, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir()
        colour = np.array([0.9, 0.2, 0.2] if "female" in name else [0.2, 0.2, 0.9]) * (1 if "noble" in name else 0.5)
        for i in range(24):
            pixels = np.clip(colour + rng.normal(0, 0.05, (8, 8, 3)), 0, 1)
            Image.fromarray(np.uint8(255 * pixels)).save(root / name / f"{i}.png")
    return root


def test_attributes_are_what_folders_names_say():
    attributes = face_classifier.attributes_of(NAMES)
    assert attributes.names == ("female", "male", "noble", "warrior")
    assert attributes.others(0) == [2, 3]
    assert attributes.others(3) == [0, 1]
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), jnp.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    female, warrior = p[:, 0] + p[:, 1], p[:, 1] + p[:, 3]
    odds = face_classifier.log_odds(logits, attributes)
    np.testing.assert_allclose(odds[:, 0], np.log(female / (1 - female)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(odds[:, 3], np.log(warrior / (1 - warrior)), rtol=1e-4, atol=1e-5)
    women = face_classifier.attributes_of(NAMES[:2])
    assert women.names == ("noble", "warrior")  # of what all have, the odds are infinite
    assert women.others(0) == []
    plain = face_classifier.attributes_of(("cat", "grey-dog"))
    assert plain.names == ("cat", "grey-dog")
    assert plain.others(0) == []


def test_the_classifier_learns_by_the_seam_and_is_read_again(faces, tmp_path):
    source = pictures(faces, 8)
    trained = face_classifier.train_classifier(source, tmp_path / "classifier", steps=60, batch=16)
    assert trained.accuracy > 0.9
    again = face_classifier.train_classifier(source, tmp_path / "classifier", steps=60, batch=16)
    images = jnp.float32(np.stack([source[i]["image"] for i in range(0, len(source), 8)])) / 127.5 - 1
    np.testing.assert_array_equal(trained.logits(images), again.logits(images))
    told = np.asarray(trained.logits(images)).argmax(1)
    assert np.mean(told == np.array(source.classes)[::8]) > 0.9


def save_run(path, kind, **fields):
    """A run of an untrained generator, as growth leaves it."""
    shape = {"resolution": 8, "base_features": 64, "max_features": 8}
    model = create_model(f"{kind}_generator", **shape, **fields)
    variables = model.init(jax.random.key(0), jnp.zeros((1, fields["latent_features"])), train=False)
    rest = {k: v for k, v in variables.items() if k != "params"}
    state = {"ema_params": {"generator": variables["params"]}, "model_state": {"generator": rest}}
    config = {"model": f"{kind}_generator", "num_classes": 0, "fields": fields, "stage": 1} | shape
    config |= {"batch": 8, "fade_images": 8}
    with checkpoint.open_checkpoints(path / "8" / "checkpoints") as manager:
        checkpoint.save(manager, 1, state, config)


def test_a_network_that_is_absent_is_said_before_a_classifier_is_trained(faces, tmp_path, monkeypatch):
    experiment = load("edit_faces")
    run = experiment.Opened(create_model("progan_generator", 0, resolution=8), {}, 1, {})
    monkeypatch.setattr(experiment, "open_generator", lambda path: run)
    config = experiment.Config(tmp_path, faces, tmp_path / "edits", space="z", vgg=tmp_path / "vgg.pth")
    monkeypatch.setattr(experiment, "train_classifier", lambda *a, **k: pytest.fail("a classifier is trained"))
    with pytest.raises(FileNotFoundError, match=r"vgg\.pth"):
        experiment.main(config)


@pytest.mark.parametrize("option", [{"steps": ()}, {"ascents": ()}, {"ascents": (0, -4)}])
def test_strips_without_columns_are_named_before_anything_is_read(option, tmp_path):
    experiment = load("edit_faces")
    with pytest.raises(SystemExit, match=r"--steps and --ascents are a column each or more, .* got"):
        experiment.main(experiment.Config(tmp_path / "run", tmp_path / "faces", tmp_path / "edits", **option))
    assert not (tmp_path / "edits").exists()


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "space"), [("stylegan", "w+"), ("progan", "z")])
def test_strips_of_edits(faces, tmp_path, kind, space):
    """The attribute rises along the SVM's normal and up the gradient, whose penalty holds the others to a fifth."""
    pytest.importorskip("sklearn")
    experiment = load("edit_faces")
    fields = {"latent_features": 8} | ({"w_features": 8, "mapping_layers": 2} if kind == "stylegan" else {})
    save_run(tmp_path / "run", kind, **fields)
    config = experiment.Config(
        tmp_path / "run",
        faces,
        tmp_path / "edits",
        space=space,
        samples=600,
        rows=2,
        projector_steps=20,
        classifier_steps=60,
    )
    results = experiment.main(config)
    assert json.loads((tmp_path / "edits" / "scores.json").read_text()) == results
    assert results["others"] == ["noble", "warrior"]
    for method in ("svm", "conditional", "gradient"):
        # an untrained generator's attributes are tangled: what is left of a direction may lead anywhere
        assert results[method]["attribute"] > 0 or method == "conditional"
        with Image.open(tmp_path / "edits" / f"{method}.png") as strip:
            columns = len(config.ascents if method == "gradient" else config.steps)
            assert strip.size == (columns * 74, 14 + 2 * (72 + 14))
    assert results["gradient"]["others"] < 0.2 * results["gradient"]["attribute"]
    assert set(results["projector"]) == ({"w", "w+"} if kind == "stylegan" else {"z"})
    assert (tmp_path / "edits" / "projection.png").exists()
    with pytest.raises(SystemExit, match=r"--attribute bald: .* has female, male, noble, warrior"):
        experiment.main(dataclasses.replace(config, attribute="bald"))
    if kind == "progan":
        with pytest.raises(SystemExit, match="progan_generator has no w"):
            experiment.main(dataclasses.replace(config, space="w"))
