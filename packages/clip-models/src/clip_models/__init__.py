"""CLIP towers, tokenizers, preprocessing and weights, with OpenCLIP's names and state-dict layout.

Importing this module imports neither torch nor Pillow; each public name is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
