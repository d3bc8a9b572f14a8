"""How long `jaxseg predict` takes on one photograph, from the word to the picture, cold and warm.

    python experiments/benchmarks/start.py --out experiments/results/start_cpu.json

Cold: an empty compilation cache, as after installation. Warm: the same command again. Each is a process of its own,
timed from its start to its end; `processor_s` is the processor time of all its threads. The weights are random, in the
publisher's layout.
"""

import dataclasses
import functools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

import jaxseg
from jaxseg.bench import facts
from jaxseg.weights import save_weights


@dataclasses.dataclass(frozen=True)
class Config:
    model: str = "deeplabv3_resnet50"
    size: int = 512  # of the photograph, and of what the model sees
    repeats: int = 3
    out: pathlib.Path | None = None


def prepare(folder: pathlib.Path, config: Config) -> None:
    model = jaxseg.create_model(config.model, 21)
    images = jax.ShapeDtypeStruct((1, config.size, config.size, 3), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    rng = np.random.default_rng(0)
    save_weights(
        folder / "weights.safetensors", model, jax.tree.map(lambda x: rng.uniform(0, 0.02, x.shape).astype("f"), shapes)
    )
    Image.fromarray(rng.integers(0, 256, (config.size, config.size, 3), np.uint8)).save(folder / "photo.png")


def predict(folder: pathlib.Path, cache: pathlib.Path, config: Config) -> dict[str, float]:
    words = ["predict", config.model, "photo.png", "--weights", "weights.safetensors", "--out", "out"]
    command = [sys.executable, "-c", "from jaxseg.cli import main; main()", *words]
    root = str(pathlib.Path(jaxseg.__file__).parents[1])
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": root}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, "--size", str(config.size)], cwd=folder, env=environment, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))
    return {"seconds": round(seconds, 2), "processor_s": round(processor, 2)}


def main(config: Config) -> None:
    rows = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(folder, config)
        for i in range(config.repeats):
            cache = folder / f"cache{i}"
            rows["cold"].append(predict(folder, cache, config))
            rows["warm"].append(predict(folder, cache, config))
            print({k: v[-1] for k, v in rows.items()}, flush=True)
    result = {"model": config.model, "size": config.size, **facts()}
    for kind, taken in rows.items():
        result[kind] = {k: statistics.median(x[k] for x in taken) for k in taken[0]} | {"each": taken}
    if config.out is not None:
        config.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
