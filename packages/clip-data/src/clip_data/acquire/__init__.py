"""The acquire stage: from the URLs of a unit to a shard of images and a sidecar that accounts for every URL."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
