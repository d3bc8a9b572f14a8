"""Classical segmentation: pure functions that return NamedTuples."""

from jaxseg.clustering.cuts import assoc, cut, is_stable, ncut_value, splitting_point
from jaxseg.clustering.eigen import Eigenpairs, smallest_eigenpairs
from jaxseg.clustering.hierarchy import Hierarchy, hierarchy, segmentation_at, segmentation_of
from jaxseg.clustering.kmeans import KMeansResult, assign, kmeans
from jaxseg.clustering.minibatch import MiniBatchState, minibatch_init, minibatch_kmeans, minibatch_update
from jaxseg.clustering.ncut import NCutResult, discretise, graph, ncut, ncut_graph
from jaxseg.clustering.regions import RegionCutResult, ncut_regions, region_affinity

__all__ = [
    "Eigenpairs",
    "Hierarchy",
    "KMeansResult",
    "MiniBatchState",
    "NCutResult",
    "RegionCutResult",
    "assign",
    "assoc",
    "cut",
    "discretise",
    "graph",
    "hierarchy",
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
    "segmentation_at",
    "segmentation_of",
    "smallest_eigenpairs",
    "splitting_point",
]
