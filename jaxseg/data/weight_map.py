"""The border weight map of U-Net: pixels between two touching cells count many times."""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int

from jaxseg.data.source import IGNORE, Example, Source

__all__ = ["WithBorderWeights", "border_weights", "label_instances", "with_border_weights"]


def border_weights(
    instances: Int[np.ndarray, "h w"], w0: float = 10.0, sigma: float = 5.0
) -> Float32[np.ndarray, "h w"]:
    """w = 1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) in the background (Ronneberger et al. 2015, equation 2).

    d1 and d2 are the Euclidean distances in pixels to the nearest and the second nearest instance; inside
    instances (ids above 0) w = 1. The paper's class weight w_c is left to the loss. Where d2 exceeds 6 sigma
    the second term is below float32 rounding of 1 and taken as 0.
    """
    from scipy import ndimage  # which jax itself requires; slow to import

    reach = int(np.ceil(6 * sigma)) + 1
    first = np.full(instances.shape, np.inf)
    second = np.full(instances.shape, np.inf)
    for k, box in enumerate(ndimage.find_objects(instances), start=1):
        if box is None:
            continue
        near = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(instances[near] != k)
        second[near] = np.minimum(second[near], np.maximum(first[near], distance))
        first[near] = np.minimum(first[near], distance)
    exponent = -np.square(first + second) / (2 * sigma**2)
    return np.where(instances == 0, 1 + w0 * np.exp(exponent), 1).astype(np.float32)


def label_instances(label: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Instance ids from semantic labels: 8-connected regions of each class but 0 and 255."""
    from scipy import ndimage

    instances = np.zeros(label.shape, np.int32)
    for c in np.unique(label):
        if c not in (0, IGNORE):
            regions, _ = ndimage.label(label == c, np.ones((3, 3)))
            instances[regions > 0] = regions[regions > 0] + instances.max()
    return instances


@dataclasses.dataclass(frozen=True)
class WithBorderWeights:
    """A source whose examples also hold "weight" float32 `[H, W]`; all else is the given source's."""

    source: Source
    w0: float
    sigma: float

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def palette(self) -> np.ndarray:
        return self.source.palette

    @property
    def problems(self) -> tuple[str, ...]:
        return getattr(self.source, "problems", ())

    def name(self, index: int) -> str:
        return self.source.name(index)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        instances = example.get("instances")
        if instances is None:
            instances = label_instances(example["label"])
        return example | {"weight": border_weights(instances, self.w0, self.sigma)}


def with_border_weights(source: Source, w0: float = 10.0, sigma: float = 5.0) -> WithBorderWeights:
    """Adds to each example the `border_weights` of its "instances", or else of its `label_instances`."""
    return WithBorderWeights(source, w0, sigma)
