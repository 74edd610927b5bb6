"""The embedded input of the quickstart: rendered scenes, a URL table about them, and a loopback server.

Everything follows from (seed, index) alone, so a run that is killed and started again reads the same images.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
