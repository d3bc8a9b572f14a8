"""Detectors that start from ImageNet's weights of their body, and from another number of classes."""

import functools

import jax
import numpy as np
import pytest
from golden.named import fill
from models.test_detectors import C4, RESNET, init_shapes, small
from safetensors.numpy import save_file

from jaxseg.backbones.resnet import ResNet
from jaxseg.backbones.vgg import VGGClassifier, vgg16
from jaxseg.pretrained import start_from
from jaxseg.weights import to_published


def zeros(model):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), init_shapes(model))


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_c4"])
def test_the_body_of_a_detector_takes_imagenets_resnet(name, tmp_path, capsys):
    """The norms, frozen in the detector, too; C4 leaves the fifth stage out, which it has elsewhere."""
    whole = functools.partial(RESNET, depths=(1, 1, 1, 1)) if "fpn" in name else None
    fields = {"depths": (1, 1, 1, 1), "features": (4, 4, 6, 8), "stem_features": 4}
    classifier = whole() if whole else ResNet(**fields)
    trained = fill(init_shapes(classifier))
    state = to_published(classifier, trained) | {"fc.weight": np.zeros((10, 32), np.float32)}
    save_file(state, tmp_path / "resnet.safetensors")
    model = small(name)
    started = start_from(tmp_path / "resnet.safetensors", model)(zeros(model))
    assert "started from the backbone" in capsys.readouterr().out
    body = started["params"]["backbone"]["body"]
    stages = 4 if "fpn" in name else len(C4.keywords["depths"])
    assert {k for k in body if k.startswith("layer")} == {f"layer{i}_0" for i in range(1, stages + 1)}
    for path, x in jax.tree_util.tree_leaves_with_path(body):
        theirs = functools.reduce(lambda tree, k: tree[k.key], path, trained["params"])
        np.testing.assert_array_equal(x, theirs, err_msg=str(path))
    norms = started["batch_stats"]["backbone"]["body"]["layer2_0"]["bn1"]
    np.testing.assert_array_equal(norms["scale"], trained["params"]["layer2_0"]["bn1"]["scale"])
    np.testing.assert_array_equal(norms["var"], trained["batch_stats"]["layer2_0"]["bn1"]["var"])
    assert not started["params"]["rpn"]["cls_logits"]["kernel"].any()


@pytest.mark.parametrize("name", ["rcnn_vgg16", "fastrcnn_vgg16", "fasterrcnn_vgg16"])
def test_vgg_gives_convolutions_and_both_dense_layers(name, tmp_path):
    classifier = VGGClassifier(7, functools.partial(vgg16, features=(4, 4, 6, 8, 8)), 24)
    trained = fill(init_shapes(classifier))
    save_file(to_published(classifier, trained), tmp_path / "vgg16.safetensors")
    model = small(name)
    params = start_from(tmp_path / "vgg16.safetensors", model)(zeros(model))["params"]
    np.testing.assert_array_equal(
        params["backbone"]["body"]["conv3_2"]["kernel"], trained["params"]["encoder"]["conv3_2"]["kernel"]
    )
    head = params["backbone" if name.startswith("rcnn") else "box_head"]
    pool5 = np.random.default_rng(0).standard_normal((2, 7, 7, 8)).astype(np.float32)
    theirs = pool5.reshape(2, -1) @ trained["params"]["fc6"]["kernel"]  # the classifier flattens channels last
    ours = pool5.transpose(0, 3, 1, 2).reshape(2, -1) @ head["fc6"]["kernel"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(head["fc7"]["kernel"], trained["params"]["fc7"]["kernel"])


def test_another_number_of_classes_leaves_the_predictors_as_they_were(tmp_path, capsys):
    model = small("maskrcnn_resnet50_fpn")
    trained = fill(init_shapes(model))
    save_file(to_published(model, trained), tmp_path / "w.safetensors")
    other = model.clone(num_classes=5)
    started = start_from(tmp_path / "w.safetensors", other)(zeros(other))
    said = capsys.readouterr().out
    assert "scores 3 classes and the model 5" in said
    left = ("box_predictor", "mask_predictor/mask_fcn_logits")
    for path, x in jax.tree_util.tree_leaves_with_path(started):
        name = "/".join(k.key for k in path[1:])
        was = functools.reduce(lambda tree, k: tree[k.key], path, trained)
        if name.startswith(left):
            assert not np.asarray(x).any(), name
        else:
            np.testing.assert_array_equal(x, was, err_msg=name)
