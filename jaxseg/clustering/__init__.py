"""Classical segmentation: pure functions that return NamedTuples."""

from jaxseg.clustering.eigen import Eigenpairs, smallest_eigenpairs
from jaxseg.clustering.kmeans import (
    KMeansResult,
    MiniBatchState,
    assign,
    kmeans,
    minibatch_init,
    minibatch_kmeans,
    minibatch_update,
)
from jaxseg.clustering.ncut import (
    NCutResult,
    assoc,
    cut,
    discretise,
    graph,
    is_stable,
    ncut,
    ncut_graph,
    ncut_value,
    splitting_point,
)
from jaxseg.clustering.regions import RegionCutResult, ncut_regions, region_affinity

__all__ = [
    "Eigenpairs",
    "KMeansResult",
    "MiniBatchState",
    "NCutResult",
    "RegionCutResult",
    "assign",
    "assoc",
    "cut",
    "discretise",
    "graph",
    "is_stable",
    "kmeans",
    "minibatch_init",
    "minibatch_kmeans",
    "minibatch_update",
    "ncut",
    "ncut_graph",
    "ncut_regions",
    "ncut_value",
    "region_affinity",
    "smallest_eigenpairs",
    "splitting_point",
]
