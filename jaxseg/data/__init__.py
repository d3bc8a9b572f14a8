"""Sources of labelled images, batches of fixed shape, and augmentation on the device."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
