from .adain import load_adain_transfer, normalize_encoder
from .convert import LoadedModel, convert, load_model, published_arguments, save_model
from .files import read_weights
from .genforce import from_genforce, to_genforce
from .inception import LoadedInception, from_inception, load_inception
from .nvlabs import from_nvlabs, read_nvlabs, to_nvlabs
from .pth import UnsafePickle, read_pth
from .published import Loaded, from_published, load_published, load_weights, save_weights, to_published
from .vgg import from_torchvision, load_encoder, to_torchvision
from .wrapped import WeightsMismatch

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
