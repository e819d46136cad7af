"""Imports that take as little time as they can."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import in this block: the collector does not search what is loaded, now or later.

    Modules live as long as the process. A search among them finds next to nothing, and takes 50 ms of a gateway each
    time: at its start, and later in the middle of its orders.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
