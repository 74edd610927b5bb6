"""Zero-shot classification, retrieval and reports, with an interval and a fingerprint on every number.

Importing this module imports neither torch nor pyarrow; each public name is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
