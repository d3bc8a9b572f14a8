"""Published checkpoints: files to named arrays, and named arrays to Flax variables."""

from jaxseg.weights.adain import load_adain_transfer, normalize_encoder
from jaxseg.weights.convert import LoadedModel, convert, load_model, published_arguments, save_model
from jaxseg.weights.files import read_weights
from jaxseg.weights.genforce import from_genforce, to_genforce
from jaxseg.weights.inception import LoadedInception, from_inception, load_inception
from jaxseg.weights.nvlabs import from_nvlabs, read_nvlabs, to_nvlabs
from jaxseg.weights.pth import UnsafePickle, read_pth
from jaxseg.weights.published import Loaded, from_published, load_published, load_weights, save_weights, to_published
from jaxseg.weights.vgg import from_torchvision, load_encoder, to_torchvision
from jaxseg.weights.wrapped import WeightsMismatch

__all__ = [
    "Loaded",
    "LoadedInception",
    "LoadedModel",
    "UnsafePickle",
    "WeightsMismatch",
    "convert",
    "from_genforce",
    "from_inception",
    "from_nvlabs",
    "from_published",
    "from_torchvision",
    "load_adain_transfer",
    "load_encoder",
    "load_inception",
    "load_model",
    "load_published",
    "load_weights",
    "normalize_encoder",
    "published_arguments",
    "read_nvlabs",
    "read_pth",
    "read_weights",
    "save_model",
    "save_weights",
    "to_genforce",
    "to_nvlabs",
    "to_published",
    "to_torchvision",
]
