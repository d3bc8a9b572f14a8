"""What people look at when a run has ended: the table, the figures, `results.json`."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxseg import parallel
from jaxseg.data.objects import ObjectSource
from jaxseg.data.source import Source
from jaxseg.metrics.coco import coco_average_precision
from jaxseg.predict import detect, predictor, score_objects
from jaxseg.runlog import read_records, write_whole
from jaxseg.runs import load_run
from jaxseg.visualize import draw_detections, save_curves, save_panels, save_tiles

__all__ = ["average_precision_table", "finish_detection", "finish_run", "metrics_table", "write_results"]


def metrics_table(scores: Mapping[str, float], class_names: Sequence[str]) -> str:
    """A Markdown table of the classes' IoU and accuracy, and of the means."""
    width = max(map(len, (*class_names, "global accuracy")))
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
    write_whole(out / "results.md", metrics_table(scores, class_names))
    finite = {k: v if np.isfinite(v) else None for k, v in scores.items()}
    write_whole(out / "results.json", json.dumps({"scores": finite, "config": dict(config)}, indent=1) + "\n")


def finish_run(out: pathlib.Path, config: Mapping[str, Any], scores: Mapping[str, float], held_out: Source) -> None:
    """Leaves what people look at: `predictions.png`, `curves.png` and the table; and says where.

    Of several processes the first does, and the others nothing.
    """
    if jax.process_index() != 0:
        return
    model, variables = load_run(out)
    predict = predictor(model, variables, tuple(config["size"]))
    examples = [held_out[i] for i in range(min(4, len(held_out)))]
    images, truths = [e["image"] for e in examples], [e["label"] for e in examples]
    predictions = [predict(image) for image in images]
    save_panels(out / "predictions.png", images, truths, predictions, held_out.palette, held_out.class_names)
    save_curves(out / "curves.png", list(read_records(out / "metrics.jsonl")))
    write_results(out, config, scores, held_out.class_names)
    print(f"\n{metrics_table(scores, held_out.class_names)}\nwrote results.md, predictions.png and curves.png in {out}")


def finish_detection(
    out: pathlib.Path,
    config: Mapping[str, Any],
    model: Any,
    variables: Any,
    held_out: ObjectSource,
    *,
    score: Callable[..., dict[str, float]] = coco_average_precision,
    pictures: int | None = None,
    batch: int = 4,
    panels: int = 6,
) -> dict[str, float]:
    """Scores a detector on a source and leaves `detections.png`, pictures with what was found, and `results.json`.

    `score` is as in `jaxseg.predict.score_objects`. Prints the scores as a Markdown table, and gives them. Of several
    processes each looks at its share of the pictures, and the first prints and writes.
    """
    variables = parallel.of_this_process(variables)
    scores = score_objects(model, variables, held_out, batch=batch, pictures=pictures, score=score)
    if jax.process_index() != 0:
        return scores
    print("\n" + average_precision_table(scores))
    finite = {k: v if np.isfinite(v) else None for k, v in scores.items()}
    # before the pictures: the scores took hours
    write_whole(out / "results.json", json.dumps({"scores": finite, "config": dict(config)}, indent=1) + "\n")
    images = [held_out[i]["image"] for i in range(min(panels, len(held_out)))]
    side = -(-model.max_size // 32) * 32
    found = [detect(model, variables, [image], canvas=(side, side))[0] for image in images]
    drawn = [draw_detections(i, f, held_out.class_names, held_out.palette) for i, f in zip(images, found, strict=True)]
    save_tiles(out / "detections.png", drawn)
    print(f"wrote results.json and detections.png in {out}")
    return scores


def average_precision_table(scores: Mapping[str, float]) -> str:
    """COCO's AP as a Markdown table, a row for boxes and one for masks; other scores one a line."""
    columns = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    kinds = [kind for kind in ("box", "mask") if f"{kind}_ap" in scores]
    if not kinds:
        return "".join(f"{name:24} {value:.3f}\n" for name, value in scores.items())
    titles = ("AP", "AP50", "AP75", "small", "medium", "large")
    rows = ["|      | " + " | ".join(f"{title:6}" for title in titles) + " |", "|------|" + "--------|" * len(titles)]
    rows += [f"| {kind:4} | " + " | ".join(f"{scores[f'{kind}_{c}']:6.3f}" for c in columns) + " |" for kind in kinds]
    return "\n".join(rows) + "\n"
