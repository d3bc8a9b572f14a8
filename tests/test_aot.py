"""FLOPs by hand, collectives by text, and a sharded step compiled without data."""

import functools
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_detectors import small
from tiers import some_slow

import jaxseg
from jaxseg import aot, parallel
from jaxseg.cli import compile as cli_compile
from jaxseg.cli import main
from jaxseg.hlo import collectives, traffic
from jaxseg.ops.conv import conv as any_conv
from jaxseg.programs import training

RESULTS = pathlib.Path(__file__).parents[1] / "experiments" / "results"


def flops_of(f, *shapes):
    return aot.matmul_flops(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr)


def conv(x, kernel, **options):
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def test_flops_of_products_and_convolutions():
    assert flops_of(jnp.dot, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    valid = functools.partial(conv, window_strides=(1, 1), padding="VALID")
    assert flops_of(valid, (2, 6, 5, 4), (3, 3, 4, 8)) == 2 * 2 * (4 * 3) * 9 * 4 * 8
    grouped = functools.partial(valid, feature_group_count=4)
    assert flops_of(grouped, (2, 6, 5, 4), (3, 3, 1, 8)) == 2 * 2 * (4 * 3) * 9 * 1 * 8
    scanned = lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=10)[0]  # noqa: E731
    assert flops_of(scanned, (4, 4)) == 10 * 2 * 4**3
    mesh, rows = jax.make_mesh((4, 2), ("data", "spatial")), jax.P("data")
    mapped = jax.shard_map(
        jnp.dot, mesh=mesh, in_specs=(rows, jax.P()), out_specs=rows, axis_names={"data"}, check_vma=False
    )
    assert flops_of(mapped, (8, 5), (5, 7)) == 2 * 8 * 5 * 7


def test_zeros_of_padding_and_dilation_cost_nothing():
    same = functools.partial(conv, window_strides=(1, 1), padding="SAME")
    assert flops_of(same, (1, 4, 1, 1), (3, 1, 1, 1)) == 2 * (4 * 3 - 2)
    transposed = functools.partial(conv, window_strides=(1, 1), padding=((1, 1), (0, 0)), lhs_dilation=(2, 1))
    assert flops_of(transposed, (1, 3, 1, 1), (2, 1, 1, 1)) == 2 * 6  # each of 3 samples meets both taps


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradients_flops_are_those_that_xla_counts(stride):
    loss = lambda x, k: conv(x, k, window_strides=(stride, stride), padding="SAME").sum()  # noqa: E731
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 9, 8, 3), (3, 3, 3, 4))]
    gradient = jax.value_and_grad(loss, (0, 1))
    counted = aot.matmul_flops(jax.make_jaxpr(gradient)(*shapes).jaxpr)
    assert counted == pytest.approx(jax.jit(gradient).lower(*shapes).cost_analysis()["flops"], rel=0.02)


def test_collectives_are_counted_once_with_their_bytes():
    text = """
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%x), channel_id=1
  %ar = (f32[2]{0}, bf16[3]{0}) all-reduce(%y, %z), channel_id=2
  %cps = (bf16[4,16]{1,0}, bf16[4,16]{1,0}, u32[], u32[]) collective-permute-start(%p), channel_id=3
  %cpd = bf16[4,16]{1,0:T(8,128)(2,1)} collective-permute-done(%cps)
  %fusion = f32[8]{0} fusion(%all-reduce.1), kind=kLoop
"""
    assert collectives(text) == {"all-reduce": (2, 128 + 8 + 6), "collective-permute": (1, 128)}


def test_padding_copies_and_gathers_are_read_off_the_text():
    text = """HloModule step
%fused (a: f32[8]) -> f32[8] {
  %a = f32[8]{0:T(128)} parameter(0)
  ROOT %gather.1 = f32[8]{0:T(128)} gather(%a, %i), offset_dims={}
}

ENTRY %main (x: bf16[8,16,16,3]) -> (bf16[8,16,16,16]) {
  %x = bf16[8,16,16,3]{2,1,3,0:T(8,128)(2,1)} parameter(0)
  %copy.2 = bf16[8,16,16,3]{3,0,2,1:T(8,128)(2,1)} copy(%x), metadata={op_name="a copy(b)"}
  %fusion.1 = (bf16[8,16,16,16]{3,0,2,1:T(8,128)(2,1)}, f32[16]{0:T(128)}) fusion(%copy.2), kind=kLoop
  %get-tuple-element.3 = f32[16]{0:T(128)} get-tuple-element(%fusion.1), index=1
  %s = (f32[1024]{0}, f32[1024]{0:S(1)}, u32[]) copy-start(%get-tuple-element.3)
  %copy_fusion.4 = pred[100]{0:T(128)} fusion(%get-tuple-element.3), kind=kLoop
  ROOT %tuple = (bf16[8,16,16,16]{3,0,2,1:T(8,128)(2,1)}) tuple(%get-tuple-element.3)
}
"""
    tiles = 16 * 16 * 8 * 128 * 2  # of 3 or 16 channels in 128 lanes
    copied = tiles + 128
    assert traffic(text) == (
        2 * tiles + 128 * 4 + 128,
        2 * tiles - 16 * 16 * 8 * (3 + 16) * 2 + (128 - 16) * 4 + 28,
        copied,
        1,
    )


def test_float32_among_the_products_is_told():
    def mixed(x, y):
        return jnp.dot(x, y).sum() + jnp.dot(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)).sum()

    traced = jax.jit(mixed).trace(*(jax.ShapeDtypeStruct((16, 16), jnp.float32),) * 2)
    assert aot.program_cost(traced, traced.lower(), traced.lower().compile(), 1, "cpu").float32_share == 0.5


def test_the_roofline_is_the_slower_of_arithmetic_and_memory():
    cost = aot.Cost(0, 0, 0, 197e12, 819e9 / 2, 1.0, 0.0, 0.0, 0, 0, {})
    assert cost.roofline(aot.CHIPS["v5e"]) == 1.0
    assert cost._replace(bytes=2 * 819e9).roofline(aot.CHIPS["v5e"]) == 2.0


def test_flops_are_those_of_the_compiled_program_where_there_are_no_others():
    traced = jax.jit(jnp.dot).trace(*(jax.ShapeDtypeStruct((64, 64), jnp.float32),) * 2)
    compiled = traced.lower().compile()
    silent = types.SimpleNamespace(cost_analysis=lambda: None)  # as a TPU that is not here
    cost = aot.program_cost(traced, silent, compiled, 1, "cpu")
    assert cost.flops == pytest.approx(2 * 64**3, rel=0.05)
    assert cost.matmul_share == pytest.approx(1.0, rel=0.05)


def test_a_sharded_step_compiles_ahead_of_time():
    placement = parallel.over_mesh(parallel.make_mesh(data=4, spatial=2))
    model = jaxseg.create_model("unet_small", 5, features=(4, 6))
    train = aot.compile_train(model, placement, (16, 16), 8, devices=8, platform="cpu")
    apply = aot.compile_apply(model, placement, (16, 16), 8, devices=8, platform="cpu")
    parameters = sum(
        x.size
        for x in jax.tree.leaves(
            jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
        )
    )
    assert train.arguments >= 3 * 4 * parameters  # parameters and AdamW's two moments, none of them sharded
    assert 2.5 < train.flops / apply.flops < 3.5  # a backward pass costs two forward passes
    assert train.collectives["all-reduce"][1] >= 4 * parameters  # the gradients
    assert apply.collectives.get("collective-permute", (0, 0))[0] > 0  # the halos of the height's shards
    assert 0.5 < apply.matmul_share <= 1
    assert np.isfinite(train.roofline(aot.CHIPS["v5e"]))


def tiny_models():
    """One of each kind: semantic, with instances, a generator beside its discriminator, a style transfer."""
    narrow = {"base_features": 512, "max_features": 16, "resolution": 16}
    return {
        "unet": (jaxseg.create_model("unet_small", 5, features=(4, 6)), (16, 16)),
        "mask_rcnn": (small("maskrcnn_resnet50_fpn"), (64, 64)),
        "stylegan": (jaxseg.create_model("stylegan_generator", **narrow), (16, 16)),
        "progan": (jaxseg.create_model("progan_generator", **narrow), (16, 16)),
        "adain": (jaxseg.create_model("adain_transfer"), (32, 32)),
    }


@pytest.mark.parametrize("name", some_slow(tiny_models(), {"mask_rcnn", "stylegan"}))
def test_programs_lower_for_a_gpu_that_is_not_here(name):
    model, size = tiny_models()[name]
    apply = aot.lower_apply(model, size, 2, "cuda")
    train = aot.lower_train(model, size, 2, "cuda")
    assert apply.platform == train.platform == "cuda"
    assert train.operations > apply.operations > 50
    assert sum(train.convolutions.values()) > sum(apply.convolutions.values()) > 0
    assert set(train.convolutions) == {"f32"}


@pytest.mark.parametrize("name", ["fastrcnn_vgg16", "rcnn_vgg16"])
def test_detectors_without_proposals_of_their_own_train_on_given_ones(name):
    model = jaxseg.create_model(name, 5)
    fns, batch = training(model, (64, 64), 2)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(fns.init, key, batch)
    assert batch["proposals"].shape == (2, 2000, 4)
    assert {"loss_classifier", "loss_box_reg"} < set(jax.eval_shape(fns.update, state, batch, key)[1])


def test_a_gather_is_counted_once():
    shapes = jax.ShapeDtypeStruct((5,), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.int32)
    assert aot._lower(lambda x, i: x[i], shapes, "cuda").gathers == 1


def test_convolutions_left_in_float32_would_show():
    model = jaxseg.create_model("unet_small", 5, features=(4, 6), dtype=jnp.bfloat16)
    assert set(aot.lower_train(model, (16, 16), 2, "cuda").convolutions) == {"bf16"}


def test_a_discriminators_step_is_its_generators():
    model = jaxseg.create_model("progan_discriminator", resolution=16)
    with pytest.raises(ValueError, match="trained with its generator"):
        training(model, (16, 16), 2)


def test_a_zoo_is_compiled_a_model_at_a_time_and_goes_on(tmp_path, monkeypatch, capsys):
    models = {name: jaxseg.MODELS[name] for name in ("unet_small", "progan_discriminator", "unet_valid")}
    monkeypatch.setattr(cli_compile, "MODELS", models)
    lowered = []
    monkeypatch.setattr(cli_compile.aot, "lower_train", lambda *args: (lowered.append(args), aot.lower_apply(*args))[1])
    words = ["compile", "--all", "--lower", "cuda", "--size", "32x32", "--batch", "2", "--apply", "--train"]
    words += ["--out", str(tmp_path / "lowered.json")]
    for turn in range(2):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        assert len(lowered) == 2, "the discriminator has no step of its own, and the second time all is there"
        table = capsys.readouterr().out
        assert "| `unet_valid` | train | 2x572x572 | cuda |" in table, turn
    rows = json.loads((tmp_path / "lowered.json").read_text())["rows"]
    assert [(r["model"], r["program"]) for r in rows] == [
        *(("unet_small", what) for what in ("train", "apply")),
        ("progan_discriminator", "apply"),
        *(("unet_valid", what) for what in ("train", "apply")),
    ]
    assert (tmp_path / "lowered.md").read_text().strip() == table.strip()


@pytest.mark.parametrize("command", ["compile", "bench"])
@pytest.mark.parametrize("option", ["--batch", "--classes"])
@pytest.mark.parametrize("value", ["0", "-8"])
def test_no_images_and_no_classes_are_a_mistake(command, option, value, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "unet_small", "--size", "16x16", option, value])
    assert ended.value.code == 2
    assert f"{option} is at least 1, got {value}" in capsys.readouterr().err


def test_a_file_of_something_else_is_not_written_over(tmp_path, capsys):
    for text in ("{", "[]", '{"rows": 3}', '{"rows": [1]}', '{"rows": [{}]}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(SystemExit) as ended:
            main(["compile", "unet_small", "--lower", "cpu", "--size", "16x16", "--out", str(tmp_path / "other.json")])
        assert ended.value.code == 2
        assert "other.json holds no rows of `jaxseg compile`" in capsys.readouterr().err
        assert (tmp_path / "other.json").read_text() == text


def test_what_does_not_fit_is_tried_at_half_the_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_compile, "MODELS", {"unet_small": jaxseg.MODELS["unet_small"]})
    monkeypatch.setattr(cli_compile.parallel, "topology_devices", lambda name: jax.devices())
    cost = aot.Cost(1, 1, 10, 1.0, 1.0, 1.0, 0.0, 0.5, 0, 1, {"all-reduce": (1, 2)})
    tried = []

    def compile_train(model, placement, size, batch, *, devices):
        tried.append(batch)
        if batch > 32:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of 16G"
            )
        return cost._replace(peak=10**9 * batch)

    monkeypatch.setattr(cli_compile.aot, "compile_train", compile_train)
    with pytest.raises(SystemExit) as ended:
        main(["compile", "--all", "--size", "32x32", "--batch", "64", "--out", str(tmp_path / "tpu.json")])
    assert ended.value.code == 0
    assert tried == [64, 32, 16]
    assert [row["fits"] for row in json.loads((tmp_path / "tpu.json").read_text())["rows"]] == [False, False, True]
    assert "does not fit" in (tmp_path / "tpu.md").read_text()


def refusal(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["compile", "unet_small", "--batch", "8", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_words_that_mean_nothing_together_are_refused_before_a_program_is_compiled(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_compile.parallel, "topology_devices", lambda name: jax.devices())
    for words in (["--shard", "data=2"], ["--topology", "v4:2x2x1"], ["--quick"]):
        assert "--lower knows no devices" in refusal(capsys, "--lower", "cuda", *words)
    assert "use one such as 104x96" in refusal(capsys, "--size", "97x96", "--shard", "spatial=8")
    assert "is the file of figures" in refusal(capsys, "--lower", "cuda", "--out", str(tmp_path / "lowered.md"))
    (tmp_path / "file").touch()
    assert "is a file, not a folder" in refusal(capsys, "--lower", "cuda", "--out", str(tmp_path / "file" / "a.json"))


def test_rows_of_another_mesh_are_not_those_that_were_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_compile, "MODELS", {"unet_small": jaxseg.MODELS["unet_small"]})
    monkeypatch.setattr(cli_compile.parallel, "topology_devices", lambda name: jax.devices())
    cost = aot.Cost(1, 1, 10, 1.0, 1.0, 1.0, 0.0, 0.5, 0, 1, {})
    compiled = []
    monkeypatch.setattr(cli_compile.aot, "compile_train", lambda *args, **options: compiled.append(args) or cost)
    meshes = ["spatial=2", "data=4,spatial=2", "spatial=2,data=4", "", "data=8"]  # two meshes in all
    for number, shard in zip([1, 1, 1, 2, 2], meshes, strict=True):
        words = ["--size", "32x32", "--batch", "8", "--shard", shard, "--out", str(tmp_path / "tpu.json")]
        with pytest.raises(SystemExit):
            main(["compile", "--all", *words])
        assert len(compiled) == number, shard
    names = [row["mesh"] for row in json.loads((tmp_path / "tpu.json").read_text())["rows"]]
    assert names == ["jit data=4 spatial=2", "jit data=8"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v5e:2x4", {}),
        ("v5e:1x1", {"chips_per_host_bounds": [1, 1, 1]}),
        ("v4:2x2x1", {"chip_config_name": "megacore"}),
        ("v5e", {}),
    ],
)
def test_a_topology_is_of_whole_chips_and_may_be_a_part_of_a_host(name, options, monkeypatch):
    asked = []
    none = types.SimpleNamespace(devices=[])
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", lambda **words: asked.append(words) or none)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    parallel.topology_devices(name)
    assert asked == [{"platform": "tpu", "topology_name": name, **options}]


def test_a_quick_compilation_is_another_row_and_leaves_the_effort_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_compile.parallel, "topology_devices", lambda name: jax.devices())
    cost = aot.Cost(1, 1, 10, 1.0, 1.0, 1.0, 0.0, 0.5, 0, 1, {})
    efforts = []

    def compile_train(*args, **options):
        efforts.append(jax.config.jax_optimization_level)
        return cost

    monkeypatch.setattr(cli_compile.aot, "compile_train", compile_train)
    for words in ([], ["--quick"], []):
        with pytest.raises(SystemExit):
            main(["compile", "unet_small", "--batch", "8", "--out", str(tmp_path / "tpu.json"), *words])
    assert efforts == ["UNKNOWN", "O0", "UNKNOWN"]
    rows = json.loads((tmp_path / "tpu.json").read_text())["rows"]
    assert [row["quick"] for row in rows] == [False, True]
    assert "train, quick" in (tmp_path / "tpu.md").read_text()


def test_rows_of_an_older_file_are_shown_without_what_they_lack():
    rows = json.loads((RESULTS / "tpu_v5e_2x4.json").read_text())["rows"]
    whole = cli_compile.compile_markdown(rows)
    assert whole == (RESULTS / "tpu_v5e_2x4.md").read_text()
    older = [
        {k: v for k, v in row.items() if k not in ("padding", "copied", "indexed", "float32_share")} for row in rows
    ]
    assert cli_compile.compile_markdown(older).count("\n") == whole.count("\n")


def test_the_form_of_a_cpu_is_not_counted_as_float32():
    """Of half-precision operands, whose tiles a CPU adds up in float32."""
    x, kernel = jnp.zeros((1, 32, 32, 256), jnp.bfloat16), jnp.zeros((3, 3, 256, 256), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda x, k: any_conv(x, k, (1, 1), ((1, 1), (1, 1))))(x, kernel).jaxpr
    assert aot.matmul_flops(jaxpr) == pytest.approx(2 * 32**2 * 9 * 256**2, rel=0.1)
    assert aot.matmul_flops(jaxpr, narrowest=4) == 0
    wide = jax.make_jaxpr(lambda x, k: any_conv(x, k, (1, 1), ((1, 1), (1, 1))))(
        x.astype(jnp.float32), kernel.astype(jnp.float32)
    ).jaxpr
    assert aot.matmul_flops(wide, narrowest=4) > 0


def test_of_forms_by_platform_one_is_counted():
    def product(n):
        return lambda x: (jnp.zeros((n, 8)) @ x).sum(0)

    def f(x):
        first = jax.lax.platform_dependent(x, cpu=product(1), tpu=product(2), default=product(4))
        return first, jax.lax.platform_dependent(x, cpu=product(8), cuda=product(16))  # none for a TPU

    jaxpr = jax.make_jaxpr(f)(jnp.zeros((8, 8))).jaxpr
    rows = {platform: aot.matmul_flops(jaxpr, platform=platform) / 128 for platform in ("cpu", "tpu", "cuda", None)}
    assert rows == {"cpu": 1 + 8, "tpu": 2 + 16, "cuda": 4 + 16, None: 4 + 16}
