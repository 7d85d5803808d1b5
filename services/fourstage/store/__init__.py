"""The JPEG store: made once by ``prepare``, opened by every stage, checked by ``verify``."""

from fourstage.store.opened import Split, Store, open_store
from fourstage.store.statistics import Statistics

__all__ = ["Split", "Statistics", "Store", "open_store"]
