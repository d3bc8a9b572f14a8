"""Image and mask files to arrays, whatever their mode, with errors that name the file."""

import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from jaxseg.data.source import DataError

__all__ = ["IMAGE_SUFFIXES", "count_frames", "open_picture", "read_frames", "read_image", "read_mask"]

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
# of what a file may be, whatever its name says: Pillow hands PostScript to Ghostscript, which runs it
_KINDS = (JpegImageFile, PngImageFile, BmpImageFile, TiffImageFile, WebPImageFile, GifImageFile, PpmImageFile)
_FORMATS = tuple(kind.format for kind in (*_KINDS, Jpeg2KImageFile))  # with these, Pillow loads no more of its readers
# further pictures in a JPEG or TIFF are previews, depths or pages
_ANIMATED = (GifImageFile.format, PngImageFile.format, WebPImageFile.format)
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a photograph to RGB, upright by its EXIF orientation.

    Grey is repeated, alpha dropped, palettes looked up. Sixteen bits are scaled to eight, full range to full
    range, where Pillow's own conversion would clip. Raises DataError if the file is not a readable image.
    """
    picture = open_picture(path)
    if picture.mode in _SIXTEEN_BIT or picture.mode == "I":
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(f"{path}: grey values {grey.min()}..{grey.max()}; save it with 8 or 16 bits")
        eight = ((np.arange(2**16) * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(eight[grey][..., None], 3, axis=-1)
    if picture.mode == "F":
        raise DataError(f"{path}: a floating-point image has no stated range; save it with 8 or 16 bits")
    return _rgb(picture)


def _rgb(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow's own path for palettes with transparent entries
    return np.array(picture.convert("RGB"))


def count_frames(path: pathlib.Path) -> int:
    """How many frames an animated GIF, WebP or PNG has; 1 for all else, readable or not."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            return getattr(picture, "n_frames", 1) if picture.format in _ANIMATED else 1
    except Exception:  # what is wrong with it is said by whoever reads it
        return 1


def read_frames(path: pathlib.Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames of an animation, one after the other, as `read_image` has them; of all else the one picture.

    Raises DataError at the first frame that cannot be read, and ends there.
    """
    count = count_frames(path)
    if count == 1:
        yield read_image(path)
        return
    with Image.open(path, formats=_FORMATS) as picture:
        for number in range(count):
            try:
                picture.seek(number)
                frame = _rgb(ImageOps.exif_transpose(picture))
            except Exception as error:  # as in open_picture
                reason = str(error) or type(error).__name__
                raise DataError(f"{path}: frame {number + 1} of {count} cannot be read ({reason})") from None
            yield frame


def read_mask(
    path: pathlib.Path,
    palette: UInt8[np.ndarray, "k 3"] | None = None,
    *,
    advice: str = "list the classes in classes.txt, one `name r g b` a line",
) -> Int[np.ndarray, "h w"]:
    """Decodes a mask to int32 labels: one channel and palette files hold them as they are.

    A colour mask is looked up in `palette` (row = label); without one only a grey picture saved as RGB is
    understood; `advice` is what the error then says to do. Raises DataError for unreadable files, for floats, and for
    colours outside the palette.
    """
    picture = open_picture(path)
    if picture.mode == "F":
        raise DataError(f"{path}: a floating-point mask; save labels as 8-bit or 16-bit integers")
    if picture.mode in ("LA", "PA"):
        return np.array(picture)[..., 0].astype(np.int32)
    if picture.mode in ("1", "L", "P", "I", *_SIXTEEN_BIT):
        return np.array(picture).astype(np.int32)
    colours = np.asarray(picture.convert("RGB")).astype(np.int32)
    if palette is not None:
        return _lookup(path, colours, palette)
    if (colours == colours[..., :1]).all():
        return np.ascontiguousarray(colours[..., 0])
    raise DataError(f"{path}: a colour mask without a palette; {advice}")


def open_picture(path: pathlib.Path) -> Image.Image:
    """A file as Pillow has it, whole and upright. Raises DataError if it is no picture of a kind that is only data."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        reason = "is empty" if path.stat().st_size == 0 else "is not an image that Pillow can read"
        raise DataError(f"{path}: {reason}") from None
    except Exception as error:  # Pillow's readers raise many kinds for damaged files; MemoryError for what one claims
        raise DataError(f"{path}: cannot be read ({str(error) or type(error).__name__})") from None


def _lookup(path: pathlib.Path, colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    packed = (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]
    known = palette.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, packed, sorter=order).clip(max=len(known) - 1)
    labels = order[place].astype(np.int32)
    unknown = known[labels] != packed
    if unknown.any():
        found = np.unique(packed[unknown])
        shown = ", ".join(f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in found[:3].tolist())
        raise DataError(
            f"{path}: {len(found)} colour(s) outside the palette, {shown}{', ...' * (len(found) > 3)};"
            " add them to classes.txt (JPEG masks invent colours: save masks as PNG)"
        )
    return labels
