"""Every mode of image and mask that people keep, and the files that are none."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import DataError, count_frames, read_frames, read_image, read_mask, voc_palette

GREY = np.array([[0, 100, 255], [1, 2, 3]], np.uint8)


def save(tmp_path, picture, name="a.png", **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK"])
def test_image_modes_become_rgb(tmp_path, mode):
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[:2] = 255  # black and white survive every mode
    path = save(tmp_path, Image.fromarray(rgb).convert(mode), "a.tif" if mode == "CMYK" else "a.png")
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, rgb)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "tif", "webp"])
def test_image_formats(tmp_path, suffix):
    path = save(tmp_path, Image.fromarray(np.full((16, 8, 3), 90, np.uint8)), f"a.{suffix}")
    assert np.abs(read_image(path).astype(int) - 90).max() <= 3


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    wide = np.array([[0, 257, 32768, 65535]], np.uint16)
    image = read_image(save(tmp_path, Image.fromarray(wide)))
    np.testing.assert_array_equal(image[0, :, 0], [0, 1, 128, 255])
    assert image.shape == (1, 4, 3)


def test_exif_orientation_turns_the_image_upright(tmp_path):
    rgb = np.zeros((8, 16, 3), np.uint8)
    rgb[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter clockwise
    image = read_image(save(tmp_path, Image.fromarray(rgb), exif=exif))
    assert image.shape == (16, 8, 3)
    assert (image[:8] == 255).all()
    assert (image[8:] == 0).all()


def test_transparent_palette_image(tmp_path):
    picture = Image.fromarray(np.zeros((2, 2), np.uint8), "L").convert("P")
    picture.putpalette([10, 20, 30] * 256)
    path = save(tmp_path, picture, transparency=0)
    np.testing.assert_array_equal(read_image(path)[0, 0], [10, 20, 30])


def test_index_palette_and_wide_masks_keep_their_labels(tmp_path):
    as_palette = Image.fromarray(GREY).copy()
    as_palette.putpalette(voc_palette(256).tobytes())
    assert as_palette.mode == "P"
    for picture in (Image.fromarray(GREY), as_palette, Image.fromarray(GREY.astype(np.uint16))):
        mask = read_mask(save(tmp_path, picture))
        assert mask.dtype == np.int32
        np.testing.assert_array_equal(mask, GREY)
    assert read_mask(save(tmp_path, Image.fromarray(np.full((2, 2), 300, np.uint16)))).max() == 300
    np.testing.assert_array_equal(read_mask(save(tmp_path, Image.fromarray(GREY).convert("LA"))), GREY)


def test_colour_masks_are_looked_up(tmp_path):
    palette = np.array([[9, 9, 9], [200, 0, 0], [0, 200, 0], [255, 255, 255]], np.uint8)
    labels = np.array([[3, 0], [2, 1]])
    for mode in ("RGB", "RGBA"):
        path = save(tmp_path, Image.fromarray(palette[labels]).convert(mode))
        np.testing.assert_array_equal(read_mask(path, palette), labels)
    grey = save(tmp_path, Image.fromarray(np.repeat(GREY[..., None], 3, -1)))
    np.testing.assert_array_equal(read_mask(grey), GREY)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_frames_of_an_animation(tmp_path, name):
    frames = [Image.new("RGB", (6, 4), (i * 80, 0, 255 - i * 80)) for i in range(3)]
    path = save(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    assert count_frames(path) == 3
    for read, frame in zip(read_frames(path), frames, strict=True):
        assert read.shape == (4, 6, 3)
        assert np.abs(read - np.asarray(frame, int)).max() < 8
    still = save(tmp_path, frames[0], f"still-{name}")
    (only,) = read_frames(still)
    np.testing.assert_array_equal(only, read_image(still))


def test_what_is_no_animation_has_one_frame(tmp_path):
    frames = [Image.new("RGB", (6, 4), (i * 80, 0, 0)) for i in range(3)]
    several = {"save_all": True, "append_images": frames[1:]}
    assert count_frames(save(tmp_path, frames[0], "pages.tif", **several)) == 1
    assert count_frames(save(tmp_path, frames[0], "phone.jpg", format="MPO", **several)) == 1
    assert count_frames(tmp_path / "none.gif") == 1


def test_a_frame_that_is_cut_is_named(tmp_path):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(3)]
    path = save(tmp_path, frames[0], "cut.png", save_all=True, append_images=frames[1:])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reading = read_frames(path)
    np.testing.assert_array_equal(next(reading), np.asarray(frames[0]))
    with pytest.raises(DataError, match=r"cut\.png: frame 2 of 3 cannot be read"):
        next(reading)


def test_bad_files_are_named(tmp_path):
    palette = np.array([[0, 0, 0]], np.uint8)
    red = save(tmp_path, Image.fromarray(np.full((2, 2, 3), (200, 0, 1), np.uint8)), "red.png")
    with pytest.raises(DataError, match=r"red\.png.*without a palette.*classes\.txt"):
        read_mask(red)
    with pytest.raises(DataError, match=r"red\.png: 1 colour.*\(200, 0, 1\).*add them to classes\.txt"):
        read_mask(red, palette)
    floats = save(tmp_path, Image.fromarray(np.zeros((2, 2), np.float32)), "f.tif")
    with pytest.raises(DataError, match=r"f\.tif.*floating-point.*8 or 16 bits"):
        read_image(floats)
    with pytest.raises(DataError, match=r"f\.tif.*floating-point"):
        read_mask(floats)
    rng = np.random.default_rng(0)
    whole = save(tmp_path, Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), "cut.png")
    whole.write_bytes(whole.read_bytes()[:4000])
    with pytest.raises(DataError, match=r"cut\.png: cannot be read"):
        read_image(whole)
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: is empty"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: is not an image"):
        read_image(tmp_path / "text.png")


def test_a_file_that_claims_more_than_there_is_memory_is_named(tmp_path):
    path = save(tmp_path, Image.fromarray(np.zeros((16, 16, 3), np.uint8)), "a.jp2")
    whole = path.read_bytes()
    at = whole.index(b"jp2h")
    path.write_bytes(whole[: at - 4] + (1).to_bytes(4, "big") + b"jp2h" + (2**62).to_bytes(8, "big") + whole[at + 4 :])
    with pytest.raises(DataError, match=r"a\.jp2: cannot be read \(MemoryError\)"):
        read_image(path)


def test_sixteen_bits_take_little_more_memory_than_the_picture(tmp_path):
    """So that a small file which claims as much as Pillow allows does not take gigabytes."""
    path = save(tmp_path, Image.fromarray(np.zeros((500, 400), np.uint16)))
    tracemalloc.start()
    read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 500 * 400 * 10
    tracemalloc.stop()
