"""Detection beside torchvision, alternately in one process: NMS, RoIAlign and RPN by themselves, and whole detectors.

    python experiments/benchmarks/detection.py --operations nms roi_align rpn
    python experiments/benchmarks/detection.py --operations --detectors maskrcnn_resnet50_fpn --size 800 800 --batch 1

Needs the parity extra. NMS forward; RoIAlign and the RPN forward and, with its gradient, backward; detectors as
inference and as a train step (losses and gradients of the same objects, SGD). torchvision's mask head learns from the
boxes that sampling found positive, jaxseg's on a CPU from parts of its 128 places that hold one, and an untrained model
finds little more than the objects themselves: `--grid 8 16` gives both 128. Prints medians, half the distance between
the quartiles, and the ratio to torchvision (below 1: jaxseg is faster); `--json FILE` adds the rows to FILE.
Where torchvision's compiled operators do not load beside this PyTorch its RoIAlign in Python and a plain greedy NMS
stand in, and the rows say so. On a shared machine take `--threads 1 --clock cpu`.
"""

import copy
import dataclasses
import functools
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table
import tyro

sys.path += [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2] / "tests")]
import torch_device
from torchvision_shim import torch, torchvision

import jaxseg
from jaxseg.bench.measure import Setting, alternate, facts
from jaxseg.models.rpn import RPNHead, select_proposals
from jaxseg.ops.anchors import pyramid_anchors
from jaxseg.ops.nms import nms
from jaxseg.ops.roi import roi_align
from jaxseg.train_detection import detection


@dataclasses.dataclass(frozen=True)
class Config:
    operations: tuple[Literal["nms", "roi_align", "rpn"], ...] = ("nms", "roi_align", "rpn")
    detectors: tuple[str, ...] = ()
    tasks: tuple[Literal["inference", "train"], ...] = ("inference", "train")
    size: tuple[int, int] = (800, 800)
    batch: int = 1
    boxes: int = 1000
    channels: int = 256
    grid: tuple[int, int] = (2, 4)  # rows and columns of objects in each image that a detector learns from
    rounds: int = 7
    threads: int = 0  # for each of the two; 0: as many as this process may use
    clock: Literal["wall", "cpu"] = "wall"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of detectors' compute, in both
    compiled: bool = False  # also torch.compile of a detector's backbone and RPN head, whose shapes are fixed
    json: pathlib.Path | None = None


Calls = dict[str, Callable[[], Any]]


def random_boxes(rng: np.random.Generator, n: int, size: tuple[int, int]) -> np.ndarray:
    corners = rng.uniform(0, 0.8, (n, 2)) * size[::-1]
    return np.concatenate([corners, corners + rng.uniform(8, 0.2 * min(size), (n, 2))], 1).astype(np.float32)


def nms_calls(config: Config) -> dict[str, Calls]:
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, config.boxes, config.size), rng.random(config.boxes, np.float32)
    ours = jax.jit(lambda b, s: nms(b, s, 0.7, config.boxes))
    theirs = torch.tensor(boxes), torch.tensor(scores)
    boxes, scores = jax.device_put((boxes, scores))
    return {
        "forward": {
            "jaxseg": lambda: jax.block_until_ready(ours(boxes, scores)),
            "torchvision": lambda: torchvision.ops.nms(*theirs, 0.7),
        }
    }


def roi_align_calls(config: Config) -> dict[str, Calls]:
    rng = np.random.default_rng(0)
    h, w = (n // 8 for n in config.size)
    x = rng.standard_normal((config.batch, h, w, config.channels), np.float32)
    boxes = np.stack([random_boxes(rng, config.boxes, config.size) for _ in range(config.batch)])
    align = functools.partial(roi_align, size=7, scale=1 / 8)
    forward, backward = jax.jit(align), jax.jit(jax.grad(lambda x, b: (align(x, b) ** 2).sum()))
    features = torch_device.images_first(x).requires_grad_()
    rois = [torch.tensor(b) for b in boxes]
    x, boxes = jax.device_put((x, boxes))

    def theirs(gradient: bool) -> None:
        with torch.set_grad_enabled(gradient):
            out = torchvision.ops.roi_align(features, rois, 7, 1 / 8, 2)
        if gradient:
            torch.autograd.grad((out**2).sum(), features)

    return {
        "forward": {
            "jaxseg": lambda: jax.block_until_ready(forward(x, boxes)),
            "torchvision": lambda: theirs(False),
        },
        "backward": {
            "jaxseg": lambda: jax.block_until_ready(backward(x, boxes)),
            "torchvision": lambda: theirs(True),
        },
    }


def rpn_calls(config: Config) -> dict[str, Calls]:
    """The head on a pyramid and the choice of proposals; backward through the head's scores and deltas."""
    rng, c = np.random.default_rng(0), config.channels
    grids = [(-(-config.size[0] // s), -(-config.size[1] // s)) for s in (4, 8, 16, 32, 64)]
    maps = [rng.standard_normal((config.batch, *grid, c), np.float32) for grid in grids]
    head, key = RPNHead(3, c), jax.random.key(0)
    variables = jax.jit(lambda x: head.init(key, x, train=False))(maps[-1])
    sizes = ((32,), (64,), (128,), (256,), (512,))
    anchors = pyramid_anchors(grids, config.size, sizes, (0.5, 1.0, 2.0))
    true_sizes = jnp.tile(jnp.array(config.size, jnp.int32), (config.batch, 1))

    def scores(variables: Any) -> list[Any]:
        return [head.apply(variables, x, train=False) for x in maps]

    @jax.jit
    def forward(variables: Any) -> Any:
        return select_proposals(
            scores(variables),
            anchors,
            true_sizes,
            before_nms=1000,
            after_nms=1000,
            nms_threshold=0.7,
            score_threshold=0,
        )

    backward = jax.jit(jax.grad(lambda v: sum((x.astype(jnp.float32) ** 2).sum() for x in jax.tree.leaves(scores(v)))))
    from torchvision.models.detection import rpn
    from torchvision.models.detection.image_list import ImageList

    reference = rpn.RegionProposalNetwork(
        rpn.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        rpn.RPNHead(c, 3),
        *(0.7, 0.3, 256, 0.5),
        *({"training": 1000, "testing": 1000},) * 2,
        0.7,
    ).eval()
    features = {str(i): torch_device.images_first(x) for i, x in enumerate(maps)}
    images = ImageList(torch.zeros(config.batch, 3, *config.size), [config.size] * config.batch)

    def their_forward() -> None:
        with torch.inference_mode():
            reference(images, features)

    def their_backward() -> None:
        reference.head.zero_grad()
        logits, deltas = reference.head(list(features.values()))
        sum((x**2).sum() for x in (*logits, *deltas)).backward()

    return {
        "forward": {"jaxseg": lambda: jax.block_until_ready(forward(variables)), "torchvision": their_forward},
        "backward": {"jaxseg": lambda: jax.block_until_ready(backward(variables)), "torchvision": their_backward},
    }


def detector_calls(name: str, config: Config) -> dict[str, Calls]:
    rng = np.random.default_rng(0)
    (h, w), n = config.size, config.batch
    limits = {"min_size": min(h, w), "max_size": max(h, w)}
    model = jaxseg.create_model(name, 91, dtype=jnp.dtype(config.dtype).type, **limits)
    image = rng.integers(0, 256, (n, h, w, 3), np.uint8)
    reference = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None, **limits)
    state = {k: v.cpu().numpy() for k, v in reference.state_dict().items()}
    variables = jaxseg.weights.from_published(state, model).variables
    normalized = jnp.asarray((image / 255 - 0.45) / 0.23, jnp.float32)
    infer = jax.jit(functools.partial(model.apply, train=False))
    fns = detection(model, optimizer=optax.sgd(1e-3, 0.9), max_instances=math.prod(config.grid))
    rows, columns = (np.arange(side) * cells // side for side, cells in zip((h, w), config.grid, strict=True))
    ids = np.tile(rows[:, None] * config.grid[1] + columns + 1, (n, 1, 1)).astype(np.int32)
    batch = jax.device_put({"image": image, "instances": ids, "label": (ids - 1) % 90 + 1})
    shapes = jax.eval_shape(fns.init, jax.random.key(0), batch)
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    start = start.replace(params=variables["params"], model_state={"batch_stats": variables["batch_stats"]})
    update, kept = jax.jit(fns.update), [start]

    def step() -> None:
        kept[0], metrics = update(kept[0], batch, jax.random.key(1))
        jax.block_until_ready(metrics)

    pictures = [torch.tensor(x.transpose(2, 0, 1) / 255, dtype=torch.float32) for x in image]
    objects = np.arange(1, math.prod(config.grid) + 1)
    masks = ids[0] == objects[:, None, None]
    boxes = [[c.min(), r.min(), c.max() + 1, r.max() + 1] for r, c in map(np.nonzero, masks)]
    target = {
        "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
        "labels": torch.tensor((objects - 1) % 90 + 1),
        "masks": torch.tensor(masks.astype(np.uint8)),
    }
    if torch_device.on_gpu():
        reference.to(memory_format=torch.channels_last)

    def theirs(reference: Any) -> dict[str, Callable[[], None]]:
        optimizer = torch.optim.SGD(reference.parameters(), 1e-3, momentum=0.9)

        def inference() -> None:
            reference.eval()
            with torch.inference_mode(), torch_device.autocast(config.dtype):
                reference(pictures)

        def train() -> None:
            reference.train()
            optimizer.zero_grad(set_to_none=True)
            with torch_device.autocast(config.dtype):
                losses = reference(pictures, [target] * n)
            sum(losses.values()).backward()
            optimizer.step()

        return {"inference": inference, "train": train}

    peers = {"torchvision": theirs(reference)}
    if config.compiled:
        compiled = copy.deepcopy(reference)
        compiled.backbone, compiled.rpn.head = torch.compile(compiled.backbone), torch.compile(compiled.rpn.head)
        peers["torchvision, compiled"] = theirs(compiled)
    ours = {"inference": lambda: jax.block_until_ready(infer(variables, normalized)), "train": step}
    return {task: {"jaxseg": ours[task], **{k: v[task] for k, v in peers.items()}} for task in config.tasks}


def main(config: Config) -> None:
    available = sorted(os.sched_getaffinity(0))
    threads = config.threads or len(available)
    os.sched_setaffinity(0, available[:threads])  # XLA makes as many threads as it may use cores
    torch.set_num_threads(threads)
    torch_device.beside_jax()
    compiled = bool(torchvision.extension._has_ops())
    made: dict[str, Callable[[], dict[str, Calls]]] = {
        "nms": lambda: nms_calls(config),
        "roi_align": lambda: roi_align_calls(config),
        "rpn": lambda: rpn_calls(config),
    }
    wanted = {name: made[name] for name in config.operations}
    wanted |= {name: functools.partial(detector_calls, name, config) for name in config.detectors}
    table = rich.table.Table("what", "task", "jaxseg ms", "torchvision ms", "ratio", title="torchvision's operators: ")
    table.title = f"torchvision's operators: {'compiled' if compiled else 'in Python'}"
    for name, make in wanted.items():
        for task, calls in make().items():
            calls = {what: call if what == "jaxseg" else torch_device.finished(call) for what, call in calls.items()}
            times = alternate(calls, Setting(rounds=config.rounds, clock=config.clock))
            row = {
                **{"what": name, "task": task, "size": list(config.size), "batch": config.batch},
                **{"boxes": config.boxes, "channels": config.channels, "threads": threads, "clock": config.clock},
                **({"objects": math.prod(config.grid)} if task == "train" else {}),
                "torchvision_operators": "compiled" if compiled else "python",
                **({"dtype": config.dtype} if name in config.detectors else {}),
                "times": times,
                "ratio": round(times["jaxseg"]["ms"] / times["torchvision"]["ms"], 3),
            }
            if "torchvision, compiled" in times:
                row["ratio_compiled"] = round(times["jaxseg"]["ms"] / times["torchvision, compiled"]["ms"], 3)
            shown = (f"{times[k]['ms']:.1f} ± {times[k]['spread_ms']:.1f}" for k in ("jaxseg", "torchvision"))
            table.add_row(name, task, *shown, f"{row['ratio']:.2f}")
            if config.json is not None:
                kept = json.loads(config.json.read_text()) if config.json.exists() else []
                config.json.write_text(json.dumps([*kept, {**row, **facts()}], indent=1) + "\n")
    rich.console.Console(width=120).print(table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
