"""The sample stream: datasets in, batches in one fixed global order out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
