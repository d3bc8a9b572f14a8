"""`jaxseg cluster` on photographs of every kind: what it writes, and what it refuses by name."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.cli import main
from jaxseg.clustering.figure import ClusterConfig, cluster_image

RGB = np.kron([[0, 1]], np.ones((8, 5)))[..., None] * [150, -40, 90] + [60, 120, 80]
RGB = (RGB + np.random.default_rng(0).integers(0, 9, RGB.shape)).astype(np.uint8)
ALPHA = np.full((8, 10, 1), 255, np.uint8)
QUICK = {"kmeans": {}, "ncut": {"radius": 2.0}}
KINDS = {
    "rgb": RGB,
    "grey": RGB[..., 0],
    "alpha": np.concatenate([RGB, ALPHA], axis=-1),
    "16 bit": RGB[..., 0].astype(np.uint16) * 257,
    "constant": np.full((8, 10, 3), 90, np.uint8),
    "one pixel": RGB[:1, :1],
}


def stored(folder, pixels):
    path = folder / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("method", ["kmeans", "ncut"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_photograph_is_clustered(kind, method, tmp_path):
    pixels = KINDS[kind]
    k = min(2, pixels.shape[0] * pixels.shape[1])
    files = cluster_image(stored(tmp_path, pixels), tmp_path / "out", method, ClusterConfig(k, **QUICK[method]))
    labels = np.asarray(Image.open(files["labels"]))
    assert labels.shape == pixels.shape[:2]
    assert files["figure"].stat().st_size > 1000
    if kind not in ("constant", "one pixel"):
        ridge = 1 if method == "ncut" else 0  # pixels on a contour's ridge may go to either side
        assert (labels[:, : 5 - ridge] == labels[0, 0]).all()
        assert (labels[:, 5 + ridge :] == 1 - labels[0, 0]).all()


def test_more_segments_than_pixels_are_refused_with_the_file(tmp_path):
    path = stored(tmp_path, RGB)
    for method in ("kmeans", "ncut"):
        with pytest.raises(ValueError, match=r"photo\.png.*from 1 to the number of (points|pixels) 80, got 81"):
            cluster_image(path, tmp_path, method, ClusterConfig(81, **QUICK[method]))


def test_non_finite_pixels_are_refused_with_the_file(tmp_path):
    path = tmp_path / "photo.tiff"
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(path)
    with pytest.raises(ValueError, match=r"photo\.tiff.*finite image, got 16"):
        cluster_image(path, tmp_path, "ncut")


def test_a_large_photograph_is_reduced_and_its_labels_enlarged(tmp_path):
    path = stored(tmp_path, RGB.repeat(3, 0).repeat(3, 1))
    files = cluster_image(path, tmp_path, "kmeans", ClusterConfig(2, longest_side=10))
    assert np.asarray(Image.open(files["labels"])).shape == (24, 30)


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["cluster", str(stored(tmp_path, RGB)), "--out", str(tmp_path), "--num-segments", "2"])
    assert ended.value.code == 0
    assert "photo_kmeans_figure.png" in capsys.readouterr().out


def test_a_photograph_is_turned_upright(tmp_path):
    turned = Image.fromarray(RGB)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held sideways
    turned.save(tmp_path / "photo.jpg", exif=exif)
    files = cluster_image(tmp_path / "photo.jpg", tmp_path / "out", "kmeans", ClusterConfig(2))
    assert Image.open(files["labels"]).size == (RGB.shape[0], RGB.shape[1])


def test_a_broken_photograph_is_skipped_by_name_and_the_others_are_clustered(tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good = stored(tmp_path, RGB)
    with pytest.raises(SystemExit) as ended:
        main(["cluster", str(tmp_path / "broken.png"), str(good), "--out", str(tmp_path), "--num-segments", "2"])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "photo_kmeans_labels.png" in said.out
    assert said.err.count("broken.png") == 1


def test_commands_that_would_write_nothing_or_one_over_another_are_refused(tmp_path, capsys):
    first = stored(tmp_path, RGB)
    (tmp_path / "other").mkdir()
    second = stored(tmp_path / "other", RGB)
    for arguments, said in (
        ([], "at least one image"),
        ([str(first), str(second)], "would both write photo_kmeans_labels.png"),
        ([str(first), "--longest-side", "0"], "longest_side of 1 pixel or more, got 0"),
        ([str(first), "--radius", "10"], "radius belongs to ncut, and the method is kmeans"),
        ([str(first), "--method", "ncut", "--texture-weight", "1"], "texture_weight belongs to kmeans"),
        ([str(tmp_path)], "is a folder; name its images"),
        ([str(first), str(tmp_path / "none.png")], "none.png: no such file"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["cluster", *arguments, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
