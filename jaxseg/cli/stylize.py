"""`jaxseg stylize`: photographs, and films as folders of frames or animations, in the style of paintings."""

import dataclasses
import functools
import itertools
import math
import pathlib
import sys
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import PyTree
from PIL import Image

from jaxseg.cli.arguments import bar, demand_output
from jaxseg.data import IMAGE_SUFFIXES, DataError, count_frames, read_frames, read_image
from jaxseg.models.adain_transfer import ENCODERS, LEAST, AdaINTransfer
from jaxseg.ops.color import match_colors
from jaxseg.runlog import naming
from jaxseg.runs import load_variables
from jaxseg.weights import load_adain_transfer, load_model
from jaxseg.weights.folder import description

__all__ = ["Stylize", "stylize_command", "stylizer"]

SUFFIXES = IMAGE_SUFFIXES | {".gif"}


@dataclasses.dataclass(frozen=True)
class Stylize:
    """Style transfer by AdaIN. Encoder, AdaIN and decoder are one compiled program for each pair of sizes."""

    content: tyro.conf.Positional[pathlib.Path]
    """A photograph, an animated GIF, WebP or PNG, or a folder of them: the frames of a film."""
    styles: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """One painting or several."""
    weights: pathlib.Path | None = None
    """The folder of a run of experiments/style_transfer.py or of `jaxseg.save_model`, or pytorch-AdaIN's decoder.pth
    with --encoder."""
    encoder: pathlib.Path | None = None
    """pytorch-AdaIN's vgg_normalised.pth, or torchvision's VGG-19; a folder has its own."""
    out: pathlib.Path = pathlib.Path("stylized")
    """Folder for NAME.png, of the content's size, and of an animation NAME_01.png and so on, one for each frame."""
    alpha: float = 1.0
    """Strength: 0 keeps the content, 1 is the style."""
    style_weights: tuple[float, ...] = ()
    """A weight for each style, to blend them; equal by default."""
    masks: tuple[pathlib.Path, ...] = ()
    """A black and white mask for each style, of the content's regions and its shape, at any scale; what no mask
    covers is the first's."""
    preserve_color: bool = False
    """Keep the content's colours: the styles' are matched to it first."""
    size: int | None = None
    """Shorter side in pixels of content and styles; by default as they are."""


def _still(path: pathlib.Path, what: str) -> np.ndarray:
    if (count := count_frames(path)) > 1:
        raise DataError(f"{path} is an animation of {count} frames, and a {what} is one picture; save the one to use")
    return read_image(path)


def _scaled(image: np.ndarray, path: pathlib.Path, size: int | None) -> np.ndarray:
    """A file's pixels, `size` on the shorter side. Raises DataError where they are too few to stylize."""
    if size is not None and min(image.shape[:2]) != size:
        h, w = (round(side * size / min(image.shape[:2])) for side in image.shape[:2])
        image = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
    if min(image.shape[:2]) < LEAST:
        few = f"{path} has {image.shape[:2]} pixels, and style transfer needs {LEAST} or more a side"
        raise DataError(f"{few}; enlarge it, for all with --size")
    return image


def _demand_shape(path: pathlib.Path, mask: tuple[int, int], content: pathlib.Path, size: tuple[int, int]) -> None:
    """Raises DataError for a mask of another shape than the content's, beyond a pixel of whichever is smaller."""
    if abs(mask[1] * size[0] - mask[0] * size[1]) > max(sum(mask), sum(size)):
        one, other = ("x".join(map(str, x)) for x in (mask, size))
        raise DataError(
            f"{path} is {one} and {content} {other} (height x width): a mask of another shape would be stretched; "
            f"crop or pad it to the content's, such as {other}"
        )


def _regions(paths: tuple[pathlib.Path, ...], content: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    """Masks `[h, w, k]` that share out every pixel of `content`, which has that size."""
    masks = []
    for path in paths:
        image = _still(path, "mask")
        _demand_shape(path, (image.shape[0], image.shape[1]), content, size)
        grey = Image.fromarray(image).convert("L").resize(size[::-1], Image.Resampling.BILINEAR)
        masks.append(np.asarray(grey, np.float32) / 255)
        if len(masks) > 1 and not masks[-1].any():
            raise DataError(f"{path} is black, which leaves its style no region; paint that white (alpha is not read)")
    masks[0] = np.where(sum(masks) > 0, masks[0], 1)
    if not masks[0].any():
        covered = f"{paths[0]} is black and the others cover all"
        raise DataError(f"{covered}, which leaves its style no region; paint that white")
    return np.stack(masks, -1) / np.sum(masks, 0)[..., None]


def stylizer(model: AdaINTransfer, variables: PyTree, *, preserve_color: bool = False):
    """A compiled `(content, styles, weights, masks, alpha) -> image`, uint8 in and out, of the content's size.

    `content` `[h, w, 3]`; `styles` a tuple of such; `weights` float `[k]` or None; `masks` float `[h, w, k]` or
    None. It compiles once for each combination of sizes.
    """

    @jax.jit
    def run(variables, content, styles, weights, masks, alpha):
        content = content.astype(jnp.float32) / 255
        paintings = [style.astype(jnp.float32) / 255 for style in styles]
        if preserve_color:
            paintings = [match_colors(style, content) for style in paintings]
        statistics = [model.apply(variables, style[None], method="style") for style in paintings]
        image = model.apply(
            variables,
            content[None],
            statistics,
            weights=weights,
            masks=None if masks is None else masks[None],
            alpha=alpha,
            method="transfer",
        )[0, : content.shape[0], : content.shape[1]]
        return jnp.round(jnp.clip(image, 0, 1) * 255).astype(jnp.uint8)

    return functools.partial(run, variables)


def _model(config: Stylize) -> tuple[AdaINTransfer, PyTree]:
    if config.weights is None:
        raise ValueError(
            "no weights: add --weights with the folder of a run of experiments/style_transfer.py, or pytorch-AdaIN's "
            "decoder.pth and --encoder vgg_normalised.pth"
        )
    if not config.weights.exists():
        raise FileNotFoundError(f"--weights {config.weights}: no such file or folder")
    if config.weights.is_dir():
        if config.encoder is not None:
            raise ValueError(f"{config.weights} is a folder with an encoder of its own; leave --encoder out")
        if not (config.weights / "checkpoints").is_dir() and description(config.weights) is not None:
            described = load_model(config.weights)
            if not isinstance(described.model, AdaINTransfer):
                raise ValueError(f"{config.weights} is of {type(described.model).__name__}, not of adain_transfer")
            return described.model, described.variables
        variables, trained = load_variables(config.weights)
        if trained.get("model") != "adain_transfer" or trained.get("encoder") not in list(ENCODERS):
            raise ValueError(f"{config.weights} is a run of {trained.get('model')}, not of adain_transfer")
        return AdaINTransfer(vgg=ENCODERS[trained["encoder"]]), variables
    if config.encoder is None:
        raise ValueError(f"{config.weights} is a decoder: add --encoder vgg_normalised.pth, which it was trained with")
    model = AdaINTransfer()
    return model, load_adain_transfer(model, encoder=config.encoder, decoder=config.weights)


def _contents(path: pathlib.Path) -> dict[pathlib.Path, list[str]]:
    """The files to stylize, and what their frames are written as."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{path}: no image in this folder; looked for {' '.join(sorted(SUFFIXES))}")
    contents: dict[pathlib.Path, list[str]] = {}
    owners: dict[str, pathlib.Path] = {}
    for file in files:
        count = count_frames(file)
        numbers = [f"_{i:0{len(str(count))}}" for i in range(1, count + 1)] if count > 1 else [""]
        contents[file] = [f"{file.stem}{number}.png" for number in numbers]
        for name in contents[file]:
            if (other := owners.setdefault(name, file)) != file:
                raise DataError(f"{other} and {file} would both be written as {name}; rename one")
    return contents


def _look_at_masks(config: Stylize, content: pathlib.Path) -> None:
    """Raises what is wrong with the masks of the first content, before weights load."""
    try:
        first = _scaled(next(read_frames(content)), content, config.size)
    except DataError:
        return  # said where it is its turn
    _regions(config.masks, content, first.shape[:2])


def _check(config: Stylize) -> None:
    if not config.styles:
        raise ValueError("name at least one style image after the content")
    if not 0 <= config.alpha <= 1:
        raise ValueError(f"--alpha lies between 0 (content) and 1 (style), got {config.alpha}")
    for option, given in (("--style-weights", config.style_weights), ("--masks", config.masks)):
        if given and len(given) != len(config.styles):
            raise ValueError(f"{option} takes one for each of the {len(config.styles)} styles, got {len(given)}")
    if config.style_weights and config.masks:
        raise ValueError("--style-weights blends styles everywhere, --masks gives each a region: use one of them")
    if config.style_weights and not (min(config.style_weights) >= 0 and 0 < sum(config.style_weights) < math.inf):
        raise ValueError(f"--style-weights are finite, not negative and not all zero, got {config.style_weights}")
    if config.size is not None and config.size < LEAST:
        raise ValueError(f"--size is a shorter side of at least {LEAST} pixels, got {config.size}")


def stylize_command(config: Annotated[Stylize, tyro.conf.arg(name="")]) -> int:
    """Style transfer: photographs, or the frames of a film, in the style of paintings."""
    _check(config)
    contents = _contents(config.content)
    read = {path.resolve() for path in (*contents, *config.styles, *config.masks)}
    for name in itertools.chain(*contents.values()):
        if (config.out / name).resolve() in read:
            raise DataError(f"{config.out / name} would be written over; give another --out")
    demand_output(config.out)
    styles = tuple(_scaled(_still(path, "style"), path, config.size) for path in config.styles)
    if config.masks:
        _look_at_masks(config, next(iter(contents)))
    model, variables = _model(config)
    run = stylizer(model, variables, preserve_color=config.preserve_color)
    share = [weight / sum(config.style_weights) for weight in config.style_weights]  # float32 has not all of float64
    weights = jnp.array(share) if share else None
    config.out.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    total, count, ended = sum(map(len, contents.values())), 0, 0
    with bar("stylizing") as progress:
        for path, names in contents.items():
            begun, ended = ended, ended + len(names)
            try:
                for done, (name, frame) in enumerate(zip(names, read_frames(path), strict=True), begun + 1):
                    content = _scaled(frame, path, config.size)
                    masks = _regions(config.masks, path, content.shape[:2]) if config.masks else None
                    image = run(content, styles, weights, masks, config.alpha)
                    with naming(config.out / name):
                        Image.fromarray(np.asarray(image)).save(config.out / name)
                    count += 1
                    progress(done, total)
            except DataError as error:
                if len(contents) == 1 and not count:
                    raise
                failures += error.problems
                progress(ended, total)
    print(f"wrote {count} image{'s' * (count != 1)} to {config.out}")
    for problem in failures:
        print(f"skipped {problem}", file=sys.stderr)
    return 1 if failures else 0
