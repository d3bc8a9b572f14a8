"""Anyone's folder of images and masks as a source.

Layouts, found by looking:
    train/images train/labels        a folder for each split
    images/train labels/train        a split in each folder
    images labels                    no split on disk: a stated fraction of the names is the validation part
`labels` may also be called masks or annotations. An image and its mask share a stem. The root may hold a
classes.txt: one class a line, `name` or, for colour masks and for figures, `name r g b`.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxseg.data.images import IMAGE_SUFFIXES, read_image, read_mask
from jaxseg.data.source import IGNORE, DataError, Example, voc_palette

__all__ = ["FolderSource", "folder", "folder_splits"]

_IMAGE_DIRS = ("images", "image", "imgs", "img")
_LABEL_DIRS = ("labels", "masks", "annotations", "label", "mask")
_MASK_SUFFIXES = frozenset((".png", ".bmp", ".tif", ".tiff", ".webp"))
_VALIDATION = ("val", "validation", "valid")


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Pairs of image and mask files; decodes the pair that is asked for. See `jaxseg.data.Source`.

    `problems` are the findings of the listing (files without partner, twice the same stem) for `check_data`.
    """

    pairs: tuple[tuple[pathlib.Path, pathlib.Path], ...]
    class_names: tuple[str, ...]
    palette: np.ndarray
    colour_masks: np.ndarray | None = None  # palette by which colour masks are read, ignored label included
    ignore_label: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def __getitem__(self, index: int) -> Example:
        """Raises DataError, naming the file, if a file is unreadable or a mask does not fit its image."""
        image_path, mask_path = self.pairs[index]
        image = read_image(image_path)
        label = read_mask(mask_path, self.colour_masks)
        if label.shape != image.shape[:2]:
            raise DataError(f"{mask_path}: mask is {label.shape}, its image {image.shape[:2]} (h, w)")
        if self.ignore_label is not None:
            label[label == self.ignore_label] = IGNORE
        outside = label[((label < 0) | (label >= self.num_classes)) & (label != IGNORE)]
        if outside.size:
            shown = ", ".join(map(str, np.unique(outside)[:5]))
            raise DataError(
                f"{mask_path}: label(s) {shown} outside 0..{self.num_classes - 1} on {outside.size}"
                " pixels; name every class in classes.txt, or say which label to ignore"
            )
        return {"image": image, "label": label}


def folder_splits(root: str | os.PathLike) -> tuple[str, ...]:
    """Names of the splits that `root` holds, or ("train", "val") where it holds no splits on disk."""
    splits = _layout(pathlib.Path(root))
    return ("train", "val") if set(splits) == {""} else tuple(sorted(splits))


def folder(
    root: str | os.PathLike,
    split: str,
    *,
    class_names: Sequence[str] | None = None,
    palette: Sequence[tuple[int, int, int]] | None = None,
    ignore_label: int | None = None,
    validation_fraction: float = 0.1,
    strict: bool = True,
) -> FolderSource:
    """Lists one split of a folder, sorted by name.

    `class_names` and `palette` (r, g, b by label) replace classes.txt. Where neither names the classes, the
    masks of all splits are read once and the largest label counts them. `ignore_label` becomes 255, which is
    always ignored; as the last label it is not counted as a class.
    `validation_fraction` is for a folder without splits: a name goes to "val" by its hash, so adding files
    moves none.
    Raises DataError for a split or layout that does not exist and, if `strict`, for files without partner;
    `check_data` wants those in its one report and asks `strict=False`.
    """
    root = pathlib.Path(root)
    splits = _layout(root)
    image_dir, label_dir = _choose(root, splits, split)
    pairs, problems = _pair(image_dir, label_dir)
    if set(splits) == {""}:
        validation = split in _VALIDATION
        pairs = [p for p in pairs if (_unit_hash(p[0].stem) < validation_fraction) == validation]
        if not pairs and not problems:
            raise DataError(f"{root}: no example falls into '{split}' at validation_fraction={validation_fraction}")
    if not pairs and not problems:
        raise DataError(f"{image_dir}: empty folder; looked for {' '.join(sorted(IMAGE_SUFFIXES))}")
    if problems and (strict or not pairs):
        raise DataError(*problems, heading=f"{root} ({split}): {len(problems)} problem(s)")

    listed_names, listed_palette = _read_classes(root / "classes.txt")
    names = tuple(class_names) if class_names is not None else listed_names
    colours = np.array(palette, np.uint8).reshape(-1, 3) if palette is not None else listed_palette
    if names is None:
        names = tuple(f"class {k}" for k in range(len(colours))) if colours is not None else None
    if names is None:
        masks = [mask for dirs in splits.values() for _, mask in _pair(*dirs)[0]]
        names = tuple(f"class {k}" for k in range(_count_classes(root, masks, ignore_label)))
    elif ignore_label is not None and ignore_label == len(names) - 1:
        names = names[:-1]
    if len(names) > IGNORE:
        raise DataError(f"{root}: {len(names)} classes, and label 255 is ignored: there can be {IGNORE}, 0 to 254")
    shown = voc_palette(len(names)) if colours is None else colours[: len(names)]
    if len(shown) < len(names):
        raise DataError(f"{root}: {len(names)} classes but {len(shown)} colours; give each class a colour")
    return FolderSource(tuple(pairs), names, shown, colours, ignore_label, tuple(problems))


def _layout(root: pathlib.Path) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """Split name -> (image folder, label folder); the name is "" where the disk knows no splits."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    splits = {}
    for child in sorted(root.iterdir()):
        if child.is_dir() and (dirs := _image_and_label_dirs(child)):
            splits[child.name] = dirs
    if not splits and (dirs := _image_and_label_dirs(root)):
        images, labels = dirs
        for child in sorted(images.iterdir()):
            if child.is_dir():
                splits[child.name] = child, labels / child.name
        splits = splits or {"": dirs}
    if not splits:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:10]) or "nothing"
        raise DataError(
            f"{root}: found {found}; expected train/images and train/labels, or images/train and"
            f" labels/train, or images and labels (also called {', '.join(_LABEL_DIRS[1:3])})"
        )
    return splits


def _image_and_label_dirs(root: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path] | None:
    images = next((root / d for d in _IMAGE_DIRS if (root / d).is_dir()), None)
    labels = next((root / d for d in _LABEL_DIRS if (root / d).is_dir()), None)
    return (images, labels) if images and labels else None


def _choose(
    root: pathlib.Path, splits: dict[str, tuple[pathlib.Path, pathlib.Path]], split: str
) -> tuple[pathlib.Path, pathlib.Path]:
    if set(splits) == {""}:
        if split == "train" or split in _VALIDATION:
            return splits[""]
        raise DataError(f"{root}: no split '{split}'; a folder without splits on disk has train and val")
    for name in (split, *(_VALIDATION if split in _VALIDATION else ())):
        if name in splits:
            return splits[name]
    raise DataError(f"{root}: no split '{split}'; there is {', '.join(sorted(splits))}")


def _pair(
    image_dir: pathlib.Path, label_dir: pathlib.Path
) -> tuple[list[tuple[pathlib.Path, pathlib.Path]], list[str]]:
    images = _by_stem(image_dir, IMAGE_SUFFIXES)
    masks = _by_stem(label_dir, _MASK_SUFFIXES)
    problems = [
        f"{same[0]}: the stem is there {len(same)} times ({', '.join(p.name for p in same)}); keep one"
        for files in (images, masks)
        for same in files.values()
        if len(same) > 1
    ]
    problems += [f"{images[s][0]}: missing mask, none of that name in {label_dir}" for s in images.keys() - masks]
    problems += [f"{masks[s][0]}: missing image, none of that name in {image_dir}" for s in masks.keys() - images]
    return [(images[s][0], masks[s][0]) for s in sorted(images.keys() & masks)], sorted(problems)


def _by_stem(directory: pathlib.Path, suffixes: frozenset[str]) -> dict[str, list[pathlib.Path]]:
    files = collections.defaultdict(list)
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            if path.suffix.lower() in suffixes and not path.name.startswith("."):
                files[path.stem].append(path)
    return files


def _unit_hash(stem: str) -> float:
    """A number in [0, 1) that belongs to the name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:4], "big") / 2**32


def _read_classes(path: pathlib.Path) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    """Names, and colours uint8 `[K, 3]` if every line ends in three numbers."""
    if not path.is_file():
        return None, None
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not in UTF-8 ({error}); save it so") from None
    coloured = [len(words) > 3 and all(w.isdecimal() and len(w) < 10 for w in words[-3:]) for words in lines]
    if not lines:
        raise DataError(f"{path}: no class; write one name a line")
    if not any(coloured):
        return tuple(" ".join(words) for words in lines), None
    if not all(coloured):
        raise DataError(f"{path}: line {coloured.index(False) + 1} has no colour; write `name r g b` on each")
    colours = np.array([[int(w) for w in words[-3:]] for words in lines])
    if colours.max() > 255:
        raise DataError(f"{path}: a colour above 255; write `name r g b` with 0..255")
    if len(np.unique(colours, axis=0)) < len(colours):
        raise DataError(f"{path}: two classes share a colour; give each its own")
    return tuple(" ".join(words[:-3]) for words in lines), colours.astype(np.uint8)


def _count_classes(root: pathlib.Path, masks: Sequence[pathlib.Path], ignore_label: int | None) -> int:
    def largest(path: pathlib.Path) -> int:
        try:
            label = read_mask(path)
        except DataError:
            return -1  # check_data and the source itself name this file
        return int(label[(label != IGNORE) & (label != ignore_label)].max(initial=-1))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        top = max(pool.map(largest, masks), default=-1)
    if top < 1:
        held = "no readable label" if top < 0 else "only label 0 (and 255, which is ignored)"
        raise DataError(
            f"{root}: the masks hold {held}; masks need at least labels 0 and 1: write the foreground"
            " as 1, not 255, or name the classes in classes.txt"
        )
    if top > IGNORE:
        raise DataError(f"{root}: labels go up to {top}: instance ids? Classes are 0..254, 255 is ignored")
    return top + 1
