"""Markdown from the rows of `jaxseg bench`: no figure in a table is typed."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.bench.compare import Comparison

__all__ = ["comparison_table", "markdown", "ratio_table", "zoo_table"]

Row = Mapping[str, Any]
UNITS = {"time": (1.0, "ms"), "memory": (1e-6, "MB"), "compile": (1.0, "s to compile")}


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all but the first `left` columns are aligned to the right."""
    dashes = ["-" * (len(t) + 2) if i < left else "-" * (len(t) + 1) + ":" for i, t in enumerate(titles)]
    lines = [f"| {' | '.join(titles)} |", f"|{'|'.join(dashes)}|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines) + "\n"


def _figure(value: float) -> str:
    """Two decimals, and of what is less than 1 three digits."""
    return f"{value:,.2f}" if value >= 1 else f"{value:.3g}"


def _time(taken: Mapping[str, Any]) -> str:
    ms, spread = taken["ms"], taken["spread_ms"]
    return f"{ms:,.0f} ± {spread:.0f}" if ms >= 10 else f"{ms:.2g} ± {spread:.1g}"


def _by_shape(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """Model and shape -> task -> its row, the last of those measured again, in the order they first came."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        shape = "x".join(map(str, (row["batch"], *row["size"])))
        found.setdefault((row["model"], shape), {})[row["task"]] = row
    return found


def ratio_table(rows: Sequence[Row], peer: str = "torch eager") -> str:
    """jaxseg's time over the peer's, forward and train step."""
    lines = []
    for (model, shape), tasks in _by_shape(rows).items():
        ratios = [tasks[t]["ratio"].get(peer) if t in tasks else None for t in ("forward", "train")]
        if any(ratios):
            lines.append([f"`{model}`", shape, *("" if r is None else f"{r:.2f}" for r in ratios)])
    return markdown(("model", "batch x size", "forward", "train step"), lines, left=2)


def zoo_table(rows: Sequence[Row]) -> str:
    """Times, images a second, utilisation, memory and compile time of each model; jaxseg alone."""
    lines = []
    for (model, shape), tasks in _by_shape(rows).items():
        for task, row in tasks.items():
            if not row.keys() >= {"utilisation", "images_per_second", "peak_bytes", "compile_s"}:
                continue
            took, memory = row["times"]["jaxseg"], row["peak_bytes"]["jaxseg"]
            ratio = next(iter(row["ratio"].values()), None)
            lines.append(
                [
                    f"`{model}`",
                    shape,
                    task,
                    _time(took),
                    f"{row['images_per_second']['jaxseg']:.1f}",
                    f"{row['utilisation']['jaxseg']:.0%}",
                    f"{memory / 1e6:,.0f}",
                    f"{row['compile_s']['jaxseg']:.0f}",
                    "" if ratio is None else f"{ratio:.2f}",
                ]
            )
    titles = ("model", "batch x size", "task", "ms", "img/s", "MFU", "peak MB", "compile s", "time over the peer's")
    return markdown(titles, lines, left=3)


def comparison_table(comparison: Comparison) -> str:
    """What changed beyond noise, what did not, and what the two files do not share."""
    lines = [f"{name}: {a} -> {b}" for name, (a, b) in comparison.facts.items()]
    news = [c for c in comparison.changes if c.beyond_noise]
    if news:
        lines.append("")
        rows = []
        for c in sorted(news, key=lambda c: -abs(c.change)):
            scale, unit = UNITS[c.kind]
            row = [c.row, c.what, _figure(c.before * scale), f"{_figure(c.after * scale)} {unit}"]
            rows.append([*row, f"{c.change:+.1%}", f"{c.noise:.1%}", "worse" if c.change > 0 else "better"])
        lines.append(markdown(("row", "what", "before", "after", "change", "noise", ""), rows, left=2))
    lines.append(f"{len(news)} of {len(comparison.changes)} figures changed beyond noise")
    for where, names in (("the first", comparison.only_before), ("the second", comparison.only_after)):
        lines += [f"only in {where} file: {name}" for name in names]
    return "\n".join(lines)
