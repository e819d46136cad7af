"""Memory that was freed goes back to the machine: the C library keeps it otherwise, below what is still in use."""

import ctypes
import gc

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's; other C libraries give back by themselves, or cannot."""


def give_back() -> None:
    """Holds up the process for some 50 ms, most of them for the collection: to be done seldom."""
    gc.collect()
    if _TRIM is not None:
        _TRIM(0)
