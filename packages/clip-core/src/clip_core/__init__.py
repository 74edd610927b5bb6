"""What the other packages share. Importing this module does not import Pillow; each name loads on first use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
