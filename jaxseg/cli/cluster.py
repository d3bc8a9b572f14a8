"""`jaxseg cluster`: segmentation without training."""

import dataclasses
import pathlib
import sys
from typing import Annotated, Literal

import tyro

from jaxseg.cli.arguments import demand_output
from jaxseg.clustering.figure import ClusterConfig, cluster_image
from jaxseg.data import DataError
from jaxseg.runlog import naming

__all__ = ["Cluster", "cluster_command"]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Cluster the pixels of photographs: a label map and a figure for each."""

    paths: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Images."""
    out: pathlib.Path = pathlib.Path("clusters")
    """Folder for NAME_METHOD_labels.png and NAME_METHOD_figure.png."""
    method: Literal["kmeans", "ncut"] = "kmeans"
    """k-means, or Normalized Cut."""
    options: tyro.conf.OmitArgPrefixes[ClusterConfig] = dataclasses.field(default_factory=ClusterConfig)
    """Of the method."""


def cluster_command(config: Annotated[Cluster, tyro.conf.arg(name="")]) -> int:
    """Segment photographs by k-means or Normalized Cut.

    Unreadable files are skipped, named at the end, and make the exit code 1.
    """
    if not config.paths:
        raise ValueError("cluster needs at least one image: jaxseg cluster photo.jpg")
    stems: dict[str, pathlib.Path] = {}
    for path in config.paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; name its images, as {path / '*.jpg'}")
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        if path.stem in stems:
            raise ValueError(f"{stems[path.stem]} and {path} would both write {path.stem}_{config.method}_labels.png")
        stems[path.stem] = path
    demand_output(config.out)
    skipped: list[str] = []
    for path in config.paths:
        try:
            with naming(config.out):
                files = cluster_image(path, config.out, config.method, config.options)
            print(f"{path}: wrote {', '.join(str(f) for f in files.values())}")
        except DataError as error:
            skipped.append(str(error))
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    return 1 if skipped else 0
