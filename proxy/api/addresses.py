"""The target of a request, in whatever form, and the probable meaning of an unknown path."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote

from proxy.messages import BASE_URL, DID_YOU_MEAN, IMAGES_ONLY, NO_EDITS, NO_VARIATIONS, NOTHING_HERE, Text

MAX_TOLD_CHARACTERS = 128
"""Maximum characters of a path that is suggested to a client; ours are shorter."""

_NOT_OFFERED: Mapping[str, Text] = {
    "images/edits": NO_EDITS,
    "images/variations": NO_VARIATIONS,
    **dict.fromkeys(("chat/completions", "completions", "responses", "embeddings", "moderations"), IMAGES_ONLY),
}
"""OpenAI's paths after `/v1` that its clients may request."""


def origin_form(scope: MutableMapping[str, Any]) -> None:
    """Turn `GET http://host/v1/models` into `GET /v1/models` (RFC 9112, 3.2.2), whatever the host."""
    raw: bytes = scope.get("raw_path") or b""
    scheme, found, rest = raw.partition(b"://")
    if found and scheme.lower() in (b"http", b"https"):
        scope["raw_path"] = b"/" + rest.partition(b"/")[2]
        scope["path"] = unquote(scope["raw_path"].decode("ascii"))


def nothing_at(path: str, known: Callable[[str], bool]) -> Text:
    """Build the message for an unknown path, with the path that was probably meant.

    `known` says whether a path exists.
    """
    parts = [part for part in path.split("/") if part]
    behind = len(parts) - parts[::-1].index("v1") if "v1" in parts else 0
    rest = "/".join(parts[behind:])
    if not rest:
        return NOTHING_HERE.then(BASE_URL)
    if rest in _NOT_OFFERED:
        return _NOT_OFFERED[rest]
    for meant in ("/" + "/".join(parts), f"/v1/{rest}"):
        if meant != path and len(meant) <= MAX_TOLD_CHARACTERS and meant.isprintable() and known(meant):
            return NOTHING_HERE.then(DID_YOU_MEAN.of(it=meant))
    return NOTHING_HERE
