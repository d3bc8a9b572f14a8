"""What is measured is what runs; what is called a change is one."""

import copy
import importlib.util
import json
import pathlib
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import bench
from jaxseg.bench import Programs
from jaxseg.bench.measure import alternate
from jaxseg.cli import main

TINY = bench.Setting(size=(32, 32), batch=2, classes=3, rounds=3, threads=1)


def command(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in words])
    return ended.value.code


def times(median, spread=1.0, n=9):
    """Times whose median and half interquartile range these are."""
    each = [median + spread * 2 * (i - (n - 1) / 2) / (n + 1) * 2 for i in range(n)]
    low, _, high = statistics.quantiles(each, n=4)
    assert (high - low) / 2 == pytest.approx(spread)
    return {"ms": median, "spread_ms": spread, "each_ms": each}


def row(ours, peer=None, **changed):
    taken = {"jaxseg": ours} | ({} if peer is None else {"torch eager": peer})
    ratio = {} if peer is None else {"torch eager": ours["ms"] / peer["ms"]}
    fixed = {"model": "unet", "task": "forward", "size": [128, 128], "batch": 4, "dtype": "float32", "threads": 1}
    fixed |= {"clock": "cpu", "device": "cpu", "torch": "2.13", "commit": "a"}
    fixed |= {"peak_bytes": {"jaxseg": 10**8}, "compile_s": {"jaxseg": 10.0}}
    return fixed | {"times": taken, "ratio": ratio} | changed


@pytest.mark.parametrize(("median", "news"), [(100.5, False), (104.0, True), (90.0, True)])
def test_a_change_beyond_noise_is_told_from_one_within(median, news):
    (change, *_) = bench.compare([row(times(100.0))], [row(times(median))]).changes
    assert change.beyond_noise == news
    assert change.change == pytest.approx(median / 100 - 1)


def test_noisy_times_hide_a_change():
    (change, *_) = bench.compare([row(times(100.0, spread=20.0))], [row(times(110.0, spread=20.0))]).changes
    assert not change.beyond_noise


def test_a_slower_machine_is_not_a_slower_program():
    before, after = row(times(100.0), times(200.0)), row(times(150.0), times(300.0))
    comparison = bench.compare([before], [after])
    assert not comparison.worse
    after = row(times(180.0), times(300.0))
    (worse,) = bench.compare([before], [after]).worse
    assert worse.change == pytest.approx(0.2)


def test_times_that_were_taken_once_have_the_noise_of_single_ones():
    once = {"ms": 100.0, "spread_ms": 0.0, "each_ms": [100.0]}
    for median, news in ((120.0, False), (140.0, True)):
        (change, *_) = bench.compare([row(once)], [row({**once, "ms": median, "each_ms": [median]})]).changes
        assert change.beyond_noise == news


def test_rows_of_other_classes_are_not_compared():
    other = row(times(200.0), classes=91)
    comparison = bench.compare([row(times(100.0)), other], [row(times(100.0), classes=11), other])
    assert len(comparison.changes) == 6
    assert not comparison.worse
    with pytest.raises(ValueError, match="no row in common"):
        bench.compare([row(times(100.0))], [other])


def test_a_peer_of_another_version_cancels_nothing():
    before = row(times(100.0), times(200.0), torchvision="0.27")
    after = row(times(150.0), times(300.0), torchvision="0.28")
    assert [c.change for c in bench.compare([before], [after]).worse] == [pytest.approx(0.5)]


def test_memory_compile_time_and_facts_are_compared_too():
    after = row(times(100.0), peak_bytes={"jaxseg": 2 * 10**8}, compile_s={"jaxseg": 12.0}, commit="b")
    comparison = bench.compare([row(times(100.0)), row(times(1.0), model="fcn")], [after])
    assert [c.kind for c in comparison.worse] == ["memory"]
    assert comparison.facts == {"commit": ("a", "b")}
    assert comparison.only_before == ["fcn forward 4x128x128 float32, 1 thread, cpu clock"]
    said = bench.comparison_table(comparison)
    assert "100.00 | 200.00 MB | +100.0% | 1.0% | worse" in said
    assert "1 of 3 figures changed beyond noise" in said


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A file of the command, made in one process with the rest: unet_small as the zoo has it, at a small size."""
    path = tmp_path_factory.mktemp("bench") / "rows.json"
    words = ("bench", "unet_small", "--size", 16, "--batch", 1, "--rounds", 2, "--no-peers", "--tasks", "forward")
    assert command(*words, "--threads", 1, "--out", path) == 0
    return path, words


def test_the_command_measures_and_says_what_with(measured):
    (row,) = json.loads(measured[0].read_text())
    assert row["model"], row["task"] == ("unet_small", "forward")
    assert len(row["times"]["jaxseg"]["each_ms"]) == 2
    assert 0 < row["utilisation"]["jaxseg"] < 1.5
    assert row["utilisation"]["jaxseg"] == pytest.approx(
        row["flops"] / (row["times"]["jaxseg"]["ms"] / 1e3) / row["matmul_flops_per_second"], rel=0.01
    )
    assert row["peak_bytes"]["jaxseg"] > 4 * row["parameters"]
    assert {"jax", "device", "commit", "changed"} <= row.keys()


def test_a_model_that_is_in_the_file_is_passed_over(measured, capsys):
    path, words = measured
    before = path.read_text()
    assert command(*words, "--threads", 1, "--out", path) == 0
    assert "unet_small is in" in capsys.readouterr().out
    assert path.read_text() == before


def test_another_task_is_measured_and_one_that_a_model_has_not_is_passed_over(measured, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.json"
    path.write_text(measured[0].read_text())
    seen = []
    monkeypatch.setattr(bench, "subject", lambda name, setting: seen.append(setting))
    monkeypatch.setattr(bench, "measure", lambda *_: json.loads(measured[0].read_text()))
    monkeypatch.setattr(bench, "matmul_rate", lambda _: 1e9)
    words = [*measured[1], "--threads", 1, "--out", path]
    for change in (["--tasks", "train"], ["--tasks", "train"], ["--classes", 5], []):
        assert command(*words, *change) == 0
    assert [(s.tasks, s.classes) for s in seen] == [(("train",), 11), (("forward",), 5)]
    facts = bench.facts()
    monkeypatch.setattr(bench, "facts", lambda: {**facts, "diff": "other"})
    assert command(*words) == 0
    assert len(seen) == 3, "the source is another"


def test_what_runs_out_of_memory_is_said_and_the_rest_is_measured(monkeypatch, capsys):
    def subject(name, setting):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")

    monkeypatch.setattr(bench, "subject", subject)
    monkeypatch.setattr(bench, "matmul_rate", lambda _: 1e9)
    assert command("bench", "unet_small", "unet", "--no-peers") == 1
    said = capsys.readouterr().out
    assert "not measured: unet_small: RESOURCE_EXHAUSTED: Out of memory" in said
    assert "not measured: unet:" in said


def test_a_call_too_short_for_the_clock_has_a_time(monkeypatch):
    monkeypatch.setattr(bench.Setting, "seconds", lambda self: 1.0)
    (taken,) = alternate({"jaxseg": lambda: None}, bench.Setting(rounds=3)).values()
    assert taken["ms"] > 0


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"times": {}}],
        [row({"ms": 0.0, "spread_ms": 0.0})],
        [row({"ms": float("nan"), "spread_ms": 0.0})],
        [row({"ms": "1", "spread_ms": 0.0})],
        [row({"ms": 10**400, "spread_ms": 0.0})],
        [row({"ms": 1.0, "spread_ms": float("inf")})],
        [row(times(100.0), {"ms": 1e-308, "spread_ms": 0.0}, ratio={"torch eager": 1.0})],
        [row({**times(100.0), "each_ms": [1.0, float("nan")]})],
        [row(times(100.0), peak_bytes={"jaxseg": 10**400})],
        [row(times(100.0)), row(times(100.0), ratio={"torch eager": 1.0})],
        [row(times(100.0), size=3)],
        [row(times(100.0), peak_bytes={"jaxseg": "1"})],
        [row(times(100.0), utilisation=[])],
    ],
)
def test_rows_that_the_command_did_not_write_are_refused(rows, tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for words in (["--compare", tmp_path / "a.json", tmp_path / "a.json"], ["--table", tmp_path / "a.json"]):
        assert command("bench", *words) == 2
        assert "holds no rows of `jaxseg bench`" in capsys.readouterr().err


def test_rows_of_another_benchmark_are_named(capsys):
    results = pathlib.Path(__file__).parents[1] / "experiments" / "results" / "detection_cpu.json"
    for words in (["--table", results], ["--compare", results, results]):
        assert command("bench", *words) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "rows of experiments/benchmarks/detection.py" in said
        assert "experiments/readme_tables.py" in said


def test_a_row_without_every_figure_is_in_no_table_of_them(measured, tmp_path, capsys):
    (whole, *_) = json.loads(measured[0].read_text())
    rows = [{k: v for k, v in whole.items() if k != name} for name in ("images_per_second", "peak_bytes", "compile_s")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert command("bench", "--table", tmp_path / "a.json") == 0
    assert whole["model"] not in capsys.readouterr().out


def test_words_that_mean_nothing_together_are_refused(measured, tmp_path, capsys):
    assert command("bench", "unet", "--compare", measured[0], measured[0]) == 2
    assert "measure nothing" in capsys.readouterr().err
    assert command("bench", "unet", "--out", measured[0] / "rows.json") == 2
    assert "is a file, not a folder" in capsys.readouterr().err


def test_the_command_compares_and_says_so_in_its_exit_code(measured, tmp_path, capsys):
    rows = json.loads(measured[0].read_text())
    assert command("bench", "--compare", measured[0], measured[0]) == 0
    assert "0 of 3 figures changed" in capsys.readouterr().out
    slower = copy.deepcopy(rows)
    took = slower[0]["times"]["jaxseg"]
    took["ms"], took["each_ms"] = 1000 * took["ms"], [1000 * x for x in took["each_ms"]]
    (tmp_path / "slower.json").write_text(json.dumps(slower))
    assert command("bench", "--compare", measured[0], tmp_path / "slower.json") == 1
    assert "worse" in capsys.readouterr().out
    (tmp_path / "other.json").write_text("{}")
    assert command("bench", "--compare", measured[0], tmp_path / "other.json") == 2
    assert "holds no rows" in capsys.readouterr().err
    assert command("bench", "--table", measured[0]) == 0
    assert "| `unet_small` | 1x16x16 | forward |" in capsys.readouterr().out


def test_calls_are_taken_in_turns_and_the_first_of_each_is_not_counted():
    order = []
    rows = alternate({name: lambda name=name: order.append(name) for name in "ab"}, TINY)
    assert "".join(order) == "ab" * 4
    assert [len(r["each_ms"]) for r in rows.values()] == [3, 3]


@pytest.mark.parametrize("fields", [{"features": (4, 8)}])
def test_a_training_step_trains(fields):
    with jax.default_device(jax.devices()[0]):
        programs = Programs("unet", TINY, **fields)
    assert set(programs.calls["train"]) == {"jaxseg", "jaxseg update"}
    assert programs.labels.shape == (2, 32, 32)
    assert programs.labels.max() < 3
    for call in programs.calls["train"].values():
        call()
        call()
    # backward is twice the forward, but for the gradient of the image, which nobody wants
    assert 2.5 < programs.flops["train"] / programs.flops["forward"] <= 3


SMALL = bench.Setting(size=(32, 32), batch=2, classes=3, rounds=1, threads=1)


SLOW = pytest.param("ncut_eigenpairs", marks=pytest.mark.parity)  # to compile


@pytest.mark.parametrize("name", [SLOW if name == "ncut_eigenpairs" else name for name in bench.KERNELS])
def test_every_kernel_is_measured(name):
    ours = bench.subject(name, SMALL)
    rows = bench.measure(ours, 1e9)
    assert [row["task"] for row in rows] == ["forward", "train"][: 1 + bench.KERNELS[name].has_gradient]
    assert all(row["times"]["jaxseg"]["ms"] >= 0 and row["peak_bytes"]["jaxseg"] > 0 for row in rows)
    assert f"`{name}`" in bench.zoo_table(rows)


@pytest.mark.parity
@pytest.mark.parametrize("name", bench.KERNELS)
def test_a_kernels_peer_computes_the_same(name):
    torch_kernels = peers_module("torch_kernels")
    ours = bench.subject(name, SMALL)
    (peer,) = torch_kernels.kernel_calls(name, ours.inputs, "float32").values()
    assert peer.keys() == {"forward", "train"} if bench.KERNELS[name].has_gradient else {"forward"}
    mine, theirs = ours.calls["forward"]["jaxseg"](), peer["forward"]()
    if name == "nms":
        for kept, valid, indices in zip(mine.indices, mine.valid, theirs, strict=True):
            np.testing.assert_array_equal(np.asarray(kept)[np.asarray(valid)], indices)
    elif name == "kmeans":
        np.testing.assert_allclose(mine.inertia, theirs.inertia_, rtol=1e-4)
    elif name == "ncut_eigenpairs":
        np.testing.assert_allclose(mine.values, np.sort(1 - theirs[0])[1:], atol=1e-4)
    else:
        theirs = theirs.numpy()
        theirs = theirs.transpose(0, 2, 3, 1) if name != "roi_align" else theirs
        mine = np.asarray(mine)
        mine = mine.reshape(-1, 7, 7, 256).transpose(0, 3, 1, 2) if name == "roi_align" else mine
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * max(1, theirs.std()))


def peers_module(name):
    folder = pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # they import one another
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parity
@pytest.mark.parametrize("script", ["detection", "generation"])
def test_the_scripts_import(script):
    pytest.importorskip("torch")
    assert peers_module(script).main


@pytest.mark.parity
@pytest.mark.parametrize("name", ["progan_discriminator", "progan_generator", "stylegan_generator", "adain_transfer"])
def test_a_networks_peer_computes_the_same(name):
    torch_networks = peers_module("torch_networks")
    narrow = {} if name == "adain_transfer" else {"base_features": 512, "max_features": 16}
    setting = bench.Setting(size=(16, 16), batch=4, tasks=("forward",), rounds=1, threads=1)
    ours = bench.subject(name, setting, **narrow)
    (peer,) = torch_networks.network_calls(ours, 3, compiled=False).values()
    mine, theirs = ours.calls["forward"]["jaxseg"](), peer["forward"]().numpy()
    mine = np.asarray(getattr(mine, "score", mine))
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs.reshape(mine.shape)
    np.testing.assert_allclose(mine, theirs, atol=1e-3 * max(1, theirs.std()))


def test_the_cache_is_off_while_compile_time_is_taken():
    compiled = []
    jax.monitoring.register_event_listener(lambda name, **_: compiled.append(name))
    with bench.without_compilation_cache():
        jax.jit(lambda x: jnp.sin(x) * 3)(np.float32(1))
    assert not [name for name in compiled if "cache_hit" in name or "cache_miss" in name]
    assert jax.config.jax_enable_compilation_cache
