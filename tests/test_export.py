"""Exported programs: open sizes, a process without jaxseg, ONNX."""

import functools
import os
import pathlib
import resource
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.named import fill, image
from jax import export
from models.test_adain_transfer import narrow as style_transfer
from models.test_detectors import compiled, filled, init_shapes, pictures, small
from models.test_generation import NARROW, case
from safetensors.numpy import save_file

import jaxseg
from jaxseg.backbones.mobilenet_v3 import mobilenet_v3_large
from jaxseg.backbones.resnet import resnet50
from jaxseg.backbones.vgg import vgg16, vgg16_bn
from jaxseg.cli import detect as cli_detect
from jaxseg.cli import export as cli_export
from jaxseg.cli import main
from jaxseg.cli.export import _example, _in_places_of, _worst
from jaxseg.cli.trained import load_trained
from jaxseg.export import export_onnx, export_stablehlo, forward, run_artifact
from jaxseg.ops.boxes import Proposals
from jaxseg.weights import save_model, save_weights, to_published

RESNET = functools.partial(resnet50, depths=(1, 1, 2, 2), features=(4, 8, 12, 16))
# the operations whose form goes by the size: transposed convolutions and crops, unpooling, resizing, adaptive pooling
MODELS = {
    "unet_small": {"features": (4, 6, 8, 10, 12)},
    "segnet_vgg16_bn": {"encoder": functools.partial(vgg16_bn, features=(4, 8, 8, 12, 16))},
    "lraspp_mobilenet_v3_large": {"backbone": functools.partial(mobilenet_v3_large, width=0.25)},
    "pspnet_resnet50": {"backbone": RESNET, "features": (24, 12)},
    "deeplab_largefov_vgg16": {"encoder": functools.partial(vgg16, features=(4, 8, 8, 12, 16)), "fc_features": 8},
}
SLOW = ("unet_small", "segnet_vgg16_bn", "lraspp_mobilenet_v3_large")  # a program is compiled anew for each size
ALONE = """
import sys, numpy, jax
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
numpy.save(sys.argv[3], program.call(numpy.load(sys.argv[2])))
assert not [name for name in sys.modules if name.startswith(("jaxseg", "flax"))]
"""


def named(name, size=(64, 64)):
    model = jaxseg.create_model(name, 5, **MODELS.get(name, {}))
    shape = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return model, fill(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), shape))


def close(ours, theirs):
    """Within 1e-4 of outputs scaled to order 1."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4 * min(1, np.std(theirs)))


@pytest.mark.parametrize("name", ["pspnet_resnet50", *(pytest.param(n, marks=pytest.mark.parity) for n in SLOW)])
def test_one_file_serves_every_batch_and_size(name, tmp_path):
    model, variables = named(name)
    program = export_stablehlo(model, variables)
    assert program.platforms == ("cpu", "cuda", "tpu")
    path = tmp_path / "model.stablehlo"
    path.write_bytes(program.serialize())
    for images in (image(1, 64, 96), image(3, 96, 32)):
        close(run_artifact(path, images), jax.jit(forward(model, variables))(images))


def test_a_file_runs_without_jaxseg(tmp_path):
    model, variables = named("unet_small")
    (tmp_path / "model.stablehlo").write_bytes(export_stablehlo(model, variables, size=(32, 48)).serialize())
    images = image(2, 32, 48)
    np.save(tmp_path / "in.npy", images)
    files = [str(tmp_path / f) for f in ("model.stablehlo", "in.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", ALONE, *files], check=True, cwd=tmp_path)
    close(np.load(tmp_path / "out.npy"), jax.jit(forward(model, variables))(images))


def test_a_size_that_a_model_fixes_is_asked_for():
    model, variables = named("unet_valid", (188, 188))
    with pytest.raises(ValueError, match=r"UNetValid does not trace with an open size .*give the size"):
        export_stablehlo(model, variables)
    assert export_stablehlo(model, variables, size=(188, 204)).in_avals[0].shape[1:] == (188, 204, 3)


def test_an_unknown_platform_is_named():
    model, variables = named("unet_small")
    with pytest.raises(ValueError, match="no platform gpu; there are cpu, cuda, tpu"):
        export_stablehlo(model, variables, platforms=("cpu", "gpu"))


def command(*words):
    with pytest.raises(SystemExit) as exit:
        main([str(word) for word in words])
    return exit.value.code


def test_the_command_exports_a_converted_checkpoint_and_runs_it(tmp_path, capsys):
    model, variables = named("unet_small")
    save_model(tmp_path / "model", variables, "unet_small", 5, **MODELS["unet_small"])
    path = tmp_path / "new" / "unet.stablehlo"
    assert command("export", tmp_path / "model", "--out", path, "--size", "32x48", "--platforms", "cpu") == 0
    assert "float32[n,32,48,3] -> (1, 32, 48, 5)" in capsys.readouterr().out
    images = image(3, 32, 48)
    close(run_artifact(path, images), jax.jit(forward(model, variables))(images))
    assert command("export", "unet_small", "--out", path) == 2
    assert "add --weights" in capsys.readouterr().err


def test_a_file_for_other_platforms_is_written_and_not_run(tmp_path, capsys):
    _, variables = named("unet_small")
    save_model(tmp_path / "model", variables, "unet_small", 5, **MODELS["unet_small"])
    words = ("export", tmp_path / "model", "--size", "32x48", "--out")
    assert command(*words, tmp_path / "tpu.stablehlo", "--platforms", "cuda", "tpu") == 0
    assert "not run: it is for cuda, tpu, and this is cpu" in capsys.readouterr().out
    assert export.deserialize(bytearray((tmp_path / "tpu.stablehlo").read_bytes())).platforms == ("cuda", "tpu")
    assert command(*words, tmp_path / "a.onnx", "--platforms", "tpu") == 2
    assert "an ONNX file has none" in capsys.readouterr().err
    assert command(*words, tmp_path / "model") == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err
    assert command(*words, tmp_path / "tpu.stablehlo" / "a") == 2
    assert "is a file, not a folder" in capsys.readouterr().err


def test_what_differs_from_the_model_is_not_left_behind(tmp_path, monkeypatch, capsys):
    _, variables = named("unet_small")
    save_model(tmp_path / "model", variables, "unet_small", 5, **MODELS["unet_small"])
    monkeypatch.setattr(cli_export, "run_artifact", lambda path, images: np.zeros((1, 32, 48, 5), np.float32))
    (tmp_path / "u.stablehlo").write_text("an older one")
    words = ("export", tmp_path / "model", "--size", "32x48", "--platforms", "cpu")
    assert command(*words, "--out", tmp_path / "u.stablehlo") == 2
    assert "nothing is written" in capsys.readouterr().err
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # stands for a full disk
    try:
        assert command(*words, "--out", tmp_path / "u.stablehlo") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "u.stablehlo cannot be written (File too large)" in capsys.readouterr().err
    assert (tmp_path / "u.stablehlo").read_text() == "an older one"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "u.stablehlo"}


def test_detections_of_nearly_the_same_score_come_in_either_order():
    boxes = np.array([[[0, 0, 8, 8], [1, 1, 9, 9], [4, 4, 6, 6], [0, 0, 0, 0]]], np.float32)
    scores, classes = np.array([[0.9, 0.5, 0.5, 0]], np.float32), np.array([[1, 2, 1, 0]], np.int32)
    ours = {"boxes": boxes, "classes": classes, "scores": scores, "valid": classes > 0}
    swapped = {name: array[:, [0, 2, 1, 3]] for name, array in ours.items()}
    assert _worst(swapped, ours) == 0
    for places in ([0, 1, 1, 3], [0, 1, 3, 3]):  # one twice, and one too few
        other = {name: array[:, places] for name, array in ours.items()}
        assert _worst(other, ours) > 0.1 < _worst(ours, other)
    assert _worst({**ours, "classes": np.array([[1, 2, 2, 0]])}, ours) > 0.1


class Foreign(nn.Module):
    """What no converter knows."""

    def __call__(self, images, *, train):
        return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(images.shape, images.dtype), images)


@pytest.mark.parity
def test_what_onnx_cannot_say_is_named():
    pytest.importorskip("jax2onnx", reason="installed apart: its requirements contradict ours")
    with pytest.raises(ValueError, match=r"cannot say Foreign in ONNX \(.*pure_callback.*\); export StableHLO"):
        export_onnx(Foreign(), {}, size=(4, 4))


@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_onnx_gives_the_models_outputs(name, tmp_path):
    pytest.importorskip("jax2onnx", reason="installed apart: its requirements contradict ours")
    model, variables = named(name)
    path = pathlib.Path(tmp_path) / "model.onnx"
    path.write_bytes(export_onnx(model, variables, size=(64, 96), batch=2))
    images = image(2, 64, 96)
    close(run_artifact(path, images), jax.jit(forward(model, variables))(images))


def test_a_style_transfer_is_one_program_for_all_sizes(tmp_path):
    model, variables = style_transfer()
    (tmp_path / "model.stablehlo").write_bytes(export_stablehlo(model, variables, platforms=("cpu",)).serialize())
    content, style = image(2, 64, 96), image(2, 64, 96)[:, ::-1]
    ours = jax.jit(forward(model, variables))(content, style)
    close(run_artifact(tmp_path / "model.stablehlo", content, style), ours)


@pytest.mark.parity
def test_onnx_stylizes_as_the_model_does(tmp_path):
    pytest.importorskip("jax2onnx", reason="installed apart: its requirements contradict ours")
    model, variables = style_transfer()
    path = pathlib.Path(tmp_path) / "model.onnx"
    path.write_bytes(export_onnx(model, variables, size=(64, 96)))
    content, style = image(1, 64, 96), image(1, 64, 96)[:, ::-1]
    close(run_artifact(path, content, style), jax.jit(forward(model, variables))(content, style))


def detector(name):
    """Small, and with several blocks of candidates to suppress; without proposals of its own, 24 of them."""
    if not hasattr(small(name), "propose"):
        model = small(name).clone(max_proposals=24, box_score_thresh=0.05)
        return model, fill(init_shapes(model))
    model, variables = filled(name)
    backbone = variables["params"]["backbone"]
    if "mobile" in name:  # whose features are hundreds, and with them the rounding of its boxes
        calm = {key: jax.tree.map(lambda x: 0.01 * x, part) for key, part in backbone.items() if key != "body"}
        variables = {**variables, "params": variables["params"] | {"backbone": backbone | calm}}
    return model.clone(rpn_pre_nms_top_n_test=300, rpn_post_nms_top_n_test=120), variables


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("maskrcnn_resnet50_fpn", 1),
        ("maskrcnn_resnet50_fpn", 2),
        ("maskrcnn_resnet50_fpn_v2", 2),
        ("maskrcnn_resnet50_c4", 2),
        ("fasterrcnn_mobilenet_v3_large_fpn", 2),
        ("fasterrcnn_vgg16", 2),
        ("fastrcnn_vgg16", 2),
        ("rcnn_vgg16", 2),
    ],
)
def test_onnx_detects_as_the_model_does(name, batch, tmp_path):
    pytest.importorskip("jax2onnx", reason="installed apart: its requirements contradict ours")
    onnx = pytest.importorskip("onnx")
    model, variables = detector(name)
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(model, variables, size=(64, 96), batch=batch))
    images, _, *proposals = _example(model, batch, (64, 96))
    # of others, two candidates of the same score to 1e-8 lie near each other, and rounding keeps one
    images = np.asarray(pictures(batch, 64, 96, 6))
    sizes = np.array([[64, 96], [40, 50]], np.int32)[-batch:]
    for boxes in proposals:
        boxes[-1, 5:] = 0  # padding
    found = run_artifact(path, images, sizes, *proposals)
    want = jax.tree.map(np.asarray, jax.jit(forward(model, variables))(images, sizes, *proposals))
    assert want["valid"].any(1).all()
    assert found.keys() == want.keys()
    found = _in_places_of(want, found)
    np.testing.assert_array_equal(found["valid"], want["valid"])
    np.testing.assert_array_equal(found["classes"], want["classes"])
    np.testing.assert_allclose(found["boxes"], want["boxes"], atol=1e-3)  # pixels
    np.testing.assert_allclose(found["scores"], want["scores"], atol=1e-4)
    np.testing.assert_allclose(found.get("masks", 0), want.get("masks", 0), atol=1e-4)
    if name.startswith("faster"):  # nothing of as many numbers as a box has bins and channels is written out
        stored = [x for x in onnx.load(path).graph.initializer if x.data_type == onnx.TensorProto.FLOAT]
        largest = max(x.nbytes for x in jax.tree.leaves(variables))
        assert max(x.ByteSize() for x in stored if len(x.dims) > 2) < 1.1 * largest
    thresholds = {name: 1.0 for name in ("rpn_nms_thresh", "box_nms_thresh") if hasattr(model, name)}
    kept = jax.jit(forward(model.clone(**thresholds), variables))(images, sizes, *proposals)
    assert np.abs(kept["boxes"] - want["boxes"]).max() > 1  # else there was nothing to suppress


# apart: jaxtyping's checks, which the tests have on, know no open `n` that broadcasts with itself
EXPORT = """
import pathlib, sys
from models.test_adain_transfer import narrow as style_transfer
from models.test_detectors import filled
from jaxseg.export import export_stablehlo
program = export_stablehlo(*filled("maskrcnn_resnet50_fpn"), size=(64, 96))
assert [aval.str_short() for aval in program.in_avals] == ["float32[n,64,96,3]", "int32[n,2]"]
pathlib.Path(sys.argv[1]).write_bytes(program.serialize())
"""
DETECTIONS = """
import sys, numpy, jax
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
numpy.savez(sys.argv[3], **program.call(*numpy.load(sys.argv[2]).values()))
assert not [name for name in sys.modules if name.startswith(("jaxseg", "flax"))]
"""


@pytest.mark.slow
def test_mask_rcnn_with_its_suppression_runs_without_jaxseg(tmp_path):
    _, variables = filled("maskrcnn_resnet50_fpn")
    here = pathlib.Path(__file__).parent
    paths = os.pathsep.join((str(here.parent), str(here)))
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", EXPORT, str(tmp_path / "mask.stablehlo")], check=True, env=environment)
    images = np.random.default_rng(0).standard_normal((2, 64, 96, 3), np.float32)
    sizes = np.array([[64, 96], [40, 50]], np.int32)
    np.savez(tmp_path / "in.npz", images, sizes)
    files = [str(tmp_path / f) for f in ("mask.stablehlo", "in.npz", "out.npz")]
    subprocess.run([sys.executable, "-c", DETECTIONS, *files], check=True, cwd=tmp_path)
    found, want = np.load(tmp_path / "out.npz"), compiled("maskrcnn_resnet50_fpn")(variables, images, sizes)
    assert want.valid.any(1).all()
    for (h, w), boxes, valid in zip(sizes, found["boxes"], found["valid"], strict=True):
        assert (boxes[valid] <= [w, h, w, h]).all()  # nothing is found in the padding
    np.testing.assert_array_equal(found["valid"], want.valid)
    np.testing.assert_array_equal(found["classes"], want.classes)
    np.testing.assert_allclose(found["boxes"], want.boxes, atol=1e-2)  # pixels
    np.testing.assert_allclose(found["scores"], want.scores, atol=1e-4)
    np.testing.assert_allclose(found["masks"], want.masks, atol=1e-4)


def test_a_detector_of_open_size_is_refused():
    with pytest.raises(ValueError, match=r"MaskRCNN does not trace with an open size .*give the size"):
        export_stablehlo(*filled("maskrcnn_resnet50_fpn"))


def test_the_command_exports_a_detector(tmp_path, monkeypatch, capsys):
    model, variables = filled("maskrcnn_resnet50_fpn")
    save_file(to_published(model, variables), tmp_path / "w.safetensors")
    monkeypatch.setattr(cli_detect, "create_model", lambda name, num_classes: model.clone(num_classes=num_classes))
    words = ("export", "maskrcnn_resnet50_fpn", "--weights", tmp_path / "w.safetensors", "--platforms", "cpu")
    words += ("--out", tmp_path / "mask.stablehlo")
    assert command(*words) == 2
    assert "give --size, a canvas such as 800x1344" in capsys.readouterr().err
    assert command(*words, "--size", "64x96", "--batch", 1) == 0
    assert "float32[1,64,96,3] int32[1,2] -> (1, 10, 4)" in capsys.readouterr().out


def test_the_command_exports_a_generator(tmp_path, capsys):
    model, variables = case("stylegan_generator", 16, 3)
    save_model(tmp_path / "model", variables, "stylegan_generator", 3, resolution=16, **NARROW)
    words = ("export", tmp_path / "model", "--out", tmp_path / "g.stablehlo", "--platforms", "cpu")
    assert command(*words) == 0
    said = capsys.readouterr().out
    assert "float32[n,512] int32[n] -> (1, 16, 16, 3)" in said
    assert "run on noise, float32[1,512] int32[1], it is within" in said
    assert command(*words, "--size", "32") == 2
    assert "makes or sees 16x16, not 32x32: leave --size out" in capsys.readouterr().err
    assert model.num_classes == 3


@pytest.mark.parametrize("publisher", [None, "jaxseg"])
def test_a_generators_file_says_its_resolution(publisher, tmp_path, monkeypatch):
    model, variables = case("stylegan_generator", 16, 3)
    save_weights(tmp_path / "g.safetensors", model, variables, publisher)
    fields = NARROW if publisher is None else NARROW | {"resolution": 16}
    constructor = functools.partial(jaxseg.MODELS["stylegan_generator"], **fields)
    monkeypatch.setitem(jaxseg.MODELS, "stylegan_generator", constructor)
    found = load_trained("stylegan_generator", tmp_path / "g.safetensors", None if publisher is None else 3, None)
    assert found.model == model
    assert jax.tree.all(jax.tree.map(np.array_equal, found.variables, variables))


def test_what_proposes_nothing_takes_proposals(tmp_path):
    model, variables = proposed_to()
    program = export_stablehlo(model, variables, size=(64, 96), batch=2, platforms=("cpu",))
    assert [a.str_short() for a in program.in_avals] == ["float32[2,64,96,3]", "int32[2,2]", "float32[2,24,4]"]
    (tmp_path / "fast.stablehlo").write_bytes(program.serialize())
    images, sizes, boxes = _example(model, 2, (64, 96))
    assert (sizes == [48, 96]).all()
    boxes[1, 5:] = 0  # padding
    found = run_artifact(tmp_path / "fast.stablehlo", images, sizes, boxes)
    valid = np.ones((2, 24), bool)
    valid[1, 5:] = False
    given = Proposals(boxes, valid.astype(np.float32), valid)
    want = jax.jit(functools.partial(model.apply, train=False))(variables, images, sizes, given)
    np.testing.assert_array_equal(found["valid"], want.valid)
    np.testing.assert_allclose(found["boxes"], want.boxes, atol=1e-2)
    assert found["valid"].any(1).all()
    assert (found["boxes"] <= [96, 48, 96, 48]).all()


def proposed_to():
    model = small("fastrcnn_vgg16").clone(max_proposals=24, box_score_thresh=0.05)
    return model, fill(init_shapes(model))


@pytest.mark.parametrize(("name", "batch"), [("stylegan_generator", None), ("progan_discriminator", 4)])
def test_generators_and_discriminators_are_exported(name, batch, tmp_path):
    """A discriminator looks at its batch in groups, and so for one size of it."""
    model, variables = case(name)
    (tmp_path / "model.stablehlo").write_bytes(export_stablehlo(model, variables, batch=batch).serialize())
    rng = np.random.default_rng(0)
    for n in (1, 3) if batch is None else (batch,):
        inputs = [
            rng.standard_normal(x.shape, np.float32)
            for x in model.inputs(jax.ShapeDtypeStruct((n, 16, 16, 3), jnp.float32))
        ]
        ours = jax.jit(forward(model, variables))(*inputs)
        for a, b in zip(
            jax.tree.leaves(run_artifact(tmp_path / "model.stablehlo", *inputs)), jax.tree.leaves(ours), strict=True
        ):
            assert len(a) == n
            close(a, b)
