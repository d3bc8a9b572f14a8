"""Pictures with objects: what their sources give, and how they come to arrays of fixed shape on a canvas.

An example of an object source is "image" uint8 `[H, W, 3]`, "boxes" float32 `[k, 4]` XYXY in its pixels, edges outside
the last one, and "classes" int32 `[k]` from 1. Masks are, where there are any, "masks" bool `[k, H, W]`, or the map
"instances" int32 `[H, W]`, in which object i has the id i + 1. "crowd" bool `[k]` marks regions of several objects
(COCO), "difficult" those that VOC does not ask for, "blank" those whose mask is known to be empty: none is learnt from.
"""

import dataclasses
import warnings
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxseg.data.canvas import fit_geometry, fit_image, fit_map
from jaxseg.data.source import DataError, Example

__all__ = ["ObjectSource", "PaddedObjects", "clean_boxes", "object_masks", "padded_objects"]


@runtime_checkable
class ObjectSource(Protocol):
    """A random-access sequence of examples of this module; `class_names` begin with the background."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def palette(self) -> np.ndarray:
        """uint8 `[K, 3]`."""
        ...

    @property
    def has_masks(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def name(self, index: int) -> str: ...


def clean_boxes(
    boxes: Float[np.ndarray, "k 4"], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "k 4"], Bool[np.ndarray, "k"]]:
    """`boxes` cut to an image of `size` (h, w), and which of them have an area there."""
    h, w = size
    limit = np.array([w, h, w, h], np.float32)
    cut = np.clip(np.asarray(boxes, np.float32).reshape(-1, 4), 0, limit)
    return cut, (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])


def object_masks(example: Example) -> Bool[np.ndarray, "k h w"] | None:
    """The masks of an example, however it has them; None where it has none."""
    if "masks" in example:
        return example["masks"]
    if "instances" in example:
        ids = np.arange(1, len(example["classes"]) + 1)
        return example["instances"] == ids[:, None, None]
    return None


def _learnt(example: Example) -> Bool[np.ndarray, "k"]:
    """Which objects count in training."""
    keep = np.ones(len(example["classes"]), bool)
    for flag in ("crowd", "difficult", "blank"):
        if flag in example:
            keep &= ~example[flag].astype(bool)
    return keep


@dataclasses.dataclass(frozen=True)
class PaddedObjects:
    """The objects of a source in a fixed number of places, on a canvas. See `padded_objects`."""

    source: Any
    size: tuple[int, int]
    max_instances: int

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def palette(self) -> np.ndarray:
        return self.source.palette

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def __getitem__(self, index: int) -> Example:
        example, g = self.source[index], self.max_instances
        original = (example["image"].shape[0], example["image"].shape[1])
        fit = fit_geometry(original, self.size)
        boxes, good = clean_boxes(example["boxes"], original)
        chosen = np.flatnonzero(_learnt(example) & good)
        self._check_classes(index, example["classes"])
        chosen = self._with_pixels(index, example, chosen)
        beyond = max(len(chosen) - g, 0)
        if beyond:
            warnings.warn(
                f"{self.name(index)}: {len(chosen)} objects and max_instances={g}: the {beyond} smallest "
                "have no place; they are background, and the metric instances_beyond counts them",
                stacklevel=2,
            )
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            chosen = np.sort(chosen[np.argsort(-area[chosen], kind="stable")[:g]])
        n = len(chosen)
        down, across = (np.float32(s) / np.float32(o) for s, o in zip(fit.scaled, original, strict=True))
        out: Example = {
            "image": fit_image(example["image"], fit),
            "boxes": np.zeros((g, 4), np.float32),
            "classes": np.zeros(g, np.int32),
            "valid": np.arange(g) < n,
            "beyond": np.array(beyond, np.int32),
            "size": np.array(fit.scaled, np.int32),
        }
        out["boxes"][:n] = boxes[chosen] * np.array([across, down, across, down], np.float32)
        out["classes"][:n] = example["classes"][chosen]
        if self.source.has_masks:
            out["masks"] = np.zeros((g, *self.size), bool)
            if "instances" in example:  # one map to scale, whatever the number of objects
                ids = fit_map(example["instances"], fit, 0)
                out["masks"][:n] = ids == (chosen + 1)[:, None, None]
            else:
                for place, i in enumerate(chosen):
                    out["masks"][place] = fit_map(example["masks"][i], fit, 0)
        return out

    def _with_pixels(self, index: int, example: Example, chosen: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
        """`chosen` without the objects whose mask is empty: a loss would teach that there is nothing in their boxes."""
        if "masks" not in example:
            return chosen
        seen = np.array([example["masks"][i].any() for i in chosen], bool)
        if not seen.all():
            count = int((~seen).sum())
            warnings.warn(f"{self.name(index)}: {count} object(s) not learnt, their masks are empty", stacklevel=3)
        return chosen[seen]

    def _check_classes(self, index: int, classes: Shaped[np.ndarray, "k"]) -> None:
        outside = classes[(classes < 1) | (classes >= self.num_classes)]
        if outside.size:
            raise DataError(
                f"{self.name(index)}: class(es) {', '.join(map(str, np.unique(outside)[:5]))} outside "
                f"1..{self.num_classes - 1}; 0 is the background"
            )


def padded_objects(source: ObjectSource, size: tuple[int, int], max_instances: int) -> PaddedObjects:
    """A source for `train_batches` and `eval_batches` of `size` (H, W), which `jaxseg.train_detection` takes.

    An example has "image" `[H, W, 3]`, the picture scaled to fit at the top left, "size" int32 `[2]`, its (h, w) there,
    "boxes" float32 `[g, 4]`, "classes" int32 `[g]`, "valid" bool `[g]` and, of a source with masks, "masks" bool
    `[g, H, W]`. Boxes are cut to the picture; those without area or with an empty mask, crowds and difficult objects
    have no place. Of more objects than `max_instances`, g, the largest stay: "beyond" int32 counts the others and a
    warning names the picture.

    Raises DataError for classes out of range, ValueError for `max_instances` below 1.
    """
    if max_instances < 1:
        raise ValueError(f"padded_objects needs max_instances of at least 1, got {max_instances}")
    return PaddedObjects(source, size, max_instances)


def warn_left_out(where: str, left_out: list[str], reason: str, *, of: str = "") -> None:
    """One warning for what a listing could not take, or not for all uses, with the count and the first three."""
    if left_out:
        shown = "; ".join(left_out[:3]) + ("; ..." if len(left_out) > 3 else "")
        out = f"left out{' of ' * bool(of)}{of}"
        warnings.warn(f"{where}: {len(left_out)} object(s) {out}, {reason}: {shown}", stacklevel=3)
