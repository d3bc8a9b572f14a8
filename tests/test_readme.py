"""The README's commands are the ones that run."""

import pathlib
import re

from jaxseg.models import MODELS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_test_command_of_the_readme():
    command = next(line for line in README.splitlines() if line.startswith("python3 -m venv") and "pytest" in line)
    assert command.replace(" -e ", " -q -e ") in (ROOT / ".ci" / "run").read_text()


def test_the_table_of_models_is_the_zoo():
    assert set(re.findall(r"^\| `(\w+)`", README, re.MULTILINE)) == set(MODELS)
