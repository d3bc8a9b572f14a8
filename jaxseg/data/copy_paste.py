"""Large-scale jitter and copy-paste of objects (Ghiasi et al. 2021), on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxseg.data.augment import Augmentation, Example, scaled
from jaxseg.ops.batch import batch_gather, example_index
from jaxseg.ops.masks import boxes_of_masks

__all__ = ["copy_paste", "paste_objects", "scale_jitter"]


def scale_jitter(size: tuple[int, int], scales: tuple[float, float] = (0.1, 2.0)) -> Augmentation:
    """Scales a picture by a factor uniform in `scales`, then crops or pads it to `size` (H, W).

    Large-scale jitter (Ghiasi et al. 2021, section 3.1), with (0.8, 1.25) the standard one. Factor 1 is the canvas of
    the feed fitted into `size`; a feed that is larger keeps detail for factors above. A crop is uniform in place; a
    picture that is smaller stays at the top left, so that "size" goes on saying what is picture. Raises ValueError for
    scales that are not positive and in order.
    """
    if not 0 < scales[0] <= scales[1]:
        raise ValueError(f"scale_jitter needs 0 < low <= high, got scales={scales}; LSJ is (0.1, 2.0)")

    def augment(key: PRNGKeyArray, example: Example) -> Example:
        scale_key, place_key = jax.random.split(key)
        canvas = example["image"].shape[:2]
        fit = min(size[0] / canvas[0], size[1] / canvas[1])
        scale = fit * jax.random.uniform(scale_key, minval=scales[0], maxval=scales[1])
        picture = scale * example.get("size", jnp.array(canvas)).astype(jnp.float32)
        offset = jnp.minimum(jnp.array(size) - picture, 0) * jax.random.uniform(place_key, (2,))
        moved = scaled(example, size, scale, offset)
        if "size" in example:
            seen = jnp.clip(jnp.round(picture + offset), 1, jnp.array(size))
            moved["size"] = seen.astype(jnp.int32)
        return moved

    return augment


def paste_objects(key: PRNGKeyArray, example: Example, source: Example, chance: float = 0.5) -> Example:
    """`example` with each object of `source` pasted over it with that `chance` (Ghiasi et al. 2021, section 3).

    Pixels are copied, not blended. What is covered loses those pixels from its mask, has the box of what is left, and
    if nothing is left is gone. Objects go to free places; of more than there are places, "beyond" counts those that
    have none and they are not pasted. Raises ValueError for objects without masks.
    """
    if "masks" not in example or "masks" not in source:
        raise ValueError("copy-paste needs masks; of boxes alone, use flip and scale_jitter")
    g = example["valid"].shape[0]
    wanted = source["valid"] & jax.random.bernoulli(key, chance, (g,))
    free = g - jnp.sum(example["valid"])
    taken = wanted & (jnp.cumsum(wanted) <= free)
    pasted = source["masks"] & taken[:, None, None]
    over = pasted.any(0)
    boxes, seen = boxes_of_masks(example["masks"] & ~over & example["valid"][:, None, None])
    uncovered = ~(example["masks"] & over).any((1, 2))  # whose box need not change
    boxes = jnp.where((uncovered & example["valid"])[:, None], example["boxes"], boxes)
    seen |= uncovered & example["valid"]
    both = {
        "boxes": jnp.concatenate([jnp.where(seen[:, None], boxes, 0), source["boxes"]]),
        "classes": jnp.concatenate([example["classes"], source["classes"]]),
        "masks": jnp.concatenate([example["masks"] & ~over, pasted]),
        "valid": jnp.concatenate([seen, taken]),
    }
    order = jnp.argsort(~both["valid"], stable=True)[:g]
    valid = both["valid"][order]
    out = example | {
        "image": jnp.where(over[..., None], source["image"], example["image"]),
        "boxes": jnp.where(valid[:, None], both["boxes"][order], 0),
        "classes": jnp.where(valid, both["classes"][order], 0),
        "masks": both["masks"][order] & valid[:, None, None],
        "valid": valid,
    }
    if "beyond" in example:
        out["beyond"] = example["beyond"] + jnp.sum(wanted & ~taken).astype(jnp.int32)
    if "size" in example:
        out["size"] = jnp.maximum(example["size"], source["size"])
    return out


def copy_paste(key: PRNGKeyArray, examples: Example, chance: float = 0.5) -> Example:
    """Each example of a batch with objects of the next pasted over it; the last takes those of the first.

    Draws from `key` folded with the place in the global batch, and takes the next in the global batch, however it is
    sharded. For `jaxseg.train_detection.detection(..., batch_augment=(copy_paste,))`.
    """
    at = example_index(examples["image"].shape[0])
    everyone = jax.tree.map(batch_gather, examples)
    count = everyone["image"].shape[0]
    following = jax.tree.map(lambda x: x[(at + 1) % count], everyone)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, at)
    return jax.vmap(lambda k, a, b: paste_objects(k, a, b, chance))(keys, examples, following)
