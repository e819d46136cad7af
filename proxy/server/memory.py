"""Memory that was freed goes back to the machine: the C library keeps it otherwise, below what is still in use."""

import ctypes
import gc

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's; other C libraries give back by themselves, or cannot."""


def give_back() -> None:
    """Holds up the process for some 10 ms for each 100 MB: to be done after a crowd, and not at every request."""
    gc.collect()
    if _TRIM is not None:
        _TRIM(0)
