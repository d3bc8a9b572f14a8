"""A run of seconds, for tests that kill it, share it among processes, or look at what it leaves.

python tests/tiny_run.py OUT --steps 12 [--devices 4] [--parallel pmap] [--shard data=2,fsdp=2] [--distributed ...]
"""

import argparse
import pathlib
import resource
import sys
import time

import numpy as np

K, SIZE = 3, 16


class TinySource:
    """Twenty pictures whose colour gives the class away, drawn on demand."""

    class_names = ("red", "green", "blue")
    num_classes = K
    palette = np.eye(3, dtype=np.uint8) * 255

    def __len__(self):
        return 20

    def name(self, index):
        return f"tiny/{index}.png"

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = rng.integers(0, K, (4, 4)).repeat(4, 0).repeat(4, 1).astype(np.int32)
        image = (self.palette[label] // 2 + rng.integers(0, 120, (SIZE, SIZE, 3))).astype(np.uint8)
        label[rng.random(label.shape) < 0.1 * (index % 5)] = 255
        return {"image": image, "label": label}


def run(
    out,
    *,
    steps=12,
    batch=8,
    checkpoint_every=2,
    evaluate_every=None,
    placement=None,
    config=None,
    pace=0.0,
    at_step=None,
    source=None,
    held_out=None,
    seed=0,
):
    """Trains a tiny U-Net with batch norm, dropout, augmentation and an average; `at_step(i)` comes before step i."""
    from jaxseg.data import flip
    from jaxseg.fit import Run, evaluation_feed, fit, training_feed
    from jaxseg.losses import cross_entropy
    from jaxseg.models import create_model
    from jaxseg.runs import model_config, model_from_config
    from jaxseg.train import adamw_cosine, supervised

    source = TinySource() if source is None else source
    described = model_config(
        "unet", K, (SIZE, SIZE), source.class_names, source.palette, features=(4, 8), dropout=0.3
    ) | (config or {})
    model = model_from_config(described)
    assert model == create_model("unet", K, features=(4, 8), dropout=0.3)
    fns = supervised(model, loss=cross_entropy, optimizer=adamw_cosine(1e-2, 12), augment=(flip,), ema_decay=0.9)
    feed = training_feed(source, (SIZE, SIZE), batch, seed)

    def paced(start):
        for step, each in enumerate(feed.batches(start), start):
            if at_step is not None:
                at_step(step)
            yield each
            time.sleep(pace)

    return fit(
        fns,
        feed._replace(batches=paced),
        evaluation_feed(held_out or source, (SIZE, SIZE), batch),
        Run(steps, batch, pathlib.Path(out), seed, checkpoint_every, evaluate_every),
        placement=placement,
        config=described,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--parallel", default="jit")
    parser.add_argument("--shard", default="")
    parser.add_argument("--distributed")
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--checkpoint-every", type=int, default=2)
    parser.add_argument("--full-at", type=int, help="the step from which on no file can be written")
    parser.add_argument("--cache", required=True)
    asked = parser.parse_args()

    import jax

    jax.config.update("jax_num_cpu_devices", asked.devices)
    jax.config.update("jax_compilation_cache_dir", asked.cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from jaxseg.cli.arguments import initialize_distributed, placement_of

    if asked.distributed:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        initialize_distributed(asked.distributed)
    placement = placement_of(asked.parallel, asked.shard)

    def fill_the_disk(step):
        if step == asked.full_at:  # stands for a full disk: a write past the limit fails, in any folder
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    options = {"steps": asked.steps, "checkpoint_every": asked.checkpoint_every, "pace": asked.pace}
    result = run(asked.out, placement=placement, at_step=fill_the_disk, **options)
    if result.scores:
        print("final", result.step, result.scores["miou"], result.scores["loss"], flush=True)


if __name__ == "__main__":
    sys.exit(main())
