"""Scorers: functions of a stored sample whose results are columns beside the shards.

A score removes no sample; a selection over the columns decides later which rows are kept.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
