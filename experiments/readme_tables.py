"""Writes the README's tables of results from the JSON that experiments and `jaxseg bench` left.

    python experiments/readme_tables.py          # then look at the difference

A table stands below a line `<!-- table: NAME -->`, up to the next empty line.
"""

import json
import math
import pathlib
import re
from collections.abc import Callable

from jaxseg.bench.tables import markdown, ratio_table

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
SCORES = ("miou", "global_accuracy", "class_accuracy")


def _read(name: str):
    return json.loads((RESULTS / name).read_text())


def _scores(run: str) -> list[str]:
    scores = _read(f"{run}/results.json")["scores"]
    return [f"{scores[k]:.3f}" for k in SCORES]


def camvid() -> str:
    """The run beside published figures (Badrinarayanan et al. 2017, Table 3; Jegou et al. 2017, Table 1)."""
    what = "`unet_small`, from scratch, 1,500 steps of 8, under an hour on 2 CPU cores"
    names = "published: SegNet, first version / U-Net / FCN-8s / SegNet VGG-16 BN"
    titles = ("model", "parameters", "sees", "mean IoU", "global accuracy", "class accuracy")
    rows = [
        [what, "1.9 M", "half resolution", *_scores("camvid_unet_small")],
        [names, "29 M / 31 M / 134 M / 29 M", "full", "0.464 / 0.498 / 0.570 / 0.577", "", ""],
    ]
    return markdown(titles, rows)


def finetuning() -> str:
    """The ways to start, one run each."""
    ways = {
        "scratch": "from scratch",
        "frozen": "ImageNet's, frozen",
        "slower": "ImageNet's, a tenth of the decoder's learning rate",
    }
    rows = [[words, *_scores(f"camvid_finetune/{name}")] for name, words in ways.items()]
    return markdown(("encoder", "mean IoU", "global accuracy", "class accuracy"), rows)


def throughput() -> str:
    """jaxseg's time over PyTorch's."""
    return ratio_table(_read("throughput_cpu.json"))


def start() -> str:
    """A prediction of one photograph by the command line, from the word to the pictures."""
    found = _read("start_cpu.json")
    cells = (f"{found[kind][clock]:.1f}" for kind in ("cold", "warm") for clock in ("seconds", "processor_s"))
    titles = ("model", "photograph", "cold, s", "processor, s", "warm, s", "processor, s")
    return markdown(titles, [[f"`{found['model']}`", f"{found['size']}x{found['size']}", *cells]], left=2)


def boundaries() -> str:
    """Regions and boundaries on BSDS500, at the data set's best level and at each image's."""
    found = _read("bsds500_val.json")
    names = {
        f"Normalized Cut, merged, at half size | val, {found['images']}": found["rows"]["ncut"],
        f"k-means by Lab and position, at half size | val, {found['images']}": found["rows"]["kmeans"],
        "NCuts, published (Arbelaez et al. 2011) | test, 200": found["published"],
    }
    rows = []
    for name, row in names.items():
        pairs = zip((0, 3, 5, 7), (1, 4, 6, 8), (3, 3, 2, 3), strict=True)
        digits = [(i, j, d if row is not found["published"] else 2) for i, j, d in pairs]
        rows.append([*name.split(" | "), *(f"{row[i]:.{d}f} / {row[j]:.{d}f}" for i, j, d in digits)])
    return markdown(("method", "part", "covering", "PRI", "VI", "boundary F"), rows, left=2)


def spatial() -> str:
    """Memory of a device by the devices that share an image's height and width."""
    rows: dict[tuple[str, str, int], dict[tuple[int, int], dict]] = {}
    for row in _read("spatial_memory.json")["rows"]:
        rows.setdefault((row["model"], row["program"], row["size"]), {})[tuple(row["shares"])] = row
    lines = []
    for (model, program, size), found in rows.items():
        what = {"apply": "forward", "train": "train step", "cluster": "segments"}[program]
        megabytes = {shares: row["temporaries"] / 1e6 for shares, row in found.items()}
        columns = (1, 1), (2, 1), (4, 1), (8, 1), (4, 2)
        cells = [f"{megabytes[n]:,.0f}" if n in megabytes else "" for n in columns]
        ratio = f"{megabytes[1, 1] / min(mb for shares, mb in megabytes.items() if math.prod(shares) == 8):.1f}"
        name = {"kmeans": "k-means", "ncut": "Normalized Cut"}.get(model, f"`{model}`")
        lines.append([name, what, f"{size}x{size}", *cells, ratio])
    titles = ("model", "program", "image", "MB on 1 device", "2", "4", "8", "4x2", "1 to 8")
    return markdown(titles, lines, left=3)


def generation() -> str:
    """Sliced Wasserstein distances of runs on faces after each resolution, and how often classes are as asked."""
    names = {
        "progan_faces": "ProGAN, unconditional",
        "progan_faces/conditional": "ProGAN, conditional on 8 classes",
        "stylegan_faces/unconditional": "StyleGAN, unconditional",
        "stylegan_faces": "StyleGAN, conditional on 8 classes",
    }
    rows = []
    for folder, what in names.items():
        found = _read(f"{folder}/results.json")
        cells = [f"{found[s]['swd'][0]:.1f}" if s in found else "" for s in ("4", "8", "16")]
        conditioning = found.get("conditioning")
        classes = ("agreement_of_made", "chance_of_made", "accuracy_on_reals")
        agreement = " / ".join(f"{conditioning[k]:.2f}" for k in classes) if conditioning else ""
        rows.append([what, *cells, f"{found['16']['swd_of_reals'][0]:.1f}", agreement])
    titles = ("run", "4x4", "8x8", "16x16", "other reals", "class as asked / by chance / of reals")
    return markdown(titles, rows)


def generators() -> str:
    """Processor milliseconds beside PyTorch, and their sum."""
    names = {
        "generator": "StyleGAN's generator, forward",
        "discriminator_r1": "its discriminator's gradient of the logistic loss with R1",
        "adain": "AdaIN of features at relu4_1, 512 channels",
        "doubling_blur": "a doubling, a 3x3 convolution from 256 to 128 channels, the blur",
        "stylize": "stylization, style and all",
    }
    found = _read("generation_cpu.json")
    times = [[row["times"][what]["ms"] for what in ("jaxseg", "torch eager")] for row in found]
    whats = [[names[row["model"]], f"{row['batch']}x{row['size'][0]}x{row['size'][1]}"] for row in found]
    rows = [
        [*what, *(f"{ms:,.0f}" for ms in pair), f"{pair[1] / pair[0]:.2f}"]
        for what, pair in zip(
            [*whats, ["in total", ""]], [*times, [sum(t) for t in zip(*times, strict=True)]], strict=True
        )
    ]
    return markdown(("what", "images", "jaxseg, ms", "PyTorch, ms", "times as fast"), rows, left=2)


def _coco_ap(folder: str, *sizes: str) -> str:
    scores = _read(f"{folder}/results.json")["scores"]
    keys = ("ap", "ap50", "ap75", *(f"ap_{size}" for size in sizes))
    rows = [[kind, *(f"{scores[f'{kind}_{key}']:.3f}" for key in keys)] for kind in ("box", "mask")]
    return markdown(("", "AP", "AP50", "AP75", *sizes), rows)


def pennfudan() -> str:
    """COCO's AP of the small Mask R-CNN, from scratch."""
    return _coco_ap("pennfudan_small", "medium", "large")


def nuclei() -> str:
    """The same on nuclei."""
    return _coco_ap("nuclei_small", "small", "medium")


OPERATIONS = {
    "nms": "NMS of 1,000 boxes",
    "roi_align": "RoIAlign of 1,000 boxes, 256 channels",
    "rpn": "RPN on a pyramid",
}


def detection() -> str:
    """Operations and whole detectors: processor milliseconds beside torchvision's compiled operators."""
    last = {(r["what"], r["task"], r["batch"], r.get("objects")): r for r in _read("detection_cpu.json")}
    rows = [
        [
            OPERATIONS.get(what, f"`{what}`"),
            f"train step, {objects} objects" if task == "train" else task,
            f"{batch}x{row['size'][0]}x{row['size'][1]}",
            *(f"{row['times'][peer]['ms']:,.0f}" for peer in ("jaxseg", "torchvision")),
            f"{row['ratio']:.2f}",
        ]
        for (what, task, batch, objects), row in last.items()
    ]
    titles = ("what", "", "images", "jaxseg, ms", "torchvision, ms", "time over torchvision's")
    return markdown(titles, rows, left=3)


def detection_on_a_gpu() -> str:
    """The same by the wall's clock, in bfloat16 for whole detectors, beside torchvision eager and compiled."""
    rows = [
        [
            OPERATIONS.get(row["what"], f"`{row['what']}`"),
            row["task"],
            f"{row['batch']}x{row['size'][0]}x{row['size'][1]}",
            *(f"{times['ms']:.1f} ± {times['spread_ms']:.1f}" for times in row["times"].values()),
            *[""] * (3 - len(row["times"])),
        ]
        for row in _read("detection_gpu.json")
    ]
    return markdown(("what", "", "images", "jaxseg, ms", "torchvision, ms", "compiled, ms"), rows, left=3)


def clustering() -> str:
    """Seconds beside scikit-learn's Lloyd and SciPy's eigsh."""
    found = _read("clustering_cpu.json")
    rows = [
        [f"k-means, {r['features']}, k = {r['k']}", r["size"], f"{r['ours_s']:.3f}", f"{r['peer_s']:.3f}", r["ratio"]]
        for r in found["kmeans"]
    ]
    graph = found["graph"]
    what = f"Normalized Cut, {graph['pairs']} eigenpairs to {graph['tolerance']:g}"
    rows.append([what, graph["size"], f"{graph['ours_s']:.2f}", f"{graph['peer_s']:.2f}", graph["ratio"]])
    rows = [[*row[:4], f"{row[4]:.1f}"] for row in rows]
    return markdown(("what", "image", "jaxseg, s", "scikit-learn or SciPy, s", "times as fast"), rows, left=2)


TABLES: dict[str, Callable[[], str]] = {
    "camvid": camvid,
    "fine-tuning": finetuning,
    "throughput": throughput,
    "start": start,
    "detection": detection,
    "detection-gpu": detection_on_a_gpu,
    "pennfudan": pennfudan,
    "nuclei": nuclei,
    "bsds500": boundaries,
    "clustering": clustering,
    "spatial": spatial,
    "generation": generation,
    "generators": generators,
}


def written(readme: str) -> str:
    """`readme` with each table made anew. Raises ValueError for a marker of an unknown table."""

    def table(match: re.Match) -> str:
        if match[1] not in TABLES:
            raise ValueError(f"no table {match[1]!r}; there are {', '.join(TABLES)}")
        return f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]]()}"

    return re.sub(r"<!-- table: (\S+) -->\n\n(?:\|.*\n)*", table, readme)


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(written(path.read_text()))


if __name__ == "__main__":
    main()
