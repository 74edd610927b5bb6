"""Weights of other libraries: their layouts told apart and brought to OpenCLIP's, and written for them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
