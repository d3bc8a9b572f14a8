"""Objects of PASCAL VOC (Everingham et al. 2010): one XML a picture, with boxes and what is difficult."""

import dataclasses
import os
import pathlib
import xml.etree.ElementTree as ElementTree

import numpy as np

from jaxseg.data.images import read_image
from jaxseg.data.objects import clean_boxes
from jaxseg.data.official import VOC_CLASSES
from jaxseg.data.source import DataError, Example, voc_palette

__all__ = ["VocObjects", "voc_objects"]


@dataclasses.dataclass(frozen=True)
class VocObjects:
    """Pictures of VOC with their boxes. See `jaxseg.data.objects` and `voc_objects`."""

    pairs: tuple[tuple[pathlib.Path, pathlib.Path], ...]
    class_names: tuple[str, ...]

    has_masks = False

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def palette(self) -> np.ndarray:
        return voc_palette(self.num_classes)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def __getitem__(self, index: int) -> Example:
        """Raises DataError, naming the file, if one is unreadable, or an object's class or box is not known."""
        image_path, xml_path = self.pairs[index]
        image = read_image(image_path)
        boxes, classes, difficult = _objects(xml_path, {_key(n): c for c, n in enumerate(self.class_names) if c})
        cut, good = clean_boxes(boxes, (image.shape[0], image.shape[1]))
        if not good.all():
            raise DataError(
                f"{xml_path}: box {boxes[~good][0].tolist()} (XYXY) has no area in {image.shape[:2]} (h, w)"
            )
        return {"image": image, "boxes": cut, "classes": classes, "difficult": difficult}


def _key(name: str) -> str:
    return name.replace(" ", "").lower()  # the XML writes diningtable, pottedplant, tvmonitor


def _objects(path: pathlib.Path, classes: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:  # its encoding among them
        raise DataError(f"{path}: not an annotation of VOC ({error})") from None
    boxes, found, difficult = [], [], []
    for entry in root.iter("object"):
        name = entry.findtext("name", "")
        if _key(name) not in classes:
            raise DataError(f"{path}: object of class {name!r}; there is {', '.join(classes)}")
        box = entry.find("bndbox")
        try:
            assert box is not None
            x0, y0, x1, y1 = (float(box.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax"))
        except (AssertionError, ValueError):
            raise DataError(f"{path}: object {name!r} has no bndbox of four numbers") from None
        boxes.append((x0 - 1, y0 - 1, x1, y1))  # VOC counts pixels from 1, both ends inside
        found.append(classes[_key(name)])
        difficult.append(entry.findtext("difficult", "0").strip() == "1")
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(found, np.int32), np.array(difficult, bool)


def voc_objects(
    data: str | os.PathLike, split: str, year: int = 2007, *, class_names: tuple[str, ...] = VOC_CLASSES
) -> VocObjects:
    """A split of VOC's detection task: "train", "val", "trainval" or, of 2007, "test"; 20 classes.

    `data` holds VOCdevkit/VOC`year`, or is that folder, or has its layout (JPEGImages, Annotations,
    ImageSets/Main/`split`.txt) with classes of its own, `class_names`, the background first. Boxes are XYXY with edges
    outside the last pixel. Raises DataError that says what to download, or names the files that are missing.
    """
    data = pathlib.Path(data)
    roots = (data, data / f"VOC{year}", data / "VOCdevkit" / f"VOC{year}")
    root = next((r for r in roots if (r / "Annotations").is_dir() and (r / "JPEGImages").is_dir()), None)
    if root is None:
        raise DataError(
            f"{data} does not hold PASCAL VOC {year}: download its archives (host.robots.ox.ac.uk/pascal/VOC) and "
            f"unpack them in {data}, so that there is {roots[-1] / 'Annotations'}"
        )
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        there = sorted(p.stem for p in listing.parent.glob("*.txt") if "_" not in p.stem)
        raise DataError(f"{listing}: no such split; there is {', '.join(there) or 'none'}")
    names = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
    pairs = tuple((root / "JPEGImages" / f"{n}.jpg", root / "Annotations" / f"{n}.xml") for n in names)
    missing = [str(path) for pair in pairs for path in pair if not path.is_file()]
    if missing:
        raise DataError(*missing, heading=f"{root} ({split}): {len(missing)} file(s) missing; was all of it unpacked?")
    if not pairs:
        raise DataError(f"{listing}: no picture")
    return VocObjects(pairs, tuple(class_names))
