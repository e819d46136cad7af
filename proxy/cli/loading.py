"""Imports that take as little time as they can."""

import gc
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

NEEDLESS = ("opentelemetry",)
"""Packages that others load wherever they are installed: redis-py takes 0.1 s of every command for its own statistics,
which nobody reads."""


@contextmanager
def loading(*, hidden: Collection[str] = NEEDLESS) -> Iterator[None]:
    """Import in this block: the collector does not search what is loaded, now or later, and `hidden` is not found.

    Modules live as long as the process. A search among them finds next to nothing, and takes 50 ms of a gateway each
    time: at its start, and later in the middle of its orders.
    """
    gc.disable()
    hiding = [name for name in hidden if name not in sys.modules]
    sys.modules |= dict.fromkeys(hiding)  # type: ignore[arg-type]  # None is how Python says that there is none
    try:
        yield
    finally:
        for name in hiding:
            del sys.modules[name]
        gc.freeze()
        gc.enable()
