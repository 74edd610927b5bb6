"""Scorers: functions of a stored sample whose results stand as columns beside the shards.

A score never removes anything; what to keep is decided later by a selection over the columns.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
