"""Hand-made folders in the layouts of the benchmarks' owners, a few pictures each."""

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (12, 16)


def draw(path, labels=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*SIZE, 3), np.uint8) if labels is None else np.asarray(labels, np.uint8)
    Image.fromarray(pixels).save(path)


def blocks(values, seed=0):
    """A map with every one of `values` in it."""
    labels = np.random.default_rng(seed).choice(values, SIZE)
    labels.flat[: len(values)] = values
    return labels


def make_voc(root):
    """VOC with 2 + 2 images, and SBD with one of each and three more; returns the two folders to name."""
    home, extra = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    (home / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, names in (("train", "ab"), ("val", "cd"), ("trainval", "abcd")):
        (home / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for i, name in enumerate("abcd"):
        draw(home / "JPEGImages" / f"{name}.jpg", seed=i)
        draw(home / "SegmentationClass" / f"{name}.png", blocks([*range(21), 255], i))
    for name in "bcefg":
        draw(extra / "img" / f"{name}.jpg")
        (extra / "cls").mkdir(exist_ok=True)
        savemat(extra / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": blocks(range(21)).astype(np.uint8)}})
    (extra / "train.txt").write_text("b\nc\ne\n")
    (extra / "val.txt").write_text("f\ng\n")
    return root, root


def make_cityscapes(root):
    for split, towns in (("train", ("aachen", "bremen")), ("val", ("lindau",))):
        for town in towns:
            stem = f"{town}_000000_000019"
            draw(root / "leftImg8bit" / split / town / f"{stem}_leftImg8bit.png")
            draw(root / "gtFine" / split / town / f"{stem}_gtFine_labelIds.png", blocks(range(34)))
    return root


def make_ade20k(root):
    home = root / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for i in (1, 2):
            draw(home / "images" / split / f"ADE_{short}_0000000{i}.jpg")
            draw(home / "annotations" / split / f"ADE_{short}_0000000{i}.png", blocks(range(151)))
    names = "".join(f"{c + 1}\t0.1\t10\t1\tthing{c}, other name\n" for c in range(150))
    (home / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + names)
    return root


def make_pets(root):
    for split, names in (("trainval", ("Abyssinian_1", "beagle_2")), ("test", ("Bombay_3",))):
        for name in names:
            draw(root / "images" / f"{name}.jpg")
            draw(root / "annotations" / "trimaps" / f"{name}.png", blocks([1, 2, 3]))
        (root / "annotations" / f"{split}.txt").write_text("#Image CLASS-ID\n" + "".join(f"{n} 1 1 1\n" for n in names))
    return root


def make_camvid(root, images, labels):
    """Two pictures of each split, in folders of those names."""
    for split in ("train", "val", "test"):
        for name in "ab":
            draw(root / images.format(split=split) / f"{name}.png")
            draw(root / labels.format(split=split) / f"{name}.png", blocks(range(12)))
    return root
