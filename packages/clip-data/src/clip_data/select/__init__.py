"""Selections: which rows of a dataset are kept, by an expression over columns and by exact deduplication.

A selection writes row numbers beside the shards; no shard is rewritten.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
