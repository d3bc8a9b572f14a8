"""VGG against a PyTorch transcription, by a golden file, and its published sizes."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import fill, image

from jaxseg.backbones import vgg
from jaxseg.backbones.vgg import VGG, VGGClassifier

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "vgg.npz"

# torchvision's counts with 1000 classes
COUNTS = {
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
}
IMAGES = jax.ShapeDtypeStruct((2, 45, 66, 3), jnp.float32)


def shapes(model, images=IMAGES):
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_torchvisions(name):
    variables = shapes(VGGClassifier(encoder=getattr(vgg, name)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[name]


@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn", "vgg19"])
def test_features_and_scores_are_the_references(name):
    narrow = functools.partial(getattr(vgg, name), features=(4, 8, 8, 12, 16))
    model = VGGClassifier(num_classes=9, encoder=narrow, fc_features=20)
    variables = fill(shapes(model))
    encoder = {collection: tree["encoder"] for collection, tree in variables.items()}

    @jax.jit
    def run(variables, encoder, images):
        scores = model.apply(variables, images, train=False)
        return scores, narrow().apply(encoder, images, train=False)

    scores, features = run(variables, encoder, image(2, 45, 66))
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(scores, golden[name], atol=1e-4)
        named = [key.split()[1] for key in golden if key.startswith(f"{name} ")]
        assert set(named) == {key for key in features if not key.startswith("stride")}
        for feature in named:
            np.testing.assert_allclose(features[feature][1, -1, :4], golden[f"{name} {feature}"], atol=1e-4)


def test_strides():
    model = VGG(depths=(1, 2, 2, 2, 2), with_indices=True)
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    features = jax.eval_shape(functools.partial(model.apply, train=False), shapes(model, images), images)
    for stride, name in {1: "relu1_1", 2: "relu2_2", 16: "relu5_2", 32: "pool5"}.items():
        assert features[f"stride{stride}"].shape[1:3] == (64 // stride, 96 // stride)
        assert features[f"stride{stride}"].shape == features[name].shape
    assert features["indices5"].shape == features["pool5"].shape
