"""The README's commands are the ones that run."""

import importlib.util
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


def test_the_tables_of_results_are_those_of_the_files():
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "experiments" / "readme_tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.written(README) == README, "run python experiments/readme_tables.py"
    assert sorted(re.findall("<!-- table: (.*) -->", README)) == sorted(tables.TABLES), "each once"
    assert not re.search(r"^\|.*\n[^|\n]", README, re.MULTILINE), "an empty line ends a table"
    typed = re.sub(r"\d\.\d\d \|$", "9.99 |", README, count=1, flags=re.MULTILINE)
    assert typed != README
    assert tables.written(typed) == README
