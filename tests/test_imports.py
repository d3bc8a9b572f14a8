"""Imports point one way (ops <- layers <- backbones <- models; data, losses, metrics <- train <- cli)."""

import ast
import pathlib
import subprocess
import sys

import pytest

PICTURE = pathlib.Path(__file__).parents[1] / "experiments" / "results" / "shapes_mask_rcnn" / "detections.png"
ROOT = pathlib.Path(__file__).parents[1] / "jaxseg"

# room -> the rooms it may import; a room that is not here may not be imported by any that is
MAY = {
    "ops": set(),
    "layers": {"ops"},
    "backbones": {"ops", "layers"},
    "models": {"ops", "layers", "backbones"},
    "losses": {"ops"},
    "metrics": {"ops"},
    "clustering": {"ops", "data", "visualize"},
    "data": {"ops"},
    "weights": {"ops", "layers", "backbones", "models", "data"},
    "visualize": {"data"},
    "parallel": {"ops"},
    "checkpoint": set(),
    "runlog": set(),
    "train": {"ops", "losses", "metrics", "data"},
    "control": set(),
    "features": {"ops", "backbones", "weights"},
    "train_style": {"ops", "losses", "train"},
    "train_adversarial": {"ops", "losses", "train"},
    "grow": {"checkpoint", "data", "fit", "parallel", "train", "train_adversarial"},
    "train_rcnn": set(),
    "train_detection": {"ops", "losses", "metrics", "data", "train"},
    "interruption": set(),
    "fit": {"checkpoint", "data", "interruption", "parallel", "runlog", "train"},
    "export": {"ops"},
    "programs": {"losses", "models", "train", "train_adversarial", "train_detection", "train_style"},
    "hlo": set(),
    "aot": {"hlo", "parallel", "programs"},
    "bench": {"aot", "clustering", "losses", "ops", "programs", "train"},
    "detect": {"ops", "data"},
    "predict": {"ops", "data", "detect", "metrics", "parallel"},
    "runs": {"checkpoint", "models"},
    "pretrained": {"backbones", "models", "runs", "weights"},
    "report": {"data", "metrics", "parallel", "predict", "runlog", "runs", "visualize"},
    "cli": {"*"},
    "__init__": {"models", "runs", "weights"},
}


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "absolute imports only"
            names = [node.module]
            if node.module == "jaxseg":
                names = [f"jaxseg.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("jaxseg."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    here = room(path)
    assert here in MAY, f"{here} is a new room: say above what it may import"
    allowed = MAY[here] | {here}
    backwards = {there for there in imported_rooms(path.read_text()) if there not in allowed and "*" not in allowed}
    assert not backwards, f"{path.relative_to(ROOT)} imports {', '.join(sorted(backwards))}"


def test_a_backward_import_is_seen():
    source = "from jaxseg import train\nimport jaxseg.models.unet\nimport numpy"
    assert list(imported_rooms(source)) == ["train", "models"]


def test_a_prediction_waits_for_no_import_that_it_has_no_use_for():
    slow = ("grain", "orbax.checkpoint", "tensorflow_datasets", "scipy.ndimage", "optax", "matplotlib", "pycocotools")
    slow += ("PIL.FtexImagePlugin",)  # nor for all the kinds of pictures that Pillow reads
    slow += ("flax", "jaxseg.models")  # which the program that an earlier start has compiled has no use for
    program = f"from jaxseg.cli.predict import read_image; import sys; read_image({str(PICTURE)!r})\n"
    program += f"print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_itself_imports_nothing_until_it_is_asked_for():
    program = "import sys, jaxseg; print('jax' in sys.modules, hasattr(jaxseg, 'nothing'))\n"
    program += "from jaxseg import *; print(len(jaxseg.MODELS) == len(MODELS) > 50, callable(load_run))\n"
    program += "print(*(callable(getattr(jaxseg, name)) for name in jaxseg.__all__ if name != 'MODELS'))\n"
    program += "print(jaxseg.metrics.__name__, jaxseg.train.__name__)"  # modules too, without a word of their own
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:4] == [
        "False False",
        "True True",
        " ".join(["True"] * 6),
        "jaxseg.metrics jaxseg.train",
    ]


@pytest.mark.parametrize("package", ["data", "predict", "weights"])
def test_a_package_hands_out_its_functions_whatever_modules_of_their_names_are_imported(package):
    program = "import importlib, pathlib, types\n"
    program += f"package = importlib.import_module('jaxseg.{package}')\n"
    program += "for path in sorted(pathlib.Path(package.__file__).parent.glob('[a-z]*.py')):\n"
    program += f"    importlib.import_module('jaxseg.{package}.' + path.stem)\n"
    program += "found = {name: getattr(package, name) for name in package.__all__}\n"
    program += "print(len(found), [name for name, x in found.items() if isinstance(x, types.ModuleType)])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text())
    imported = [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    (named,) = [node.value for node in stub.body if isinstance(node, ast.Assign)]
    assert done.stdout.strip() == f"{len(imported)} []"
    assert sorted(ast.literal_eval(named)) == sorted(imported)
