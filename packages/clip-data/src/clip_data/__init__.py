"""From tables of URLs to shards, scores, selections and a stream of samples.

The names below load on first use. A function that has its module's name is imported from there:
`from clip_data.plan import plan`, and so with select, status, uid and verify.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
