"""The configurations of StyleGAN's Table 1, from ProGAN to the whole, as values."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn

from jaxseg.models.progan import ProGANGenerator, progan_discriminator, stylegan_discriminator
from jaxseg.models.stylegan import StyleGANGenerator

__all__ = ["CONFIGURATIONS", "Configuration"]


class Configuration(NamedTuple):
    """What one row of Karras et al. 2019, Table 1, is made of, with the losses that it has for FFHQ."""

    what: str
    generator: Callable[..., nn.Module]
    discriminator: Callable[..., nn.Module]
    loss: Literal["wgan-gp", "r1"]
    start: int  # resolution


_styled = functools.partial(Configuration, discriminator=stylegan_discriminator, loss="r1", start=8)

CONFIGURATIONS = {
    "A": Configuration("baseline: ProGAN", ProGANGenerator, progan_discriminator, "wgan-gp", 4),
    "B": _styled("A, with filtered doublings and halvings", functools.partial(ProGANGenerator, blur=True)),
    "C": _styled(
        "B, with a mapping network and styles",
        functools.partial(StyleGANGenerator, constant_input=False, noise=False, mixing=0.0),
    ),
    "D": _styled("C, without the latent as input", functools.partial(StyleGANGenerator, noise=False, mixing=0.0)),
    "E": _styled("D, with noise", functools.partial(StyleGANGenerator, mixing=0.0)),
    "F": _styled("E, with mixing regularisation", StyleGANGenerator),
}
