"""What people look at when a run has ended: the table, the figures, `results.json`."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.data.source import Source
from jaxseg.predict import predictor
from jaxseg.runlog import read_records
from jaxseg.runs import load_run
from jaxseg.visualize import save_curves, save_panels

__all__ = ["finish_run", "metrics_table", "write_results"]


def metrics_table(scores: Mapping[str, float], class_names: Sequence[str]) -> str:
    """A Markdown table of the classes' IoU and accuracy, and of the means."""
    width = max(map(len, (*class_names, "class accuracy")))
    rows = [f"| {'class':{width}} | IoU   | accuracy |", f"|{'-' * (width + 2)}|-------|----------|"]
    for k, name in enumerate(class_names):
        rows.append(f"| {name:{width}} | {scores[f'iou/{k}']:5.3f} | {scores[f'accuracy/{k}']:8.3f} |")
    means = {"mean IoU": "miou", "global accuracy": "global_accuracy", "class accuracy": "class_accuracy"}
    rows += ["", f"| {'over all':{width}} | value |", f"|{'-' * (width + 2)}|-------|"]
    rows += [f"| {label:{width}} | {scores[key]:5.3f} |" for label, key in {**means, "Dice": "dice"}.items()]
    return "\n".join(rows) + "\n"


def write_results(
    out: pathlib.Path, config: Mapping[str, Any], scores: Mapping[str, float], class_names: Sequence[str]
) -> None:
    """Writes `results.md` and, last and atomically, `results.json`, whose presence says that the run is whole."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text(metrics_table(scores, class_names))
    finite = {k: v if np.isfinite(v) else None for k, v in scores.items()}
    staged = out / "results.json.tmp"
    staged.write_text(json.dumps({"scores": finite, "config": dict(config)}, indent=1) + "\n")
    os.replace(staged, out / "results.json")


def finish_run(out: pathlib.Path, config: Mapping[str, Any], scores: Mapping[str, float], held_out: Source) -> None:
    """Leaves what people look at: `predictions.png`, `curves.png` and the table; and says where."""
    model, variables = load_run(out)
    predict = predictor(model, variables, tuple(config["size"]))
    examples = [held_out[i] for i in range(min(4, len(held_out)))]
    images, truths = [e["image"] for e in examples], [e["label"] for e in examples]
    predictions = [predict(image) for image in images]
    save_panels(out / "predictions.png", images, truths, predictions, held_out.palette, held_out.class_names)
    save_curves(out / "curves.png", list(read_records(out / "metrics.jsonl")))
    write_results(out, config, scores, held_out.class_names)
    print(f"\n{metrics_table(scores, held_out.class_names)}\nwrote results.md, predictions.png and curves.png in {out}")
