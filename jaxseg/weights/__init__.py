"""Published checkpoints: files to named arrays, and named arrays to Flax variables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
