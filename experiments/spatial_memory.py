"""What a device holds of an image whose height is shared out: the compiler's figures, nothing is run.

    JAX_NUM_CPU_DEVICES=8 python experiments/spatial_memory.py --out experiments/results/spatial_memory.json

For each model the forward pass of one image, compiled for 1, 2, 4 and 8 devices: temporary memory a device, arguments
(weights and its share of the image), and the halos that devices exchange. The largest size is compiled for 8 alone.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from jaxseg import aot, parallel
from jaxseg.bench import facts
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
    devices: tuple[int, ...] = (1, 2, 4, 8)
    train: tuple[str, ...] = ("unet_small",)
    out: pathlib.Path = pathlib.Path("experiments/results/spatial_memory.json")


def segmented(method: str, image: Any) -> Any:
    if method == "kmeans":
        return kmeans(image.reshape(-1, 3), 8, key=jax.random.key(0)).labels
    return ncut(image, 4, radius=3.0).labels


def row(name: str, program: str, devices: int, size: int) -> dict[str, Any]:
    """The cost on each of `devices`."""
    placement = parallel.over_mesh(parallel.make_mesh(data=1, spatial=devices, devices=jax.devices()[:devices]))
    measured = functools.partial(aot.program_cost, devices=devices, platform="cpu")
    if program == "cluster":
        image = jax.ShapeDtypeStruct((size, size, 3), jnp.float32)
        mesh = parallel.make_mesh(data=1, spatial=devices, devices=jax.devices()[:devices])
        image = jax.ShapeDtypeStruct(image.shape, image.dtype, sharding=jax.NamedSharding(mesh, jax.P("spatial")))
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
        "devices": devices,
        "temporaries": cost.temporaries,
        "arguments": cost.arguments,
        "collectives": cost.collectives,
    }


def main(config: Config) -> None:
    rows: list[dict[str, Any]] = []
    programs = [(name, "apply") for name in config.models] + [(name, "train") for name in config.train]
    programs += [(name, "cluster") for name in config.methods]
    for name, program in programs:
        wanted = [(n, config.size) for n in config.devices]
        if program == "apply":
            wanted.append((max(config.devices), config.largest))
        for devices, size in wanted:
            rows.append(row(name, program, devices, size))
            print(rows[-1], flush=True)
            config.out.write_text(json.dumps({**facts(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config))
