"""Classical segmentation: pure functions that return NamedTuples."""

from jaxseg.clustering.kmeans import (
    KMeansResult,
    MiniBatchState,
    assign,
    kmeans,
    minibatch_init,
    minibatch_kmeans,
    minibatch_update,
)

__all__ = [
    "KMeansResult",
    "MiniBatchState",
    "assign",
    "kmeans",
    "minibatch_init",
    "minibatch_kmeans",
    "minibatch_update",
]
