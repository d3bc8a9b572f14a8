"""What a device holds of an image that is shared out: the compiler's figures, nothing is run.

    JAX_NUM_CPU_DEVICES=8 python experiments/spatial_memory.py --out experiments/results/spatial_memory.json

For each model, the forward pass of one image, its height over 1, 2, 4 and 8 devices, and height by width over 4x2: the
temporary memory of a device, its arguments (weights and its share of the image), and the halos exchanged. The largest
size is compiled for 1 and 8.
"""

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from jaxseg import aot, parallel
from jaxseg.bench import facts
from jaxseg.cli.arguments import demand_positive, one_message
from jaxseg.clustering import kmeans, ncut
from jaxseg.programs import sized_model


@dataclasses.dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = (
        "unet_small",
        "segnet_vgg16_bn",
        "fcn8s_vgg16",
        "fcn_googlenet",
        "deeplabv3_resnet50",
        "deeplabv3plus_resnet50",
        "pspnet_resnet50",
        "lraspp_mobilenet_v3_large",
    )
    methods: tuple[str, ...] = ("kmeans", "ncut")
    size: int = 1024
    largest: int = 8192
    shares: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (4, 1), (8, 1), (4, 2))
    train: tuple[str, ...] = ("unet_small",)
    out: pathlib.Path = pathlib.Path("experiments/results/spatial_memory.json")


def segmented(method: str, image: Any) -> Any:
    if method == "kmeans":
        return kmeans(image.reshape(-1, 3), 8, key=jax.random.key(0)).labels
    return ncut(image, 4, radius=3.0).labels


def row(name: str, program: str, shares: tuple[int, int], size: int) -> dict[str, Any]:
    """The cost on each of the devices that share the height and width of an image."""
    devices = math.prod(shares)
    mesh = parallel.make_mesh(data=1, spatial=shares[0], width=shares[1], devices=jax.devices()[:devices])
    placement = parallel.over_mesh(mesh)
    measured = functools.partial(aot.program_cost, devices=devices, platform="cpu")
    if program == "cluster":
        image = jax.ShapeDtypeStruct((size, size, 3), jnp.float32)
        placed = jax.NamedSharding(mesh, jax.P("spatial", "width"))
        image = jax.ShapeDtypeStruct(image.shape, image.dtype, sharding=placed)
        traced = jax.jit(functools.partial(segmented, name)).trace(image)
        lowered = traced.lower()
        cost = measured(traced, lowered, lowered.compile())
    else:
        model = sized_model(name, 21, (size, size))
        compiler = aot.compile_train if program == "train" else aot.compile_apply
        cost = compiler(model, placement, (size, size), 1, devices=devices, platform="cpu")
    return {
        "model": name,
        "program": program,
        "size": size,
        "shares": shares,
        "temporaries": cost.temporaries,
        "arguments": cost.arguments,
        "collectives": cost.collectives,
    }


def main(config: Config) -> None:
    demand_positive(size=config.size, largest=config.largest)
    rows: list[dict[str, Any]] = []
    programs = [(name, "apply") for name in config.models] + [(name, "train") for name in config.train]
    programs += [(name, "cluster") for name in config.methods]
    for name, program in programs:
        wanted = [(shares, config.size) for shares in config.shares]
        if program == "apply":
            wanted += [(shares, config.largest) for shares in (min(config.shares), max(config.shares))]
        for shares, size in wanted:
            rows.append(row(name, program, shares, size))
            print(rows[-1], flush=True)
            config.out.write_text(json.dumps({**facts(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with one_message():
        main(tyro.cli(Config))
