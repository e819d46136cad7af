"""Origins of web pages, as browsers send them in `Origin`."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

LONGEST = 200
"""Maximum characters of an origin. A host name may have 253, and real ones have less than half of that."""

_FORM = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9.-]*[a-z0-9])?)(:[1-9][0-9]{0,4})?")
_USUAL_PORTS = {"http": 80, "https": 443}


def checked_origins(origins: Iterable[str]) -> tuple[str, ...]:
    """Return each origin once. Raises ValueError with a sentence for one that no browser would ever send."""
    found = tuple(dict.fromkeys(origins))
    for origin in found:
        if len(origin) > LONGEST or not _FORM.fullmatch(origin):
            raise ValueError(
                f"{origin[:LONGEST]!r} is no origin: write it as browsers send it, such as https://app.example.mx or"
                " http://localhost:3000, in small letters and without a path"
            )
        parts = urlsplit(origin)
        if parts.port == _USUAL_PORTS[parts.scheme]:
            raise ValueError(f"{origin!r}: leave :{parts.port} out, as browsers do")
    return found
